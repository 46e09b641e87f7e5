"""What a value model is worth for choosing among N samples: Best-of-N and votes (the paper's table of verifiers).

The value of a sample is made of those of its steps: the last one, which is how an outcome reward model judges, the
least, the mean, or the product. Best-of-N answers with the sample of the highest value; a weighted vote adds up the
values of equal answers; self-consistency counts them. One pool of samples serves all N: what is given is the accuracy
to be expected when N of them are drawn without replacement, exactly for Best-of-N, and over random draws for votes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restmcts.metrics import Floats, bootstrap_mean
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import Tree

OF_STEPS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[-1],
    "min": min,
    "mean": lambda values: math.fsum(values) / len(values),
    "product": math.prod,
}
"""how the values of its steps make that of a sample"""
RULES = ("majority", *(f"{how} {of}" for how in ("best", "vote") for of in OF_STEPS), "any")
MOST = 256
_DRAWS = 100
_LEAST = 1e-12
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


def pool(tree: Tree, values: Sequence[float | None], correct: Sequence[bool | None], task: Task) -> Pool | None:
    """The samples in a tree of the method `sample`, with the values of its nodes; None where a value is missing."""
    keys: dict[str, int] = {}
    rows: list[tuple[int, bool, list[float], int]] = []
    inner = set(tree.parent)
    for node in range(1, len(tree)):
        if node in inner:
            continue
        steps, key = [0.0], -1
        if tree.status[node] == "finished":
            known = [v for n in tree.nodes_to(node) if (v := values[n]) is not None]
            if len(known) < len(tree.nodes_to(node)):
                return None
            steps, key = known, keys.setdefault(task.key(tree.answer[node] or ""), len(keys))
        rows.append((key, bool(correct[node]), steps, tree.copies[node]))
    copies = [row[3] for row in rows]
    return Pool(
        tree.problem.id,
        np.repeat(np.array([row[0] for row in rows], dtype=np.int64), copies),
        np.repeat(np.array([row[1] for row in rows], dtype=bool), copies),
        {
            of: np.repeat(np.array([make(row[2]) for row in rows], dtype=np.float64), copies)
            for of, make in OF_STEPS.items()
        },
    )


def sizes(pools: Sequence[Pool], most: int = MOST) -> list[int]:
    """N = 1, 2, 4, … up to the largest pool."""
    largest = min(most, max(map(len, pools), default=0))
    return [1 << k for k in range(largest.bit_length()) if 1 << k <= largest]


def expected(samples: Pool, numbers: Sequence[int], seed: int = 0) -> dict[str, list[float]]:
    """The chance of a right answer by each of `RULES` for each N; a pool with fewer samples gives all it has."""
    found: dict[str, list[float]] = {rule: [] for rule in RULES}
    rng = np.random.default_rng(derive_seed(seed, samples.id))
    orders = np.argsort(rng.random((_DRAWS, len(samples))), axis=1)
    for number in numbers:
        n = min(number, len(samples))
        drawn = orders[: 1 if n == len(samples) else None, :n]
        for rule in RULES:
            how, _, of = rule.partition(" ")
            if how == "any":
                chance = best_of(samples.right.astype(np.float64), samples.right, samples.key >= 0, n)
            elif how == "best":
                chance = best_of(samples.values[of], samples.right, samples.key >= 0, n)
            else:
                weights = samples.values[of] if of else np.ones(len(samples))
                chance = _vote(samples, np.maximum(weights, _LEAST), drawn)
            found[rule].append(chance)
    return found


def best_of(value: Floats, right: NDArray[np.bool_], answered: NDArray[np.bool_], n: int) -> float:
    """The chance that the highest-valued of `n` samples, drawn without replacement, is right; ties fall evenly.

    With k samples above a value and g at it, of M, one of the g is the best of n in C(M−k, n) − C(M−k−g, n) of the
    C(M, n) draws. A sample without an answer is chosen only where there is none with one, and is wrong.
    """
    total, left, chance = len(value), len(value), 0.0
    for level in np.unique(value[answered])[::-1]:
        at = answered & (value == level)
        ties = int(at.sum())
        share = (math.comb(left, n) - math.comb(left - ties, n)) / math.comb(total, n)
        chance += share * float(right[at].mean())
        left -= ties
    return chance


def _vote(samples: Pool, weights: Floats, drawn: NDArray[np.int64]) -> float:
    """How often the answer with the most weight is right; answers that tie share the win."""
    answers = int(samples.key.max(initial=-1)) + 1
    if not answers:
        return 0.0
    right = np.zeros(answers)
    right[samples.key[samples.right]] = 1.0
    rows = np.arange(len(drawn))[:, None] * (answers + 1)
    cells = (rows + samples.key[drawn] + 1).ravel()  # the first column is for those without an answer
    sums = np.bincount(cells, weights[drawn].ravel(), minlength=len(drawn) * (answers + 1))
    votes = sums.reshape(len(drawn), -1)[:, 1:].round(9)
    most = votes.max(axis=1, keepdims=True)
    wins = (votes == most) & (most > 0)
    return float(((wins @ right) / np.maximum(wins.sum(axis=1), 1)).mean())


def table(pools: Sequence[Pool], seed: int = 0) -> dict[str, Any]:
    """Accuracy over all questions by rule and N, with 95 % bootstrap intervals over questions, JSON-ready.

    `rows` holds what each question contributes.
    """
    numbers = sizes(pools)
    by_question = {samples.id: expected(samples, numbers, seed) for samples in pools}
    ids = list(by_question)
    rules = {}
    for rule in RULES:
        columns = [[by_question[name][rule][i] for name in ids] for i in range(len(numbers))]
        rules[rule] = [
            {"n": n, "accuracy": float(np.mean(column)), "interval": bootstrap_mean(column, ids, resamples=2000)}
            for n, column in zip(numbers, columns, strict=True)
        ]
    return {
        "questions": len(pools),
        "samples": int(sum(map(len, pools))),
        "n": numbers,
        "rules": rules,
        "rows": [{"id": name, **found} for name, found in by_question.items()],
    }
