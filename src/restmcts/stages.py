"""The stages of a run. Each reads files of earlier ones, writes its own folder, and is done when its manifest is there.

    data → search → (completions) → label → policy, value → evaluate

A stage's settings and inputs are those that change its result; engines' speed settings are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from restmcts import curriculum
from restmcts.completing import complete_trees, completion_settings, needs_completions
from restmcts.data import DATA_FILES, Data
from restmcts.datasets import (
    PolicyRow,
    TreeLabels,
    ValueRow,
    label_trees,
    policy_rows,
    value_rows,
    worked_policy_rows,
    worked_value_rows,
    write_rows,
)
from restmcts.engines import Engines
from restmcts.evaluate import TREES, Searched, evaluate, greedy, search_all
from restmcts.job import Job, OpenOnDemand
from restmcts.judging import judge, trees_in_order, verdicts
from restmcts.results import WARM
from restmcts.rows import LABELS, POLICY_ROWS, VALUE_ROWS
from restmcts.search import SearchSettings
from restmcts.search.nodes import COMPLETION
from restmcts.store import StageFolder
from restmcts.tasks import get_task
from restmcts.types import Problem, Tree

# ---------------------------------------------------------------- search


def search(
    job: Job,
    k: int,
    data: Data,
    questions: Sequence[Problem],
    settings: SearchSettings,
    policy: str | Path,
    value: str | Path | None,
) -> Path:
    """Search `questions` with a pair of models; trees.jsonl grows tree by tree. Returns the stage's folder."""
    config = job.config
    if settings.greedy_first is None:  # a likeliest solution that is good enough would be all there is to learn from
        settings = settings.model_copy(update={"greedy_first": False})

    def work(stage: StageFolder) -> dict[str, Any]:
        account = job.account(stage)
        on_tree = job.watch(stage, len(questions), account)
        found = Searched(0)
        with OpenOnDemand(lambda: job.tools.load_engines(policy, value, ())) as engines:
            for group, share in curriculum.groups(job, k, questions, settings):
                found += search_all(
                    group,
                    share.method,
                    share,
                    engines(),
                    grader=job.grader,
                    seed=job.seed("round", k, "search"),
                    concurrency=config.engine.concurrency,
                    path=stage.path / TREES,
                    on_tree=on_tree,
                    account=account,
                )
            kind = engines().kind
        return {"questions": found.trees, **found.summary(), "engine": kind, "speed": account.speed()}

    asked = {"bootstrap": config.warm_start.bootstrap} if k == WARM else curriculum.identity(config)
    return job.stage(
        f"round-{k}/search",
        "search",
        k,
        work,
        settings={
            "search": settings.model_dump(mode="json"),
            **config.prompting(),
            "seed": config.seed,
            "questions_per_round": config.questions_per_round,
            **asked,
        },
        inputs={
            "problems": data.folder / DATA_FILES["train"],
            "policy": policy,
            "value": value,
            **curriculum.inputs(job, k),
        },
    )


def complete(job: Job, k: int, trees: Path, questions: Sequence[Problem], policy: str | Path) -> Path:
    """Have the policy that made the trees complete their steps, where the labelling rule asks for that.

    Returns the folder of the trees with their completions; `trees`, the search's own, where none are needed.
    """
    config = job.config
    if not needs_completions(config.labels):
        return trees
    chosen = completion_settings(config.labels, config.search)
    per_question = config.value_training.traces_per_question

    def work(stage: StageFolder) -> dict[str, Any]:
        found, seeds = trees_in_order(trees, questions), (job.seed("round", k, "completions"), _label_seed(job, k))
        return draw_completions(job, stage, found, lambda: job.tools.load_engines(policy, None, ()), *seeds)

    return job.stage(
        f"round-{k}/completions",
        "completions",
        k,
        work,
        settings={
            "labels": {"rule": config.labels.rule},
            "search": chosen.model_dump(mode="json"),
            **config.prompting(),
            "seed": config.seed,
            "value_traces_per_question": per_question,
        },
        inputs={"trees": trees, "policy": policy},
    )


