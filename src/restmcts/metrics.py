"""How sure we are, and how good a value model is. numpy only.

Absent is `None`: a number that the data cannot give (no rows, one class, no spread) is None, never 0, and never a
warning.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Z95 = 1.959963984540054
"""two-sided 95 % point of the normal distribution"""

RESAMPLES = 10_000
_CHUNK = 2_000_000
"""entries drawn at a time, so that memory does not grow with the number of questions"""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


# ---------------------------------------------------------------- accuracies and their differences


def wilson(successes: int, n: int) -> Interval | None:
    """Wilson's 95 % interval of a share; None when n is 0. Raises ValueError unless 0 <= successes <= n."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: must lie between 0 and n")
    if n == 0:
        return None
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap_mean(
    values: ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """Percentile 95 % interval of the mean of `values`, drawing whole clusters with replacement.

    `clusters[i]` names what value i belongs to (the question it was measured on): one question met under several
    seeds is one cluster, since its results are not independent. None with fewer than two clusters.
    """
    array = _floats(values)
    if len(array) != len(clusters):
        raise ValueError(f"{len(array)} values and {len(clusters)} cluster names: must be as many")
    sums, counts = _cluster_sums(array, clusters)
    k = len(sums)
    if k < 2:
        return None
    rng = np.random.default_rng(seed)
    means: list[Floats] = []
    left, rows = resamples, max(1, _CHUNK // k)
    while left > 0:
        drawn = rng.integers(0, k, size=(min(rows, left), k))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
        left -= len(drawn)
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(low), float(high))


def share(right: Sequence[bool], clusters: Sequence[Hashable]) -> tuple[float, Interval | None]:
    """The share of right answers and its 95 % interval; `clusters[i]` names the question of answer i.

    Where all answers agree there is nothing to draw differently, and a bootstrap would claim to be sure: the interval
    is then Wilson's, each question counted once. Raises ValueError without answers.
    """
    hits, n = sum(right), len(right)
    if 0 < hits < n:
        return hits / n, bootstrap_mean(np.asarray(right, dtype=np.float64), clusters)
    different = len(set(clusters))
    return hits / n, wilson(min(hits, different), different)


def sign_test(wins: int, losses: int) -> float | None:
    """Exact two-sided p of `wins` against `losses` under even odds (McNemar's exact test on discordant pairs).

    None when there is neither a win nor a loss.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"{wins} wins and {losses} losses: must not be negative")
    n, fewer = wins + losses, min(wins, losses)
    if n == 0:
        return None
    tail, term = 0, 1
    for k in range(fewer + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values of a family of tests, adjusted so that the chance of any false alarm among them is held (Holm 1979).

    A test without a p-value (None) found no difference at all: it counts in the family, and stays without.
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True, slots=True)
class Difference:
    """after − before on the same questions."""

    mean: float
    interval: Interval | None
    """clustered bootstrap, 95 %"""
    wins: int
    """questions that became better"""
    losses: int
    p: float | None
    """exact sign test over questions"""
    n: int
    """pairs compared"""

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and self.interval.excludes(0.0)


def paired_difference(
    before: Sequence[bool], after: Sequence[bool], questions: Sequence[Hashable], *, seed: int = 0
) -> Difference | None:
    """How much more often `after` is right than `before`, pair by pair; None without pairs.

    `questions[i]` names the question of pair i. Over several seeds the same question comes several times: it is one
    cluster of the bootstrap, and one win or loss (by the sign of its sum) of the sign test.
    """
    if not len(before) == len(after) == len(questions):
        raise ValueError(f"{len(before)} before, {len(after)} after, {len(questions)} questions: must be as many")
    if not len(before):
        return None
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    sums, _ = _cluster_sums(change, questions)
    wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
    interval = bootstrap_mean(change, questions, seed=seed)
    return Difference(float(change.mean()), interval, wins, losses, sign_test(wins, losses), len(change))


# ---------------------------------------------------------------- agreement of two series


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Linear correlation in [−1, 1]; None with fewer than two points or a series without spread."""
    a, b = _pair(x, y)
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    if norm <= 1e-12 * len(a):
        return None
    return min(1.0, max(-1.0, float(a @ b) / norm))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation, ties sharing their mean rank; None where `pearson` of the ranks is."""
    a, b = _pair(x, y)
    return pearson(ranks(a), ranks(b))


def ranks(x: ArrayLike) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    array = _floats(x)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    mean: Floats = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return mean


def auc(score: ArrayLike, right: ArrayLike) -> float | None:
    """The chance that a right item scores above a wrong one, ties counting half; None unless both kinds occur."""
    values = _floats(score)
    good = np.asarray(right, dtype=bool).reshape(-1)
    if len(values) != len(good):
        raise ValueError(f"{len(values)} scores and {len(good)} truths: must be as many")
    positives, negatives = int(good.sum()), int((~good).sum())
    if not positives or not negatives:
        return None
    won = float(ranks(values)[good].sum()) - positives * (positives + 1) / 2
    return won / (positives * negatives)


def auc_within(score: ArrayLike, right: ArrayLike, group: Sequence[Hashable]) -> tuple[float | None, int]:
    """Mean of `auc` over the groups that hold both kinds, every group weighing the same; and how many those are."""
    values = _floats(score)
    good = np.asarray(right, dtype=bool).reshape(-1)
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(group):
        members.setdefault(name, []).append(i)
    found = [a for rows in members.values() if (a := auc(values[rows], good[rows])) is not None]
    return (float(np.mean(found)) if found else None), len(found)


# ---------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions in [low, high), the last bin closed: how many, their mean, and the share that came true."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float


def reliability(predicted: ArrayLike, observed: ArrayLike, bins: int = 10) -> list[Bin]:
    """Bins of equal width over [0, 1]; empty ones, and predictions that are no numbers, are left out."""
    p, y = _pair(predicted, observed)
    p, y = p[np.isfinite(p)], y[np.isfinite(p)]
    index = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    found = []
    for b in range(bins):
        inside = index == b
        if inside.any():
            n = int(inside.sum())
            found.append(Bin(b / bins, (b + 1) / bins, n, float(p[inside].mean()), float(y[inside].mean())))
    return found


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: |predicted − observed| averaged over bins by size; None without any."""
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.predicted - b.observed) for b in bins) / n if n else None


