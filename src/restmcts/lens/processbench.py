"""ProcessBench (Zheng et al., arXiv 2412.06559): does a value model see which step of a solution goes wrong first?

Of each solution people marked the first wrong step (−1: there is none). The model's is the first step whose score lies
below a threshold. F1 is the harmonic mean of two accuracies: on the solutions with a wrong step, where it must be that
very step, and on those without, where there must be none. A step's score is read in two ways:

- `value`: v of the solution up to the step, as for a model that says how probably all is right so far;
- `gain`: by how much the step raises v, v_k − v_{k−1} with v_0 = 0. A value model after ReST-MCTS* says how far along
  a solution is (Eq. 1), so its values begin low however right the steps; a wrong step is one that lowers them (Eq. 2).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from restmcts.errors import ConfigError, TaskError
from restmcts.metrics import RESAMPLES, Floats, Interval
from restmcts.seeds import derive_seed
from restmcts.tasks.sets import Named, QuestionSet
from restmcts.tasks.sources import Row, read_rows
from restmcts.types import Problem, Step, Tree

Rule = Literal["value", "gain"]
USUAL: dict[Rule, float] = {"value": 0.5, "gain": 0.0}
"""thresholds that need no choosing: more likely wrong than right; a step that lowers the value"""
HALVES = "halves"
_SET = QuestionSet("solutions with their first wrong step", "math", "Qwen/ProcessBench", "*", "Apache-2.0")
_NAME = re.compile(r"(?:Qwen/)?processbench(?:@(\w+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A solution, cut into steps; `label` is the index of its first wrong step, −1 if all are right."""

    id: str
    subset: str
    question: str
    steps: tuple[str, ...]
    label: int

    def tree(self) -> Tree:
        """The solution as a tree of one branch."""
        tree = Tree(Problem(self.id, self.question), "given", 0)
        for node, text in enumerate(self.steps):
            tree.add(node, Step(text), status="finished" if node == len(self.steps) - 1 else "open")
        return tree


# ---------------------------------------------------------------- reading


def load_samples(sources: Sequence[str], *, limit: int | None = None, seed: int = 0) -> list[Sample]:
    """The samples of files (as question sets, see `tasks.sources`), of the hub's data set, or of `processbench`.

    `processbench`, or `processbench@gsm8k` for one subset, is the user's copy in RESTMCTS_DATA, else the hub's. A row
    has `problem` (or `question`), `steps` and `label`; its subset is its `subset` or `subject`, else what its id begins
    with (gsm8k-17). With `limit`, a seeded draw of so many samples: rows come in order of their solutions' quality.
    Raises TaskError naming the place of what is wrong.
    """
    samples: dict[str, Sample] = {}
    for source in sources:
        for where, row in rows_of(source):
            sample = sample_of(row, where)
            if sample.id in samples:
                raise TaskError(f"{where}: id {sample.id!r} is there already; ids must differ")
            samples[sample.id] = sample
    if not samples:
        raise TaskError(f"{', '.join(sources)}: no samples; give rows with problem, steps and label")
    found = list(samples.values())
    if limit is not None and limit < len(found):
        chosen = set(random.Random(derive_seed(seed, "processbench")).sample(range(len(found)), limit))
        found = [sample for i, sample in enumerate(found) if i in chosen]
    return found


def rows_of(source: str) -> Iterator[Row]:
    """The rows of one source of `load_samples`, with their places. Raises TaskError."""
    name = _NAME.fullmatch(source)
    if name is None or Path(source).exists():
        return read_rows(source)
    return Named("processbench", _SET, None, name[1], None).rows()


def sample_of(row: Mapping[str, Any], where: str) -> Sample:
    """The sample that a row holds. Raises TaskError naming its place."""
    question = next((row[name] for name in ("problem", "question") if row.get(name)), None)
    steps, label, name = row.get("steps"), row.get("label"), str(row.get("id") or where)
    if not isinstance(question, str):
        raise TaskError(f"{where}: no problem; a row of ProcessBench has problem, steps and label")
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, str) for step in steps):
        raise TaskError(f"{where}: steps must be a list of texts, at least one")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise TaskError(f"{where}: label = {label!r}: it is the index of the first wrong of {len(steps)} steps, or -1")
    subset = row.get("subset") or row.get("subject") or name.rpartition("-")[0] or "all"
    return Sample(name, str(subset), question, tuple(steps), label)


# ---------------------------------------------------------------- scores of steps and what they say


def step_scores(values: Sequence[float | None], rule: Rule) -> list[float] | None:
    """The score of every step by `rule`; None where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known if rule == "value" else [after - before for before, after in pairwise([0.0, *known])]


def first_error(scores: Sequence[float], threshold: float) -> int:
    """The index of the first step that scores below `threshold`, −1 if none does."""
    return next((k for k, score in enumerate(scores) if score < threshold), -1)


@dataclass(frozen=True, slots=True)
class F1:
    """How often the first wrong step was found (`wrong`), and seen that there is none (`right`), and their F1."""

    samples: int
    wrong: float | None
    right: float | None
    f1: float | None
    """None unless there are solutions of both kinds"""
    interval: Interval | None
    """95 %, of the two shares' Jeffreys posteriors, the threshold held"""