def draw_completions(
    job: Job, stage: StageFolder, trees: Sequence[Tree], load: Callable[[], Engines], seed: int, choice_seed: int
) -> dict[str, Any]:
    """Complete the steps of `trees`; the stage's trees.jsonl grows tree by tree. Returns what came of it.

    `choice_seed` is that of the choice among a question's traces, the one with which they are labelled afterwards.
    """
    config, account = job.config, job.account(stage)
    with OpenOnDemand(load) as engines:
        completed = complete_trees(
            trees,
            config.labels,
            config.search,
            engines(),
            grader=job.grader,
            seed=seed,
            concurrency=config.engine.concurrency,
            traces_per_question=config.value_training.traces_per_question,
            choice_seed=choice_seed,
            path=stage.path / TREES,
            on_tree=job.watch(stage, len(trees), account),
            account=account,
        )
        kind = engines().kind
    return {"trees": completed.trees, **completed.summary(), "engine": kind, "speed": account.speed()}


# ---------------------------------------------------------------- label


def label(job: Job, k: int, data: Data, searched: Sequence[tuple[Path, Sequence[Problem]]], policy: str | Path) -> Path:
    """Verify the trees of round k (the last of `searched`), derive process rewards, and write the rows to train on.

    `searched` holds (search folder, its questions) of the rounds whose traces are trained on. Where a judge verifies,
    it is asked first; `policy` is the one that judges if none is named.
    """
    config, (folder, questions) = job.config, searched[-1]
    if config.labels.source == "judge":
        judge(job, k, folder, questions, policy, every=False)
    options = config.policy_training
    settings = {
        "labels": config.labels.of_rule(),
        "traces_per_question": options.traces_per_question,
        "pick": options.pick,
        "value_traces_per_question": config.value_training.traces_per_question,
        "accumulate": config.accumulate,
        "keep_worked": config.keep_worked,
        "seed": config.seed,
        **({"hard_negatives": True} if config.curriculum.hard_negatives else {}),
    }

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        trees, labels, facts = _labelled(job, folder, questions)
        write_rows(stage.path / LABELS, labels)
        for earlier, asked in searched[:-1]:
            more, more_labels, _ = _labelled(job, earlier, asked)
            trees, labels = more + trees, more_labels + labels
        seed = _label_seed(job, k)
        for_policy = policy_rows(
            trees, labels, traces_per_question=options.traces_per_question, pick=options.pick, seed=seed, round=k
        )
        for_value = value_rows(
            trees,
            labels,
            traces_per_question=config.value_training.traces_per_question,
            hard_negatives=config.curriculum.hard_negatives,
            seed=seed,
        )
        facts |= {"policy_rows": len(for_policy), "value_rows": len(for_value)}
        if config.keep_worked and data.worked:
            for_policy += _worked_policy(data)
            for_value += _worked_value(job, data)
        write_rows(stage.path / POLICY_ROWS, for_policy)
        write_rows(stage.path / VALUE_ROWS, for_value)
        return facts

    inputs: dict[str, str | Path | None] = {f"trees of {path.parent.name}": path for path, _ in searched}
    if config.labels.source == "judge":
        inputs |= {f"verdicts of {path.parent.name}": path.parent / "judge" for path, _ in searched}
    if config.keep_worked:
        inputs["worked"] = data.folder / DATA_FILES["worked"]
    return job.stage(f"round-{k}/label", "label", k, work, settings=settings, inputs=inputs)