# ---------------------------------------------------------------- value models


@dataclass(slots=True)
class ValuePoints:
    """What a value model said of labelled nodes, and what was true; lists of one length.

    `right` is r = 0 against r = 1 (None for a soft estimate between them), `correct` whether a finished leaf holds
    the right answer (None elsewhere), `tree` and `parent` tell which nodes compete with which.
    """

    predicted: list[float]
    value: list[float]
    right: list[bool | None]
    correct: list[bool | None]
    depth: list[int]
    tree: list[int]
    parent: list[int]

    @classmethod
    def empty(cls) -> ValuePoints:
        return cls([], [], [], [], [], [], [])

    def __len__(self) -> int:
        return len(self.predicted)


def value_quality(points: ValuePoints) -> dict[str, Any]:
    """How good the predictions are: error, agreement, ranking, calibration. Numbers that cannot be had are None."""
    p, v = _pair(points.predicted, points.value)
    error = p - v
    n = len(p)
    ranked = [i for i, right in enumerate(points.right) if right is not None]
    score, right = p[ranked], [bool(points.right[i]) for i in ranked]
    in_tree, trees = auc_within(score, right, [points.tree[i] for i in ranked])
    siblings, families = auc_within(score, right, [(points.tree[i], points.parent[i]) for i in ranked])
    leaves = [i for i, correct in enumerate(points.correct) if correct is not None]
    bins = reliability(p[leaves], [float(bool(points.correct[i])) for i in leaves])
    return {
        "nodes": n,
        "mae": float(np.abs(error).mean()) if n else None,
        "rmse": float(np.sqrt((error**2).mean())) if n else None,
        # Eq. 38; the slack keeps 0.3 - 0.2 inside
        "within_0.1": float((np.abs(error) <= 0.1 + 1e-9).mean()) if n else None,
        "pearson": pearson(p, v),
        "spearman": spearman(p, v),
        "auc": auc(score, right),
        "auc_in_tree": in_tree,
        "trees_ranked": trees,
        "auc_siblings": siblings,
        "families_ranked": families,
        "leaves": len(leaves),
        "auc_leaves": auc(p[leaves], [bool(points.correct[i]) for i in leaves]),
        "ece": calibration_error(bins),
        "reliability": [asdict(b) for b in bins],
        "by_depth": _by_depth(points, p, leaves),
        "curve": _curve(p, v, ranked, right),
        "error_by_depth": _error_by_depth(points, p, v),
    }


def _curve(predicted: Floats, value: Floats, ranked: list[int], right: list[bool]) -> list[dict[str, Any]]:
    """Calibration at all nodes: the mean label, and the share of right steps, of those predicted alike."""
    shares = {b.low: b.observed for b in reliability(predicted[ranked], np.asarray(right, dtype=np.float64))}
    return [
        {
            "low": b.low,
            "high": b.high,
            "n": b.n,
            "predicted": b.predicted,
            "value": b.observed,
            "right": shares.get(b.low),
        }
        for b in reliability(predicted, value)
    ]


def _error_by_depth(points: ValuePoints, predicted: Floats, value: Floats) -> list[dict[str, Any]]:
    """Prediction against label at all nodes, depth by depth; `auc` is that of right steps against wrong ones there."""
    depths = np.asarray(points.depth)
    found = []
    for depth in np.unique(depths):
        rows = np.flatnonzero(depths == depth)
        error = np.abs(predicted[rows] - value[rows])
        known = [i for i in rows.tolist() if points.right[i] is not None]
        found.append(
            {
                "depth": int(depth),
                "n": len(rows),
                "predicted": float(predicted[rows].mean()),
                "value": float(value[rows].mean()),
                "mae": float(error.mean()),
                "within_0.1": float((error <= 0.1 + 1e-9).mean()),
                "auc": auc(predicted[known], [bool(points.right[i]) for i in known]),
            }
        )
    return found


def _by_depth(points: ValuePoints, predicted: Floats, leaves: list[int]) -> list[dict[str, Any]]:
    """Mean prediction at finished leaves against the share of them that is right, depth by depth."""
    found = []
    for depth in sorted({points.depth[i] for i in leaves}):
        rows = [i for i in leaves if points.depth[i] == depth]
        truth = [float(bool(points.correct[i])) for i in rows]
        found.append(
            {
                "depth": depth,
                "n": len(rows),
                "predicted": float(predicted[rows].mean()),
                "observed": sum(truth) / len(truth),
                "ece": calibration_error(reliability(predicted[rows], truth)),
            }
        )
    return found


# ---------------------------------------------------------------- helpers


def _floats(x: ArrayLike) -> Floats:
    return np.asarray(x, dtype=np.float64).reshape(-1)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    a, b = _floats(x), _floats(y)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: must be as many")
    return a, b


def _cluster_sums(values: Floats, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sum and size of each cluster, in order of first appearance (so that the seed fixes the result)."""
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(c, len(index)) for c in clusters], dtype=np.int64)
    sums = np.bincount(codes, weights=values, minlength=len(index)).astype(np.float64)
    return sums, np.bincount(codes, minlength=len(index)).astype(np.float64)
