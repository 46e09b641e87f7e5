"""Results → tables for the screen and for compare.md, the plot, and the rows for other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restmcts.compare.answer import ROWS, Cost, Row
from restmcts.compare.plan import GREEDY, Plan
from restmcts.compare.plot import Line, Spot, chart
from restmcts.compare.results import Point, Results, Test
from restmcts.store import write_atomic, write_jsonl
from restmcts.tables import ABSENT, Table, count, duration, points, with_interval

MARKDOWN, PLOT, PARQUET, TESTS = "compare.md", "compare.svg", "rows.parquet", "tests.jsonl"
_AXES: dict[str, Callable[[Point], float | None]] = {
    "tokens generated for a question": lambda p: p.policy_tokens,
    "tokens generated and scored": lambda p: p.all_tokens,
    "seconds of the models' work": lambda p: p.seconds,
}


def write(out: Path, plan: Plan, results: Results, cost: Cost, about: dict[str, str]) -> list[Table]:
    """Write compare.md, compare.svg, the tests and the rows to `out`; returns the tables.

    rows.parquet needs pyarrow, which comes with `datasets`; without it, it is left out.
    """
    found = tables(plan, results, cost)
    conditions = Table("Conditions", ["", ""], [[name, value] for name, value in about.items()], words=True)
    text = "\n".join(table.markdown() for table in [*found, conditions])
    write_atomic(out / MARKDOWN, f"# Methods at equal budgets\n\n![accuracy against cost]({PLOT})\n\n{text}")
    write_atomic(out / PLOT, plot(plan, results))
    write_jsonl(out / TESTS, map(_test_record, results.tests))
    write_jsonl(out / ROWS, map(asdict, results.rows))
    if find_spec("pyarrow") is not None:
        write_parquet(out / PARQUET, results.rows)
    return found


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """The rows as Parquet, a column for each of their fields."""
    import pyarrow
    import pyarrow.parquet

    types = {"str": pyarrow.string(), "int": pyarrow.int64(), "bool": pyarrow.bool_()}
    schema = pyarrow.schema([(f.name, types[str(f.type).partition(" ")[0]]) for f in fields(Row)])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def _test_record(test: Test) -> dict[str, Any]:
    return {**asdict(test), "difference": asdict(test.difference), "certain": test.certain}


# ---------------------------------------------------------------- tables


def tables(plan: Plan, results: Results, cost: Cost) -> list[Table]:
    """Accuracy, differences and cost, a column for each budget."""
    found = [accuracy_table(plan, results), differences_table(plan, results), spent_table(plan, results)]
    return [*(table for table in found if table.rows or table.notes), study_table(results, cost)]


def budget_names(plan: Plan) -> list[str]:
    """Budgets as column heads: what they are worth in greedy answers, and in tokens."""
    return [f"{_times(budget / plan.greedy_tokens)} ({count(budget)})" for budget in plan.budgets]


def _times(ratio: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(ratio)))
    return f"{round(ratio, digits):g}×"


def accuracy_table(plan: Plan, results: Results) -> Table:
    table = Table("Accuracy at equal budgets", ["", *budget_names(plan)])
    greedy = results.point(GREEDY, None)
    if greedy is None:
        table.notes.append("No question has been answered by every arm yet.")
        return table
    for arm in plan.arms:
        found = [results.point(arm.name, budget) for budget in plan.budgets]
        table.rows.append([arm.name, *(with_interval(p.accuracy, p.interval) if p else ABSENT for p in found)])
    table.notes.append(
        f"Columns: most tokens that the policy may generate for a question, counted in greedy answers (one has "
        f"{plan.greedy_tokens:.1f} on average) and in tokens. {results.questions} questions, {len(plan.seeds)} "
        f"{'seeds' if len(plan.seeds) > 1 else 'seed'}; 95 % intervals: bootstrap over questions, all seeds of a "
        f"question together. A question without an answer counts as wrong. Of the greedy answers, "
        f"{with_interval(greedy.accuracy, greedy.interval)} are right."
    )
    if failed := sum(row.stop == "failed" for row in results.rows):
        table.notes.append(f"**{failed} searches failed: their models did not answer everything that was asked.**")
    return table


def differences_table(plan: Plan, results: Results) -> Table:
    table = Table("Differences in points, on the same questions", ["", *budget_names(plan)])
    if not results.tests:
        return table
    pairs = dict.fromkeys((test.before, test.after) for test in results.tests)
    by_cell = {(test.before, test.after, test.budget): test for test in results.tests}
    for before, after in pairs:
        cells = [_difference(by_cell.get((before, after, budget))) for budget in plan.budgets]
        table.rows.append([f"{after} − {before}", *cells])
    table.notes.append(
        "95 % paired bootstrap over questions. An asterisk marks what is certain: p < 0.05 in the exact sign test over "
        f"questions (with one seed: McNemar's exact test), after Holm's correction for all {len(results.tests)} "
        f"tests in this table. Every p is in {TESTS}."
    )
    return table


def _difference(test: Test | None) -> str:
    if test is None:
        return ABSENT
    return points(test.difference.mean, test.difference.interval) + (" *" if test.certain else "")


def spent_table(plan: Plan, results: Results) -> Table:
    table = Table("What a question took: tokens generated / scored / time / no answer", ["", *budget_names(plan)])
    for arm in plan.arms:
        found = [results.point(arm.name, budget) for budget in plan.budgets]
        table.rows.append([arm.name, *(_spent(point) if point else ABSENT for point in found)])
    table.notes.append(
        "Means over questions and seeds, measured, every search counted as if it had been alone. Time: its tokens at "
        "the seconds of work that a token took each model in this study, many searches being open at once. No answer: "
        "the share of the searches that found none."
    )
    return table


def _spent(point: Point) -> str:
    tokens = f"{count(point.policy_tokens)} / {count(point.value_tokens)}"
    return f"{tokens} / {_brief(point.seconds)} / {100 * point.unanswered:.0f} %"


def _brief(seconds: float | None) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds is not None and seconds < 0.9995 else duration(seconds)


def study_table(results: Results, cost: Cost) -> Table:
    """What all searches took together, and what was really asked for."""
    table = Table("The study", ["", "tokens generated", "tokens scored"])
    rows = [row for row in results.rows if row.budget is not None]
    policy, value = sum(row.policy_tokens for row in rows), sum(row.value_tokens for row in rows)
    table.rows = [
        ["the searches, each counted alone", count(policy), count(value)],
        ["really asked for", count(cost.policy_tokens), count(cost.value_tokens)],
        ["time a token", _rate(cost.policy_rate), _rate(cost.value_rate)],
    ]
    table.notes.append(
        f"Equal requests of several searches were asked for once. The searches took {duration(cost.seconds)} in all."
    )
    return table


def _rate(seconds: float | None) -> str:
    return ABSENT if seconds is None else f"{1e6 * seconds:,.0f} µs"


# ---------------------------------------------------------------- the plot


def plot(plan: Plan, results: Results) -> str:
    """Accuracy against tokens generated, all tokens and seconds (cf. the paper's Fig. 2), as an SVG."""
    greedy = results.point(GREEDY, None)
    lines = [Line(GREEDY, [_spots([greedy], axis) for axis in _AXES.values()], reference=True)] if greedy else []
    for arm in plan.arms:
        found = [p for budget in plan.budgets if (p := results.point(arm.name, budget)) is not None]
        lines.append(Line(arm.name, [_spots(found, axis) for axis in _AXES.values()]))
    return chart("Accuracy against cost, 95 % intervals", list(_AXES), lines, "accuracy")


def _spots(found: Sequence[Point], axis: Callable[[Point], float | None]) -> list[Spot]:
    return [
        (x, p.accuracy, *(p.interval or (p.accuracy, p.accuracy)))
        for p in found
        if (x := axis(p)) is not None and x > 0
    ]