def _labelled(
    job: Job, folder: Path, questions: Sequence[Problem]
) -> tuple[list[Tree], list[TreeLabels], dict[str, Any]]:
    """The trees of a search with their labels, in the order of its questions, and what came of them.

    Questions that the stage's budget left unasked have none.
    """
    trees = trees_in_order(folder, questions)
    correct, pseudo = verdicts(job, folder, trees)
    rules = job.config.labels
    labels = label_trees(trees, correct, rule=rules.rule, unsolved=rules.unsolved, estimate=rules.estimate)
    found = [
        [c for c, o in zip(row, t.origin, strict=True) if o != COMPLETION]
        for t, row in zip(trees, correct, strict=True)
    ]
    flags = [flag for tree in found for flag in tree if flag is not None]
    facts = {
        "solved": sum(t.result is not None and bool(c[t.result]) for t, c in zip(trees, correct, strict=True)),
        "reached": sum(map(any, found)),
        "finished": len(flags),
        "right_traces": sum(flags),
        **({} if pseudo is None else {"pseudo": pseudo}),
    }
    return trees, labels, facts


def _label_seed(job: Job, k: int) -> int:
    return job.seed("round", k, "label")


def _worked_policy(data: Data) -> list[PolicyRow]:
    """D_S0."""
    rows: list[PolicyRow] = []
    for problem in data.worked:
        rows += worked_policy_rows([problem], get_task(problem.task).find_answer)
    return rows


def _worked_value(job: Job, data: Data) -> list[ValueRow]:
    """D_V0."""
    find_answer = get_task(data.worked[0].task).find_answer
    corruptions = job.config.warm_start.corruptions
    return worked_value_rows(data.worked, corruptions=corruptions, seed=job.seed("worked"), find_answer=find_answer)


def warm_rows(job: Job, data: Data) -> Path:
    """The rows of the warm start: D_S0 and D_V0 from the worked examples."""

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        for_policy, for_value = _worked_policy(data), _worked_value(job, data)
        write_rows(stage.path / POLICY_ROWS, for_policy)
        write_rows(stage.path / VALUE_ROWS, for_value)
        return {"policy_rows": len(for_policy), "value_rows": len(for_value)}

    settings = {"corruptions": job.config.warm_start.corruptions, "seed": job.config.seed}
    inputs: dict[str, str | Path | None] = {"worked": data.folder / DATA_FILES["worked"]}
    return job.stage("round-0/rows", "rows", WARM, work, settings=settings, inputs=inputs)


# ---------------------------------------------------------------- evaluate


def measure(
    job: Job,
    phase: int,
    modes: Sequence[str],
    data: Data,
    policy: str | Path,
    value: str | Path | None,
    examples: Sequence[Problem] = (),
) -> None:
    """Evaluate a pair of models on the held-out questions, mode by mode, each a stage."""
    scorer = value if "search" in modes else None
    with OpenOnDemand(lambda: job.tools.load_engines(policy, scorer, examples)) as engines:
        for mode in modes:
            _measure(job, phase, mode, data, engines, {"policy": policy, "value": scorer}, examples)


def _measure(
    job: Job,
    phase: int,
    mode: str,
    data: Data,
    engines: OpenOnDemand,
    models: dict[str, str | Path | None],
    examples: Sequence[Problem],
) -> None:
    config = job.config
    problems = data.heldout[: config.evaluate.limit]
    chosen = config.evaluate.search
    if mode == "greedy":
        chosen = greedy(chosen)
        models = {"policy": models["policy"]}

    def work(stage: StageFolder) -> dict[str, Any]:
        account = job.account(stage)
        result = evaluate(
            problems,
            chosen.method,
            chosen,
            engines(),
            grader=job.grader,
            seed=job.seed("evaluate", mode),
            concurrency=config.engine.concurrency,
            folder=stage.path,
            on_tree=job.watch(stage, len(problems), account),
            account=account,
        )
        return {**result.summary(), "engine": engines().kind, "speed": account.speed()}

    inputs = {"heldout": data.folder / DATA_FILES["heldout"], **models}
    if examples:
        inputs["worked"] = data.folder / DATA_FILES["worked"]
    job.stage(
        f"{'base' if phase < WARM else f'round-{phase}'}/evaluate/{mode}",
        "evaluate",
        phase,
        work,
        mode=mode,
        settings={
            "search": chosen.model_dump(mode="json"),
            **config.prompting(),
            "seed": config.seed,
            "limit": config.evaluate.limit,
            "examples": len(examples),
        },
        inputs=inputs,
    )
