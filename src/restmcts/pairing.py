"""The stage that makes pairs of a round's trees, for the methods that learn from preferences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restmcts.datasets import TreeLabels, read_rows, solution_pairs, step_pairs, write_rows
from restmcts.evaluate import TREES, stored_trees
from restmcts.job import Job
from restmcts.judging import read_scores, trees_in_order
from restmcts.rows import LABELS, PAIRS
from restmcts.store import StageFolder
from restmcts.types import Problem


def pairs_of_steps(job: Job, k: int, folder: Path, questions: Sequence[Problem], labelled: Path) -> Path:
    """Sibling steps of round k's trees as pairs, by the value inferred for them; returns the stage's folder."""
    options = job.config.preference

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        stored = stored_trees(folder / TREES, questions)
        labels = read_rows(labelled / LABELS, TreeLabels)
        trees = [stored[record.id] for record in labels]
        seed = job.seed("round", k, "pairs")
        made = step_pairs(
            trees, labels, margin=options.margin, pairs_per_question=options.pairs_per_question, seed=seed, round=k
        )
        write_rows(stage.path / PAIRS, made)
        return {"pairs": len(made), "questions": len({row.problem_id for row in made})}

    inputs = {"trees": folder, "labels": labelled}
    return job.stage(f"round-{k}/pairs", "pairs", k, work, settings=_pairing(job), inputs=inputs)


def pairs_of_solutions(job: Job, k: int, folder: Path, questions: Sequence[Problem], judged: Path) -> Path:
    """Whole solutions of round k's trees as pairs, by the judge's scores; returns the stage's folder."""
    options = job.config.preference

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        trees = trees_in_order(folder, questions)
        scores = read_scores(judged)
        made = solution_pairs(
            trees, scores, margin=options.margin, pairs_per_question=options.pairs_per_question, round=k
        )
        write_rows(stage.path / PAIRS, made)
        return {"pairs": len(made), "questions": len({row.problem_id for row in made})}

    inputs = {"trees": folder, "verdicts": judged}
    return job.stage(f"round-{k}/pairs", "pairs", k, work, settings=_pairing(job), inputs=inputs)


def _pairing(job: Job) -> dict[str, Any]:
    options = job.config.preference
    return {"margin": options.margin, "pairs_per_question": options.pairs_per_question, "seed": job.config.seed}
