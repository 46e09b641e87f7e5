"""What a value model is worth for choosing among N samples: Best-of-N and votes (the paper's table of verifiers).

The value of a sample is made of those of its steps: the last one, which is how an outcome reward model judges, the
least, the mean, or the product. Best-of-N answers with the sample of the highest value; a weighted vote adds up the
values of equal answers; self-consistency counts them. One pool of samples serves all N: what is given is the accuracy
to be expected when N of them are drawn without replacement, exactly for Best-of-N, and over random draws for votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from restmcts.metrics import Floats, Interval, bootstrap_mean, wilson
from restmcts.search.nodes import path_value
from restmcts.search.settings import StepAggregation
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import Tree

OF_STEPS: tuple[StepAggregation, ...] = get_args(StepAggregation)
"""how the values of its steps make that of a sample (see `search.nodes.path_value`)"""
SAMPLED = frozenset({"cot", "sample", "best_of_n", "weighted_vote"})
"""methods whose leaves are independent samples"""
RULES = ("majority", *(f"{how} {of}" for how in ("best", "vote") for of in OF_STEPS), "any")
MOST = 256
_DRAWS = 100
_LEAST = 1e-6
"""what a sample of value 0 counts in a vote: it is still an answer"""


@dataclass(frozen=True, slots=True)
class Pool:
    """The samples of one question, those without an answer included (`key` −1); one entry each."""

    id: str
    key: NDArray[np.int64]
    """which answer it gives; equal answers have equal keys"""
    right: NDArray[np.bool_]
    values: dict[str, Floats]
    """by `OF_STEPS`"""

    def __len__(self) -> int:
        return len(self.key)


def pool(tree: Tree, correct: Sequence[bool | None], task: Task) -> Pool | None:
    """The samples in a scored tree; None where its method makes none, or where a value is missing."""
    if tree.method not in SAMPLED:
        return None
    keys: dict[str, int] = {}
    rows: list[tuple[int, bool, list[float], int]] = []
    inner = set(tree.parent)
    for node in range(1, len(tree)):
        if node in inner:
            continue
        values, key = [0.0] * len(OF_STEPS), -1
        if tree.status[node] == "finished":
            if any(tree.raw_value[n] is None for n in tree.nodes_to(node)):
                return None
            values = [path_value(tree, node, of) or 0.0 for of in OF_STEPS]
            key = keys.setdefault(task.key(tree.answer[node] or ""), len(keys))
        rows.append((key, bool(correct[node]), values, tree.copies[node]))
    copies = [row[3] for row in rows]
    return Pool(
        tree.problem.id,
        np.repeat(np.array([row[0] for row in rows], dtype=np.int64), copies),
        np.repeat(np.array([row[1] for row in rows], dtype=bool), copies),
        {of: np.repeat(np.array([row[2][i] for row in rows], dtype=float), copies) for i, of in enumerate(OF_STEPS)},
    )


def sizes(pools: Sequence[Pool], most: int = MOST) -> list[int]:
    """N = 1, 2, 4, … up to the largest pool."""
    largest = min(most, max(map(len, pools), default=0))
    return [1 << k for k in range(largest.bit_length()) if 1 << k <= largest]


def expected(samples: Pool, numbers: Sequence[int], seed: int = 0) -> dict[str, list[float]]:
    """The chance of a right answer by each of `RULES` for each N; a pool with fewer samples gives all it has."""
    drawn = [min(number, len(samples)) for number in numbers]
    rng = np.random.default_rng(derive_seed(seed, samples.id))
    orders = np.argsort(rng.random((_DRAWS, len(samples))), axis=1)
    found: dict[str, list[float]] = {}
    for rule in RULES:
        how, _, of = rule.partition(" ")
        if how in ("any", "best"):
            value = samples.values[of] if of else samples.right.astype(np.float64)
            found[rule] = best_of(value, samples.right, samples.key >= 0, drawn)
        else:
            found[rule] = _votes(samples, samples.values[of] if of else np.ones(len(samples)), orders, drawn)
    return found


def best_of(value: Floats, right: NDArray[np.bool_], answered: NDArray[np.bool_], drawn: Sequence[int]) -> list[float]:
    """The chance that the highest-valued of n samples, drawn without replacement, is right, for each n of `drawn`.

    With k samples above a value and g at it, of M, one of the g is the best of n in C(M−k, n) − C(M−k−g, n) of the
    C(M, n) draws; ties fall evenly. A sample without an answer is chosen only where there is none with one, and is
    wrong.
    """
    levels, at, ties = np.unique(-value[answered], return_inverse=True, return_counts=True)
    share = np.bincount(at.reshape(-1), right[answered], minlength=len(levels)) / ties
    left = len(value) - np.concatenate([[0], np.cumsum(ties)])
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, len(value) + 1)))])  # logarithms
    chances = []
    for n in drawn:
        missed = np.zeros(len(left))  # how probably all of the n are among those `left`
        enough = left >= n
        ways = factorial[left[enough]] - factorial[left[enough] - n] - factorial[-1] + factorial[len(value) - n]
        missed[enough] = np.exp(ways)
        chances.append(float((missed[:-1] - missed[1:]) @ share))
    return chances


def _votes(samples: Pool, value: Floats, orders: NDArray[np.int64], drawn: Sequence[int]) -> list[float]:
    """How often the answer with the most weight is right, among the first n of each order; answers that tie share."""
    answers = int(samples.key.max(initial=-1)) + 1
    if not answers:
        return [0.0] * len(drawn)
    right = np.zeros(answers)
    right[samples.key[samples.right]] = 1.0
    weights = np.maximum(value, _LEAST)
    rows = np.arange(len(orders))[:, None] * (answers + 1)  # the first column is for those without an answer
    votes = np.zeros(len(orders) * (answers + 1))
    chances, counted = [], 0
    for n in drawn:
        new = orders[:, counted:n]
        votes += np.bincount((rows + samples.key[new] + 1).ravel(), weights[new].ravel(), minlength=len(votes))
        counted = n
        held = votes.reshape(len(orders), -1)[:, 1:].round(9)
        most = held.max(axis=1, keepdims=True)
        wins = (held == most) & (most > 0)
        chances.append(float(((wins @ right) / np.maximum(wins.sum(axis=1), 1)).mean()))
    return chances


def table(pools: Sequence[Pool], seed: int = 0) -> dict[str, Any]:
    """Accuracy over all questions by rule and N, with 95 % intervals over questions, JSON-ready.

    `rows` holds what each question contributes.
    """
    numbers = sizes(pools)
    by_question = {samples.id: expected(samples, numbers, seed) for samples in pools}
    ids = list(by_question)
    rules = {}
    for rule in RULES:
        columns = [[by_question[name][rule][i] for name in ids] for i in range(len(numbers))]
        rules[rule] = [
            {"n": n, "accuracy": float(np.mean(column)), "interval": _interval(column, ids)}
            for n, column in zip(numbers, columns, strict=True)
        ]
    return {
        "questions": len(pools),
        "samples": int(sum(map(len, pools))),
        "n": numbers,
        "rules": rules,
        "rows": [{"id": name, **found} for name, found in by_question.items()],
    }


def _interval(chances: Sequence[float], ids: Sequence[str]) -> Interval | None:
    """Over questions; where all are answered alike there is nothing to draw differently, and Wilson's is given."""
    mean = math.fsum(chances) / len(chances)
    return bootstrap_mean(chances, ids, resamples=2000) if 0 < mean < 1 else wilson(round(mean * len(ids)), len(ids))
