"""The stages of a run. Each reads files of earlier ones, writes its own folder, and is done when its manifest is there.

    data → search → (completions) → label → policy, value → evaluate

A stage's settings and inputs are those that change its result; engines' speed settings are not among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restmcts.completing import complete_trees, completion_settings, needs_completions
from restmcts.data import DATA_FILES, Data
from restmcts.datasets import (
    PolicyRow,
    TreeLabels,
    ValueRow,
    label_trees,
    policy_rows,
    read_rows,
    value_rows,
    verify,
    worked_policy_rows,
    worked_value_rows,
    write_rows,
)
from restmcts.errors import FixedModelError
from restmcts.evaluate import TREES, evaluate, greedy, search_all, stored_trees
from restmcts.job import Job, Kind, OpenOnDemand, release_memory
from restmcts.results import WARM
from restmcts.search import SearchSettings
from restmcts.search.nodes import COMPLETION
from restmcts.store import StageFolder
from restmcts.tasks import get_task
from restmcts.types import Problem, Tree

LABELS, POLICY_ROWS, VALUE_ROWS = "labels.jsonl", "policy_rows.jsonl", "value_rows.jsonl"


# ---------------------------------------------------------------- search


def round_questions(job: Job, train: Sequence[Problem], k: int) -> list[Problem]:
    """The questions of round k (from 1): a fresh slice of a seeded order, starting over when all were used."""
    count = job.config.questions_per_round
    if count is None or count >= len(train):
        return list(train)
    order = list(train)
    random.Random(job.seed("questions")).shuffle(order)
    start = (k - 1) * count
    return [order[(start + i) % len(order)] for i in range(count)]


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

    def work(stage: StageFolder) -> dict[str, Any]:
        account = job.account(stage)
        on_tree = job.watch(stage, len(questions), account)
        with OpenOnDemand(lambda: job.tools.load_engines(policy, value, ())) as engines:
            found = search_all(
                questions,
                settings.method,
                settings,
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

    asked = {"bootstrap": config.warm_start.bootstrap} if k == WARM else {}
    return job.stage(
        f"round-{k}/search",
        "search",
        k,
        work,
        settings={
            "search": settings.model_dump(mode="json"),
            "prompt": config.prompt.model_dump(mode="json"),
            "seed": config.seed,
            "questions_per_round": config.questions_per_round,
            **asked,
        },
        inputs={"problems": data.folder / DATA_FILES["train"], "policy": policy, "value": value},
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
        account, found = job.account(stage), _in_order(trees, questions)
        with OpenOnDemand(lambda: job.tools.load_engines(policy, None, ())) as engines:
            completed = complete_trees(
                found,
                config.labels,
                config.search,
                engines(),
                grader=job.grader,
                seed=job.seed("round", k, "completions"),
                concurrency=config.engine.concurrency,
                traces_per_question=per_question,
                choice_seed=_label_seed(job, k),
                path=stage.path / TREES,
                on_tree=job.watch(stage, len(found), account),
                account=account,
            )
            kind = engines().kind
        return {"trees": completed.trees, **completed.summary(), "engine": kind, "speed": account.speed()}

    return job.stage(
        f"round-{k}/completions",
        "completions",
        k,
        work,
        settings={
            "labels": {"rule": config.labels.rule},
            "search": chosen.model_dump(mode="json"),
            "prompt": config.prompt.model_dump(mode="json"),
            "seed": config.seed,
            "value_traces_per_question": per_question,
        },
        inputs={"trees": trees, "policy": policy},
    )


# ---------------------------------------------------------------- label


def label(job: Job, k: int, data: Data, searched: Sequence[tuple[Path, Sequence[Problem]]]) -> Path:
    """Verify the trees of round k (the last of `searched`), derive process rewards, and write the rows to train on.

    `searched` holds (search folder, its questions) of the rounds whose traces are trained on.
    """
    config, (folder, questions) = job.config, searched[-1]
    options = config.policy_training
    settings = {
        "labels": config.labels.of_rule(),
        "traces_per_question": options.traces_per_question,
        "pick": options.pick,
        "value_traces_per_question": config.value_training.traces_per_question,
        "accumulate": config.accumulate,
        "keep_worked": config.keep_worked,
        "seed": config.seed,
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
        for_value = value_rows(trees, labels, traces_per_question=config.value_training.traces_per_question, seed=seed)
        facts |= {"policy_rows": len(for_policy), "value_rows": len(for_value)}
        if config.keep_worked and data.worked:
            for_policy += _worked_policy(data)
            for_value += _worked_value(job, data)
        write_rows(stage.path / POLICY_ROWS, for_policy)
        write_rows(stage.path / VALUE_ROWS, for_value)
        return facts

    inputs: dict[str, str | Path | None] = {f"trees of {path.parent.name}": path for path, _ in searched}
    if config.keep_worked:
        inputs["worked"] = data.folder / DATA_FILES["worked"]
    return job.stage(f"round-{k}/label", "label", k, work, settings=settings, inputs=inputs)


def _labelled(
    job: Job, folder: Path, questions: Sequence[Problem]
) -> tuple[list[Tree], list[TreeLabels], dict[str, Any]]:
    """The trees of a search with their labels, in the order of its questions, and what came of them.

    Questions that the stage's budget left unasked have none.
    """
    trees = _in_order(folder, questions)
    correct = verify(trees, job.grader)
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
    }
    return trees, labels, facts


def _in_order(folder: Path, questions: Sequence[Problem]) -> list[Tree]:
    stored = stored_trees(folder / TREES, questions)
    return [stored[problem.id] for problem in questions if problem.id in stored]


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


# ---------------------------------------------------------------- train


def train(job: Job, kind: Kind, k: int, rows: Path, previous: str | Path) -> str | Path:
    """Train one of the models of round k on the rows in folder `rows`; returns where it is.

    A round without a right trace teaches the policy nothing, one without labels nothing the value model, and a public
    process reward model is not trained: the model then stays what it was, and the stage says so.
    """
    config = job.config
    source = config.warm_start if k == WARM else config
    options = source.policy_training if kind == "policy" else source.value_training
    first = str(config.policy if kind == "policy" else config.value or config.policy)
    base = previous if options.start == "previous" else first
    file = rows / (POLICY_ROWS if kind == "policy" else VALUE_ROWS)

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        found: Sequence[PolicyRow | ValueRow] = read_rows(file, PolicyRow if kind == "policy" else ValueRow)
        fresh = [row for row in found if k == WARM or not isinstance(row, PolicyRow) or row.round]
        if not fresh:
            job.progress.say(f"round {k} found nothing to teach the {kind} model: it stays as it is")
            return {"rows": 0, "kept": True}
        seed = job.seed("round", k, kind)
        try:
            metrics = job.tools.train(
                kind, found, base=base, out=stage.path, settings=options, seed=seed, on_progress=job.on_step
            )
        except FixedModelError:
            job.progress.say(f"{base} is not trained: it stays the {kind} model of all rounds")
            return {"rows": 0, "kept": True}
        release_memory()
        return {"rows": len(found), **metrics}

    settings = {
        "training": options.model_dump(mode="json", exclude={"checkpoint_seconds", "device"}),
        "prompt": config.prompt.model_dump(mode="json"),
        "seed": config.seed,
    }
    folder = job.stage(f"round-{k}/{kind}", kind, k, work, settings=settings, inputs={"rows": file, "base": base})
    return previous if job.records[-1]["metrics"].get("kept") else folder


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
            "prompt": config.prompt.model_dump(mode="json"),
            "seed": config.seed,
            "limit": config.evaluate.limit,
            "examples": len(examples),
        },
        inputs=inputs,
    )
