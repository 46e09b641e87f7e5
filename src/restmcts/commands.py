"""What the commands for single stages do. Each writes one folder with a manifest, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from restmcts import cluster, datasets
from restmcts.api import solve
from restmcts.completing import completion_settings, needs_completions
from restmcts.config import RunConfig
from restmcts.console import Progress, number
from restmcts.data import DATA_FILES
from restmcts.engines import Engines
from restmcts.engines.opening import SCRIPTED, Say
from restmcts.errors import ConfigError, StoreError, TaskError
from restmcts.evaluate import TREES, evaluate, greedy, search_all
from restmcts.job import Job, OpenOnDemand, models_and_files, take_up_again
from restmcts.judging import verdicts
from restmcts.lens.measure import score_and_measure
from restmcts.lens.processbench import check_threshold, load_samples
from restmcts.lens.show import tables
from restmcts.loop import ModelTools
from restmcts.rows import LABELS, POLICY_ROWS, VALUE_ROWS
from restmcts.search import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.stages import draw_completions
from restmcts.store import RunFolder, StageFolder, read_jsonl
from restmcts.tasks.grade import Grader
from restmcts.tasks.load import load_problems, write_problems
from restmcts.types import Problem, Tree

# ---------------------------------------------------------------- one question


def solve_question(config: RunConfig, question: str) -> Tree:
    """The search tree of one question."""
    if not question.strip():
        raise ConfigError("the question is empty; write it in quotes")
    with OpenOnDemand(lambda: open_engines(config)) as engines:
        return solve(
            Problem("question", question, task=config.task or "math"), engines(), config.search, seed=config.seed
        )


def print_solution(tree: Tree) -> None:
    """Show the chosen steps with their values, the answer, and what it cost."""
    for index, node in enumerate([] if tree.result is None else tree.nodes_to(tree.result), start=1):
        value = tree.raw_value[node]
        print(f"{index:>3}  {'     ' if value is None else f'{value:.3f}'}  {tree.text[node]}")
    print(f"answer: {tree.final_answer}" if tree.final_answer is not None else f"no answer found (stop: {tree.stop})")
    for failure in tree.failures[:3]:
        print(f"failed: {failure}")
    usage = tree.usage
    facts = [f"{len(tree) - 1} steps in the tree", f"{len(tree.finished())} finished", f"stop: {tree.stop}"]
    facts += [f"{number(usage.policy_tokens)} tokens generated", f"{number(usage.value_tokens)} scored"]
    print(f"cost: {', '.join(facts)}, {usage.seconds:.1f} s")


# ---------------------------------------------------------------- stages


def search_problems(config: RunConfig, out: Path, progress: Progress) -> None:
    """Search every problem; OUT/trees.jsonl grows tree by tree."""
    problems = problems_of(config, need_answer=False)

    def work(stage: StageFolder, job: Job) -> dict[str, Any]:
        account = job.account(stage)
        with OpenOnDemand(lambda: open_engines(config, progress.say)) as engines:
            found = search_all(
                problems,
                config.search.method,
                config.search,
                engines(),
                grader=job.grader,
                seed=config.seed,
                concurrency=config.engine.concurrency,
                path=stage.path / TREES,
                on_tree=job.watch(stage, len(problems), account),
                account=account,
            )
            kind = engines().kind
        return {
            "problems": found.trees,
            "answered": found.answered,
            **found.summary(),
            "engine": kind,
            "speed": account.speed(),
        }

    metrics = stage_alone(
        config, out, progress, work, settings=_asked(config), inputs={"problems": config.problems, **_models(config)}
    )
    print(f"{metrics['problems']} trees, {metrics['answered']} with an answer: {out / TREES}")
    say_owed(metrics)


def label_stored_trees(config: RunConfig, trees: Path, out: Path, progress: Progress) -> None:
    """Grade, label and turn into rows the trees of a file; with a policy, after the completions that the rule needs."""
    trees = existing(trees, TREES)
    if config.labels.source == "judge":
        raise ConfigError("labels.source = 'judge': stored trees are labelled by oracle or majority; use restmcts run")
    pick, per_question = config.policy_training.pick, config.policy_training.traces_per_question
    value_per_question = config.value_training.traces_per_question
    rules, seed = config.labels, derive_seed(config.seed, "label")
    asks = config.policy is not None and needs_completions(rules)
    unscored = config.model_copy(update={"value": None})

    def work(stage: StageFolder, job: Job) -> dict[str, Any]:
        progress.stage("label")
        found, cost = read_trees(trees), dict[str, Any]()
        if asks:
            drawing = derive_seed(config.seed, "completions")
            cost = draw_completions(job, stage, found, partial(open_engines, unscored, progress.say), drawing, seed)
            found = read_trees(stage.path / TREES)
        correct, pseudo = verdicts(job, trees.parent, found)
        labels = datasets.label_trees(found, correct, rule=rules.rule, unsolved=rules.unsolved, estimate=rules.estimate)
        for_policy = datasets.policy_rows(found, labels, traces_per_question=per_question, pick=pick, seed=seed)
        for_value = datasets.value_rows(found, labels, traces_per_question=value_per_question, seed=seed)
        datasets.write_rows(stage.path / LABELS, labels)
        datasets.write_rows(stage.path / POLICY_ROWS, for_policy)
        datasets.write_rows(stage.path / VALUE_ROWS, for_value)
        reached = sum(any(flags) for flags in correct)
        return {
            "trees": len(found),
            "reached": reached,
            "policy_rows": len(for_policy),
            "value_rows": len(for_value),
            **cost,
            **({} if pseudo is None else {"pseudo": pseudo}),
        }

    settings: dict[str, Any] = {
        "labels": rules.of_rule(),
        "policy_training": {"traces_per_question": per_question, "pick": pick},
        "value_training": {"traces_per_question": value_per_question},
        "seed": config.seed,
    }
    inputs: dict[str, str | Path | None] = {"trees": trees}
    if asks:
        chosen = completion_settings(rules, config.search)
        settings |= {"search": chosen.model_dump(mode="json"), **config.prompting()}
        inputs["policy"] = config.policy
    m = stage_alone(config, out, progress, work, settings=settings, inputs=inputs)
    right = "the right answer" if rules.source == "oracle" else "an answer that counts as right"
    print(f"{m['reached']} of {m['trees']} trees reached {right}")
    if m.get("pseudo"):
        print(pseudo_line(m["pseudo"]))
    if asks:
        print(f"{number(m['usage']['policy_tokens'])} tokens of completions: {out / TREES}")
        say_owed(m)
    print(f"{m['policy_rows']} rows for the policy: {out / POLICY_ROWS}")
    print(f"{m['value_rows']} rows for the value model: {out / VALUE_ROWS}")


def evaluate_problems(config: RunConfig, out: Path, progress: Progress) -> None:
    """Measure greedy answers and search on problems with known answers."""
    problems = problems_of(config, need_answer=True)[: config.evaluate.limit]
    methods = list(config.evaluate.methods)
    if "search" in methods and config.value is None and config.policy != SCRIPTED:
        methods.remove("search")
        progress.say("search is not measured: it needs --value")
    opening = partial(open_engines, config, progress.say)
    with RunFolder(out) as folder, Grader() as grader, OpenOnDemand(opening) as engines, progress:
        job = Job(config, folder, grader, progress, ModelTools(config, progress.say))
        for mode in methods:
            search = greedy(config.evaluate.search) if mode == "greedy" else config.evaluate.search
            metrics = measure(job, mode, problems, search, engines, settings=_asked(config), inputs=_models(config))
            print(_accuracy_line(mode, metrics))
            say_owed(metrics)
    print(f"rows and trees: {out}")


def measure(
    job: Job,
    name: str,
    problems: Sequence[Problem],
    search: SearchSettings,
    engines: OpenOnDemand,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | Path | None],
) -> dict[str, Any]:
    """Do stage `name`, which answers problems and scores the answers, or find it done; returns its metrics."""
    config = job.config
    named, files = models_and_files({"problems": config.problems, **inputs})
    settings = {**settings, "search": search.model_dump(mode="json"), **named}
    with job.folder.stage(name, settings=settings, inputs=files) as stage:
        take_up_again(stage, config.stage_budget.budget())
        if not stage.done:
            account = job.account(stage)
            result = evaluate(
                problems,
                search.method,
                search,
                engines(),
                grader=job.grader,
                seed=config.seed,
                concurrency=config.engine.concurrency,
                folder=stage.path,
                on_tree=job.watch(stage, len(problems), account),
                account=account,
            )
            stage.finish({**result.summary(), "engine": engines().kind, "speed": account.speed()})
            job.progress.finish()
        assert stage.manifest is not None
        return stage.manifest.metrics


def evaluate_value(
    config: RunConfig, bench: Sequence[str], trees: Path | None, threshold: str, out: Path, progress: Progress
) -> None:
    """Score ProcessBench's samples and stored trees with a value model, and show what its values are worth."""
    from rich.console import Console

    if config.value is None:
        raise ConfigError("no value model; give --value: a checkpoint folder, a hub id, or rlhflow:NAME and the like")
    if not bench and trees is None:
        raise ConfigError("nothing to evaluate on; give --processbench, or --trees with stored trees, or both")
    stored = None if trees is None else existing(trees, TREES)
    samples = load_samples(bench, limit=config.limit, seed=config.seed) if bench else []
    if samples:
        check_threshold(samples, threshold)
    given = {} if stored is None else _answered(read_trees(stored)[: config.limit], stored)
    sources = {"trees": stored, **{f"processbench {i}": source for i, source in enumerate(bench, start=1)}}
    with Grader() as grader, progress:
        found = score_and_measure(
            config, samples, given, sources, threshold=threshold, out=out, grader=grader, progress=progress
        )
    for table in tables(found):
        table.show(Console())
    say_owed(found, "samples and trees")
    print(f"values, metrics and tables: {out}")


