"""Which questions a round is about, how much search they get, and when more rounds do not help.

All of it is read off what earlier rounds left in the run folder, so that a run resumed decides as a straight one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from restmcts.config import RunConfig
from restmcts.job import Job
from restmcts.results import WARM, best_phase, held_out, phase_name
from restmcts.rows import LABELS, REWARDS, TreeLabels, read_rows
from restmcts.search import SearchSettings
from restmcts.store import read_jsonl
from restmcts.types import Problem

RELIABLE = 0.5
"""share of right leaves from which on a question needs no more search than others"""


def round_questions(job: Job, train: Sequence[Problem], k: int) -> list[Problem]:
    """The questions of round k (from 1): a fresh slice of a seeded order, starting over when all were used.

    With `curriculum.skip_solved`, those that were always solved are passed over, unless nothing else is left.
    """
    order, count = list(train), job.config.questions_per_round
    if count is not None and count < len(train):
        random.Random(job.seed("questions")).shuffle(order)
        start = (k - 1) * count % len(order)
        order = order[start:] + order[:start]
    if job.config.curriculum.skip_solved:
        solved = {name for name, share in outcomes(job, k).items() if share == 1}
        open_ones = [problem for problem in order if problem.id not in solved]
        if open_ones and len(open_ones) < len(order):
            job.progress.say(f"round {k}: {len(order) - len(open_ones)} questions are always solved and left out")
        order = open_ones or order
    return order[:count]


def groups(
    job: Job, k: int, questions: Sequence[Problem], settings: SearchSettings
) -> Iterable[tuple[list[Problem], SearchSettings]]:
    """The questions in groups with the search that each gets: more for those that are not solved reliably."""
    factor = job.config.curriculum.more_search
    if factor == 1 or k == WARM:
        return [(list(questions), settings)]
    shares = outcomes(job, k)
    hard = [problem for problem in questions if shares.get(problem.id, 1.0) < RELIABLE]
    names = {problem.id for problem in hard}
    usual = [problem for problem in questions if problem.id not in names]
    return [(group, share) for group, share in ((usual, settings), (hard, more(settings, factor))) if group]


def more(settings: SearchSettings, factor: float) -> SearchSettings:
    """The settings with `factor` times the iterations, the samples and the budgets."""
    counts = ("iterations", "samples", "budget_tokens", "budget_value_tokens")
    scaled = {name: round(factor * n) for name in counts if (n := getattr(settings, name)) is not None}
    if settings.budget_seconds is not None:
        scaled["budget_seconds"] = factor * settings.budget_seconds
    return settings.model_copy(update=scaled)


def outcomes(job: Job, k: int) -> dict[str, float]:
    """Questions of the rounds before k: the share of the finished leaves that was right when last searched.

    Where nothing finished it is 0. What an online training sampled counts likewise.
    """
    found: dict[str, float] = {}
    for folder in _rounds(job, k):
        if (labels := folder / "label" / LABELS).is_file():
            for record in read_rows(labels, TreeLabels):
                verdicts = [correct for correct in record.correct if correct is not None]
                found[record.id] = sum(verdicts) / len(verdicts) if verdicts else 0.0
        elif (rewards := folder / "policy" / REWARDS).is_file():
            latest = {record["id"]: record["rewards"] for record in read_jsonl(rewards, skip_torn=True)}
            found |= {name: sum(given) / len(given) for name, given in latest.items()}
    return found


def _rounds(job: Job, k: int) -> list[Path]:
    return [job.folder.path / f"round-{j}" for j in range(1, k)]


def inputs(job: Job, k: int) -> dict[str, Path]:
    """The stages that decide what round k searches."""
    if not identity(job.config):
        return {}
    folders = [(folder.name, folder / name) for folder in _rounds(job, k) for name in ("label", "policy")]
    return {f"outcomes of {name}": folder for name, folder in folders if (folder / "manifest.json").is_file()}


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a round searches; none where nothing is chosen."""
    chosen = config.curriculum
    skipped = {"skip_solved": True} if chosen.skip_solved else {}
    return skipped | ({"more_search": chosen.more_search} if chosen.more_search != 1 else {})


def should_stop(job: Job, k: int) -> bool:
    """Whether the last `patience` rounds were all worse than the best phase before them, on held-out questions."""
    patience = job.config.curriculum.patience
    if patience is None:
        return False
    measured, best = held_out(job.records), best_phase(job.records)
    if best is None or k not in measured:
        return False
    later = [measured[phase] < measured[best] for phase in sorted(measured) if phase > best]
    if len(later) < patience or not all(later[-patience:]):
        return False
    job.progress.say(
        f"held-out accuracy fell: {measured[k]:.1%} after round {k}, {measured[best]:.1%} after {phase_name(best)}; "
        f"no more rounds (curriculum.patience = {patience})"
    )
    return True
