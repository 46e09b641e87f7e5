"""Scoring a value model's test solutions, and what its values are worth.

OUT/values/ is a stage: the values, with a manifest. What is made of them (metrics.json, evaluate-value.md and the rows
beside it) is made anew each time, so that another threshold scores nothing again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from restmcts.account import Account
from restmcts.config import RunConfig
from restmcts.console import Progress
from restmcts.datasets import Grader, verify
from restmcts.engines.opening import load_value
from restmcts.evaluate import value_points
from restmcts.job import models_and_files, release_memory, take_up_again
from restmcts.lens import bestofn, processbench
from restmcts.lens.processbench import USUAL, Sample
from restmcts.lens.scoring import Scored, read_scored, score_given
from restmcts.lens.show import tables
from restmcts.metrics import value_quality
from restmcts.store import RunFolder, StageFolder, write_atomic, write_json, write_jsonl
from restmcts.tasks import get_task
from restmcts.types import Tree, Usage

BENCH, TREES = "processbench", "trees"
METRICS, REPORT = "metrics.json", "evaluate-value.md"


def score_and_measure(
    config: RunConfig,
    samples: Sequence[Sample],
    trees: Mapping[str, Tree],
    sources: Mapping[str, str | Path | None],
    *,
    threshold: str,
    out: Path,
    grader: Grader,
    progress: Progress,
) -> dict[str, Any]:
    """Score `samples` and `trees` with the value model of `config`, or find that done; returns what they are worth.

    `sources` names the files that they come from. Writes metrics, tables and rows into `out`.
    """
    given = {BENCH: {sample.id: sample.tree() for sample in samples}, TREES: trees}
    named, files = models_and_files({"value": config.value, **sources})
    settings = {**config.prompting(), "limit": config.limit, "seed": config.seed, **named}
    with RunFolder(out) as folder, folder.stage("values", settings=settings, inputs=files) as stage:
        take_up_again(stage, config.stage_budget.budget())
        if stage.done:
            progress.say(f"{out} is scored: nothing was scored again")
        else:
            stage.finish(_score(config, given, stage, progress))
            progress.finish()
        assert stage.manifest is not None
        found: dict[str, Any] = {"value": config.value, **stage.manifest.metrics}
        values = {part: values_of(_kept(stage, part, given[part])) for part in given}
        if samples:
            seen = [sample for sample in samples if sample.id in values[BENCH]]
            found[BENCH], rows = on_processbench(seen, values[BENCH], threshold)
            write_jsonl(out / f"{BENCH}.jsonl", rows)
        if trees:
            scored = {name: tree for name, tree in trees.items() if name in values[TREES]}
            found[TREES], rows = on_trees(scored, values[TREES], grader)
            write_jsonl(out / "best-of-n.jsonl", rows)
        write_json(out / METRICS, found)
        write_atomic(out / REPORT, "\n".join(table.markdown() for table in tables(found)))
    return found


def _score(
    config: RunConfig, given: Mapping[str, Mapping[str, Tree]], stage: StageFolder, progress: Progress
) -> dict[str, Any]:
    """Score what is not scored yet; returns the stage's metrics."""
    before = [scored for part in given for scored in _kept(stage, part, given[part]).values()]
    earlier = sum((scored.usage for scored in before), Usage())
    account = Account(config.stage_budget.budget(), earlier=earlier, elapsed=stage.seconds)
    engine = load_value(str(config.value), config.prompt, config.engine)
    now: list[Scored] = []
    try:
        for part in (part for part in given if given[part]):
            done = len(_kept(stage, part, given[part]))
            progress.stage(part, len(given[part]), done=done)
            now += score_given(
                given[part],
                engine,
                _path(stage, part),
                concurrency=config.engine.concurrency,
                account=account,
                on_scored=_showing(progress, account, done),
            ).values()
    finally:
        asyncio.run(engine.close())
        release_memory()
    owed = sum(map(len, given.values())) - len(now)
    return {
        "model": engine.identity,
        "scored": len(now),
        "failed": sum(bool(scored.failures) for scored in now),
        **({"owed": owed} if owed else {}),
        "usage": dataclasses.asdict(sum((scored.usage for scored in now), Usage())),
        "speed": account.speed(),
    }


def _path(stage: StageFolder, part: str) -> Path:
    return stage.path / f"{part}.jsonl"


def _kept(stage: StageFolder, part: str, trees: Mapping[str, Tree]) -> dict[str, Scored]:
    return read_scored(_path(stage, part), trees)


def _showing(progress: Progress, account: Account, done: int) -> Callable[[Tree], None]:
    """Shows every tree that is scored."""
    ready = itertools.count(done + 1)

    def show(_: Tree) -> None:
        tokens = account.count.value_tokens
        rate = {"tokens/s": round(tokens / account.seconds)} if account.seconds else {}
        progress.update(next(ready), tokens=tokens, **rate)

    return show


# ---------------------------------------------------------------- what the values are worth

Values = Mapping[str, Sequence[float | None]]
"""by problem id: v of every node of its tree, None where there is none"""


def values_of(scored: Mapping[str, Scored]) -> dict[str, list[float | None]]:
    return {name: one.values for name, one in scored.items()}


def on_processbench(
    samples: Sequence[Sample], values: Values, threshold: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`processbench.measure` by value and by gain, with the usual thresholds and with the one asked for; a row for
    every sample."""
    given = {name: scores[1:] for name, scores in values.items()}
    found: dict[str, Any] = {}
    rows = [{"id": s.id, "subset": s.subset, "label": s.label, "values": given[s.id]} for s in samples]
    for rule, usual in USUAL.items():
        found[rule] = {
            "usual": processbench.measure(samples, given, rule, str(usual)),
            "chosen": processbench.measure(samples, given, rule, threshold),
        }
        predicted = [found[rule][which].pop("predicted") for which in ("usual", "chosen")][1]
        rows = [{**row, f"predicted by {rule}": predicted[row["id"]]} for row in rows]
    return found, rows


def on_trees(trees: Mapping[str, Tree], values: Values, grader: Grader) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Error, ranking and calibration on trees with known answers, and Best-of-N with a row for every question.

    `best_of_n` is None for trees of methods whose leaves are no independent samples (`bestofn.SAMPLED`).
    """
    scored = [dataclasses.replace(tree, raw_value=list(values[name])) for name, tree in trees.items()]
    correct = verify(scored, grader)
    made = [bestofn.pool(tree, flags, get_task(tree.problem.task)) for tree, flags in zip(scored, correct, strict=True)]
    pools = [pool for pool in made if pool is not None]
    best = bestofn.table(pools) if pools else None
    rows = [] if best is None else best.pop("rows")
    quality = value_quality(value_points(scored, correct))
    return {"trees": len(scored), "quality": quality, "best_of_n": best}, rows