def measure(
    samples: Sequence[Sample], values: Mapping[str, Sequence[float | None]], rule: Rule, threshold: str = HALVES
) -> dict[str, Any]:
    """F1 of every subset and their mean, JSON-ready, with the prediction for every sample.

    `threshold` is a number; the name of a subset, on which the best one is chosen, as ProcessBench's authors do with
    gsm8k; or `halves`: the samples fall into two halves by their ids, and each is judged by the threshold that is best
    for the other. A solution that could not be scored counts as not seen through. Raises ConfigError for a name that
    is no subset.
    """
    scores = {sample.id: step_scores(values[sample.id], rule) for sample in samples}
    chosen = _thresholds(samples, scores, threshold)
    predicted = {
        sample.id: None if (own := scores[sample.id]) is None else first_error(own, chosen[_half(sample)])
        for sample in samples
    }
    found: dict[str, F1] = {}
    draws: list[Floats] = []
    for subset in dict.fromkeys(sample.subset for sample in samples):
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for sample in samples:
            if sample.subset == subset:
                hits[sample.label >= 0].append(predicted[sample.id] == sample.label)
        found[subset], drawn = _f1(hits[True], hits[False])
        if drawn is not None:
            draws.append(drawn)
    known = [result.f1 for result in found.values() if result.f1 is not None]
    return {
        "rule": rule,
        "threshold": threshold,
        "thresholds": sorted(set(chosen)),
        "subsets": {subset: asdict(result) for subset, result in found.items()},
        "average": sum(known) / len(known) if known else None,
        "average_interval": _interval(np.mean(draws, axis=0)) if draws else None,
        "unscored": sum(own is None for own in scores.values()),
        "predicted": predicted,
    }


def _half(sample: Sample) -> int:
    return derive_seed("processbench", sample.id) % 2


def check_threshold(samples: Sequence[Sample], threshold: str) -> None:
    """Raise ConfigError unless `threshold` is a number, a subset of the samples, or `halves`."""
    subsets = dict.fromkeys(sample.subset for sample in samples)
    try:
        known = threshold == HALVES or threshold in subsets or math.isfinite(float(threshold))
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            f"--threshold {threshold!r} is neither a number nor a subset ({', '.join(subsets)}) nor {HALVES!r}"
        )


def _thresholds(
    samples: Sequence[Sample], scores: Mapping[str, list[float] | None], threshold: str
) -> tuple[float, float]:
    """The threshold for each half of the samples."""
    check_threshold(samples, threshold)
    if threshold == HALVES:
        halves = [[sample for sample in samples if _half(sample) == half] for half in (0, 1)]
        return best_threshold(halves[1], scores), best_threshold(halves[0], scores)
    tuned = [sample for sample in samples if sample.subset == threshold]
    best = best_threshold(tuned, scores) if tuned else float(threshold)
    return best, best


def best_threshold(samples: Sequence[Sample], scores: Mapping[str, list[float] | None]) -> float:
    """The threshold with the highest F1 on `samples`, the lowest of equals; 0 where there are not both kinds.

    A wrong step e is found when s_e < τ ≤ min(s_0 … s_{e−1}), a right solution passes when τ ≤ min(s): F1 changes only
    at these numbers, and the middle between two of them is taken.
    """
    begins, ends, passes, kinds = [], [], [], [0, 0]
    for sample in samples:
        own = scores[sample.id]
        kinds[sample.label < 0] += 1
        if own is None:
            continue
        if sample.label < 0:
            passes.append(min(own))
        elif own[sample.label] < (before := min(own[: sample.label], default=float("inf"))):
            begins.append(own[sample.label])
            ends.append(before)
    corners = np.unique([x for x in (*begins, *ends, *passes) if np.isfinite(x)])
    if not len(corners) or not all(kinds):
        return 0.0
    tried = np.concatenate([corners[:1], (corners[:-1] + corners[1:]) / 2, corners[-1:] + 1e-9])
    wrong = (_below(begins, tried) - _below(ends, tried)) / kinds[0]
    right = (len(passes) - _below(passes, tried)) / kinds[1]
    return float(tried[int(np.argmax(_harmonic(wrong, right)))])


def _below(numbers: Sequence[float], thresholds: Floats) -> Floats:
    """How many of `numbers` lie below each threshold."""
    return np.searchsorted(np.sort(np.asarray(numbers, dtype=np.float64)), thresholds, side="left").astype(np.float64)


def _harmonic(a: Floats, b: Floats) -> Floats:
    mean: Floats = 2 * a * b / np.maximum(a + b, 1e-300)
    return mean


def _f1(wrong: Sequence[bool], right: Sequence[bool]) -> tuple[F1, Floats | None]:
    """F1 with its interval, and draws of it: of the two shares, each by its hits and misses (Jeffreys prior)."""
    if not wrong or not right:
        known, other = (sum(hits) / len(hits) if hits else None for hits in (wrong, right))
        return F1(len(wrong) + len(right), known, other, None, None), None
    a, b = sum(wrong) / len(wrong), sum(right) / len(right)
    rng = np.random.default_rng(0)
    shares = [rng.beta(sum(hits) + 0.5, len(hits) - sum(hits) + 0.5, RESAMPLES) for hits in (wrong, right)]
    drawn = _harmonic(*shares)
    f1 = float(_harmonic(np.array(a), np.array(b)))
    return F1(len(wrong) + len(right), a, b, f1, _interval(drawn)), drawn


def _interval(drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), float(high))
