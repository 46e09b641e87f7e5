"""Rows → how often each arm is right at each budget, what that costs, and which arms differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from restmcts.compare.answer import Cost, Row
from restmcts.compare.plan import GREEDY, Plan
from restmcts.metrics import Difference, Interval, holm, paired_difference, share


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one budget, over all questions and seeds."""

    method: str
    budget: int | None
    accuracy: float
    interval: Interval | None
    """95 %, bootstrap over questions, all seeds of a question together"""
    policy_tokens: float
    """mean for a question, as are the others"""
    value_tokens: float
    seconds: float | None
    """of the engines' work, at the rates of this study; None where a rate is not known"""
    unanswered: float
    """share of the answers that are none"""

    @property
    def all_tokens(self) -> float:
        return self.policy_tokens + self.value_tokens


@dataclass(frozen=True, slots=True)
class Test:
    """after − before at one budget, on the same questions under the same seeds."""

    before: str
    after: str
    budget: int
    difference: Difference
    p_holm: float | None
    """`difference.p`, adjusted for all tests of the comparison (Holm)"""

    @property
    def certain(self) -> bool:
        return self.p_holm is not None and self.p_holm < 0.05


@dataclass(frozen=True, slots=True)
class Results:
    """What a comparison found, on the questions that every arm has answered."""

    points: list[Point]
    tests: list[Test]
    questions: int
    rows: list[Row]
    """those that the numbers rest on"""

    def point(self, method: str, budget: int | None) -> Point | None:
        return next((p for p in self.points if (p.method, p.budget) == (method, budget)), None)


def evaluate(plan: Plan, rows: Iterable[Row], cost: Cost, baseline: str | None = None) -> Results:
    """The results of `plan` on the questions of which all rows are there, greedy ones included.

    Every arm is tested against `baseline`, or against each of those before it where there is none.
    """
    by_key = {row.key: row for row in rows}
    usual = sorted({row.seed for row in by_key.values() if row.budget is None})  # several, where runs are pooled
    cells = [(GREEDY, 0), *((arm.name, budget) for arm in plan.arms for budget in plan.budgets)]
    seeds = {(method, budget): plan.seeds if budget else usual or plan.seeds[:1] for method, budget in cells}
    complete = [
        problem.id
        for problem in plan.problems
        if all((problem.id, *cell, seed) in by_key for cell in cells for seed in seeds[cell])
    ]
    groups = {cell: [by_key[id_, *cell, seed] for id_ in complete for seed in seeds[cell]] for cell in cells}
    points = [_point(group, cost) for group in groups.values() if group]
    kept = [row for group in groups.values() for row in group]
    return Results(points, _tests(plan, groups, baseline) if complete else [], len(complete), kept)


def _point(rows: Sequence[Row], cost: Cost) -> Point:
    accuracy, interval = share([row.correct for row in rows], [row.id for row in rows])
    policy, value = fmean(row.policy_tokens for row in rows), fmean(row.value_tokens for row in rows)
    return Point(
        method=rows[0].method,
        budget=rows[0].budget,
        accuracy=accuracy,
        interval=interval,
        policy_tokens=policy,
        value_tokens=value,
        seconds=cost.seconds_for(policy, value),
        unanswered=fmean(row.answer is None for row in rows),
    )


def _tests(plan: Plan, groups: Mapping[tuple[str, int], list[Row]], baseline: str | None) -> list[Test]:
    names = [arm.name for arm in plan.arms]
    if baseline is None:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(baseline, name) for name in names if name != baseline]
    found: list[tuple[str, str, int, Difference]] = []
    for before, after in pairs:
        for budget in plan.budgets:
            old, new = groups[(GREEDY, 0) if before == GREEDY else (before, budget)], groups[after, budget]
            times = len(new) // len(old)  # a greedy answer is the same under every seed
            difference = paired_difference(
                [row.correct for row in old for _ in range(times)],
                [row.correct for row in new],
                [row.id for row in new],
            )
            if difference is not None:
                found.append((before, after, budget, difference))
    adjusted = holm([difference.p for *_, difference in found])
    return [Test(*facts, p_holm) for facts, p_holm in zip(found, adjusted, strict=True)]