def write_generated(name: str, out: Path, **options: int) -> None:
    """Write a built-in problem set as three files."""
    from restmcts.tasks.generate import generate

    made = generate(name, **options)
    for part, file in DATA_FILES.items():
        problems = getattr(made, part)
        write_problems(out / file, problems)
        print(f"{len(problems):>6} {part:<8} {out / file}")


# ---------------------------------------------------------------- parts


def open_engines(config: RunConfig, say: Say | None = None) -> Engines:
    """The policy and the value model of the settings; `say` shows a line."""
    if config.policy is None:
        raise ConfigError("no policy; give --policy: embedded, a checkpoint folder, a hub id, or scripted")
    return cluster.open_engines(config.cluster, config.policy, config.value, config.prompt, config.engine, say=say)


def read_trees(path: Path) -> list[Tree]:
    """The trees of a file, the last one of each question. Raises StoreError naming the first that cannot be read."""
    trees: dict[str, Tree] = {}
    for number_, record in enumerate(read_jsonl(path, skip_torn=True), start=1):
        try:
            tree = Tree.from_record(record)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path}, record {number_}: {error}; search again, or mend the file") from None
        trees.pop(tree.problem.id, None)
        trees[tree.problem.id] = tree
    return list(trees.values())


Work = Callable[[StageFolder, Job], Mapping[str, Any]]


def stage_alone(
    config: RunConfig,
    out: Path,
    progress: Progress,
    work: Work,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | Path | None],
    begins: Callable[[bool], object] = bool,
) -> dict[str, Any]:
    """Do the one stage that folder `out` holds, or find it done; returns its metrics.

    `begins` is told, before anything is done, whether there is something to do.
    """
    named, files = models_and_files(inputs)
    tools = ModelTools(config, progress.say)
    with RunFolder(out) as folder, folder.stage(".", settings={**settings, **named}, inputs=files) as stage:
        take_up_again(stage, config.stage_budget.budget())
        begins(not stage.done)
        if stage.manifest is not None:
            print(f"{out} is finished: nothing was run again")
            return stage.manifest.metrics
        with Grader() as grader, progress:
            return stage.finish(work(stage, Job(config, folder, grader, progress, tools))).metrics


def problems_of(config: RunConfig, *, need_answer: bool) -> list[Problem]:
    """The questions of the settings. Raises ConfigError where there are none."""
    if config.problems is None:
        raise ConfigError("no problems; give --problems: a file or a hub data set")
    return load_problems(
        config.problems, fields=config.fields or None, task=config.task, need_answer=need_answer, limit=config.limit
    )


def _asked(config: RunConfig) -> dict[str, Any]:
    """The settings that change what a search finds."""
    parts = {name: getattr(config, name) for name in ("task", "fields", "limit", "seed")}
    return parts | {"search": config.search.model_dump(mode="json"), **config.prompting()}


def _models(config: RunConfig) -> dict[str, str | Path | None]:
    return {"policy": config.policy, "value": config.value}


def _answered(trees: Sequence[Tree], path: Path) -> dict[str, Tree]:
    """The trees by the ids of their problems, whose answers must be known."""
    for tree in trees:
        if tree.problem.answer is None:
            raise TaskError(
                f"{path}: problem {tree.problem.id!r} has no answer, so its values cannot be judged: give it"
            )
    return {tree.problem.id: tree for tree in trees}


def existing(path: Path, name: str) -> Path:
    """`path`, or the file `name` in it when it is a folder."""
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"no such file: {path}")
    return path


def say_owed(metrics: Mapping[str, Any], what: str = "questions") -> None:
    """Say what the stage's budget left undone, if anything."""
    if metrics.get("owed"):
        print(f"stage_budget is spent: {metrics['owed']} {what} are owed; raise it and run the same command again")


def pseudo_line(quality: Mapping[str, Any]) -> str:
    """What came of verdicts without known answers, measured against these."""
    names = {"covered": "trees labelled", "precision": "precision", "recall": "recall", "agreement": "agreement"}
    shown = [f"{name} {quality[key]:.1%}" for key, name in names.items() if quality[key] is not None]
    return f"against the known answers, leaf by leaf: {', '.join(shown) or 'nothing to compare'}"


def _accuracy_line(mode: str, metrics: Mapping[str, Any]) -> str:
    if not metrics["n"]:
        return f"{mode:<7} not measured"
    low, high = metrics["interval"]
    right, n, usage = metrics["correct"], metrics["n"], metrics["usage"]
    tokens = f"{number(usage['policy_tokens'])} tokens generated, {number(usage['value_tokens'])} scored"
    return f"{mode:<7} {right / n:6.1%} [{low:.1%}, {high:.1%}]  {right} of {n} right, {tokens}"
