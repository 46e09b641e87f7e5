"""Stored results become tables: the right numbers, honest flags, several seeds pooled."""

from __future__ import annotations

import io
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from restmcts import findings, report, results, tables
from restmcts.errors import StoreError
from restmcts.evaluate import Row, read_rows
from restmcts.metrics import ValuePoints, value_quality
from restmcts.results import BASE, WARM
from restmcts.store import read_jsonl, write_jsonl
from restmcts.types import Usage

USAGE = asdict(Usage(1000, 5000, 4000, 700, 90, 12.5))
SHARE = {(BASE, "greedy"): 0.1, (WARM, "greedy"): 0.3, (1, "greedy"): 0.4, (WARM, "search"): 0.5, (1, "search"): 0.7}


def row(i: int, mode: str, correct: bool) -> Row:
    return Row(f"q{i}", mode, "1", "1", correct, 40, 200, 150, 30, 1.5, 9, 3, "done")


def record(stage: str, kind: str, phase: int, mode: str | None = None, **metrics: Any) -> dict[str, Any]:
    usage = USAGE if kind in ("search", "evaluate") else None
    return {
        "stage": stage, "kind": kind, "phase": phase, "mode": mode, "seconds": 61.0, "usage": usage, "metrics": metrics
    }  # fmt: skip


def make_run(out: Path, seed: int, n: int = 200) -> Path:
    """A run folder with made-up rows: question i is solved by a method iff its difficulty is below the share."""
    rng = random.Random(seed)
    points = ValuePoints.empty()
    for i in range(60):
        right = i % 2 == 0
        for column, x in zip(
            (points.predicted, points.value, points.right, points.correct, points.depth, points.tree, points.parent),
            (rng.random() * 0.5 + 0.5 * right, float(right), right, right if i % 3 else None, i % 4, i // 6, 0),
            strict=True,
        ):
            column.append(x)
    facts = {"policy": "embedded", "data": "generated", "train": 50, "heldout": n, "seed": seed, "cpus": 2}
    records = [record("data", "data", WARM, **facts)]
    for (phase, mode), share in SHARE.items():
        stage = f"{'base' if phase < 0 else f'round-{phase}'}/evaluate/{mode}"
        rows = [row(i, mode, (i * 7919 % n) / n + rng.uniform(-0.05, 0.05) < share) for i in range(n)]
        write_jsonl(out / stage / "rows.jsonl", map(asdict, rows))
        quality = value_quality(points) if mode == "search" else None
        records.append(record(stage, "evaluate", phase, mode, quality=quality))
    records += [
        record("round-1/search", "search", 1, questions=50, nodes=900, stops={"iterations": 50}),
        record("round-1/label", "label", 1, solved=20, reached=30, finished=200, right_traces=60),
        record("round-1/policy", "policy", 1, rows=60, loss_first=1.5, loss_last=0.5),
        record("round-1/value", "value", 1, rows=200, loss_first=0.2, loss_last=0.1),
    ]
    write_jsonl(out / "metrics.jsonl", records)
    write_jsonl(out / "data" / "heldout.jsonl", ({"id": f"q{i}", "question": f"question {i}"} for i in range(n)))
    return out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", 0)


def test_accuracies_and_differences_are_those_of_the_rows(run: Path):
    loaded = results.load_run(run)
    rows = loaded.rows[1, "greedy"]
    share, interval, n = results.accuracy([loaded], 1, "greedy")
    assert n == 200
    assert share == sum(r.correct for r in rows) / 200
    assert interval.low < share < interval.high
    gain = results.difference([loaded], (WARM, "greedy"), (1, "greedy"))
    before = sum(r.correct for r in loaded.rows[WARM, "greedy"]) / 200
    assert gain.mean == pytest.approx(share - before)
    assert gain.certain


def test_every_comparison_is_made(run: Path):
    found = results.comparisons([results.load_run(run)])
    assert found == [
        ((BASE, "greedy"), (WARM, "greedy")),
        ((WARM, "greedy"), (1, "greedy")),
        ((BASE, "greedy"), (1, "greedy")),
        ((WARM, "search"), (1, "search")),
        ((WARM, "greedy"), (WARM, "search")),
        ((1, "greedy"), (1, "search")),
    ]


def test_report_is_written_and_shown(run: Path):
    screen = io.StringIO()
    path = report.report(run, Console(file=screen, width=200))
    text = path.read_text(encoding="utf-8")
    for wanted in ("Held-out accuracy", "| base model |", "round 1: search − greedy", "AUC in tree", "Calibration",
                   "round-1/policy", "restmcts solve", "CPU cores", "1 min 01 s"):  # fmt: skip
        assert wanted in text, wanted
    assert "solved" in text
    assert "40.0 %" in text  # 20 of 50 solved
    assert "Held-out accuracy" in screen.getvalue()
    assert "round 1" in screen.getvalue()
    assert path.read_text(encoding="utf-8") == report.report(run).read_text(encoding="utf-8")


def test_an_interval_that_holds_zero_is_flagged(run: Path):
    rows = results.read_rows(run / "round-0/evaluate/greedy/rows.jsonl")
    write_jsonl(run / "round-1/evaluate/greedy/rows.jsonl", map(asdict, rows))
    text = report.report(run).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "greedy: round 1 − warm start" in line)
    assert "+0.0 [" in line
    assert "**no**" in line


def test_kinds_of_questions_stand_apart_where_the_set_names_them(run: Path):
    assert "by kind" not in report.report(run).read_text()
    kinds = [{"family": "easy"} if i % 4 == 0 else {"subject": "algebra", "level": 5} for i in range(200)]
    problems = ({"id": f"q{i}", "question": f"question {i}", "extra": extra} for i, extra in enumerate(kinds))
    write_jsonl(run / "data" / "heldout.jsonl", problems)
    rows = read_rows(run / "round-1/evaluate/search/rows.jsonl")
    easy = sum(row.correct for row in rows[::4])
    assert "| easy | 50 | " in (text := report.report(run).read_text())
    assert f" | {2 * easy:.1f} % | " in next(line for line in text.splitlines() if line.startswith("| easy"))
    assert "| algebra | 150 | " in text


def test_several_seeds_are_pooled_by_question(tmp_path: Path):
    outs = [make_run(tmp_path / f"seed-{seed}", seed) for seed in range(3)]
    text = report.combine(outs, target=tmp_path / "all.md")
    assert (tmp_path / "all.md").read_text(encoding="utf-8") == text
    assert "n = 600 answers" in text
    assert "3 runs pooled" in text
    assert "| seed-0 | seed-1 | seed-2 |" in text
    assert "differ in more than their seed" not in text
    runs = [results.load_run(out) for out in outs]
    share, interval, n = results.accuracy(runs, 1, "search")
    assert n == 600
    alone = [results.accuracy([r], 1, "search")[0] for r in runs]
    assert share == pytest.approx(sum(alone) / 3)
    wilson = results.wilson(round(share * 600), 600)
    assert text.count("Means over 3 runs.") == 4
    assert interval.high - interval.low > wilson.high - wilson.low  # three answers to a question are not independent


def test_nothing_right_is_not_certainty(tmp_path: Path):
    outs = [make_run(tmp_path / f"seed-{seed}", seed, n=30) for seed in range(2)]
    for out in outs:
        rows = [row(i, "greedy", False) for i in range(30)]
        write_jsonl(out / "base/evaluate/greedy/rows.jsonl", map(asdict, rows))
    share, interval, _ = results.accuracy([results.load_run(out) for out in outs], BASE, "greedy")
    assert share == 0
    assert interval == results.wilson(0, 30)  # thirty questions asked twice are still thirty questions


def test_few_questions_are_called_few(run: Path):
    before = [row(i, "greedy", False) for i in range(200)]
    after = [row(i, "greedy", i < 4) for i in range(200)]
    write_jsonl(run / "round-0/evaluate/greedy/rows.jsonl", map(asdict, before))
    write_jsonl(run / "round-1/evaluate/greedy/rows.jsonl", map(asdict, after))
    text = report.report(run).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "greedy: round 1 − warm start" in line)
    assert "| 4 | 0 | 0.125 | **yes, but p ≥ 0.05** |" in line


def test_the_cost_of_a_stage_in_cells(run: Path):
    records = list(read_jsonl(run / "metrics.jsonl"))
    (at,) = (i for i, r in enumerate(records) if r["stage"] == "round-1/search")
    records[at]["metrics"]["owed"] = 3
    records[at]["speed"] = {
        "seconds": 50.0, "policy_tokens": 1000, "value_tokens": 700, "policy_busy": 40.0, "value_busy": 5.0
    }  # fmt: skip
    write_jsonl(run / "metrics.jsonl", records)
    table = findings.cost_table([results.load_run(run)])
    cells = {cells[0]: cells for cells in table.rows}
    shown = ["1 min 01 s", "1,000", "5,000", "80.0 %", "700", "90", "20", "80.0 % + 10.0 %", tables.ABSENT]
    assert cells["round-1/search"][1:] == shown
    assert cells["round-1/evaluate/greedy"][7:9] == ["16", tables.ABSENT]  # 1000 in 61 s; how busy is not known
    assert cells["round-1/policy"][2:] == [tables.ABSENT] * 8
    assert any("The budget of round-1/search left 3 questions" in note for note in table.notes)


def test_settings_that_differ_are_named(tmp_path: Path):
    outs = [make_run(tmp_path / f"seed-{seed}", seed) for seed in range(2)]
    for seed, out in enumerate(outs):
        text = f"seed: {seed}\nout: {out}\nsearch: {{iterations: {8 + seed}, branch: 3}}\n"
        (out / "config.yaml").write_text(text, encoding="utf-8")
    assert "**The runs differ in more than their seed**: search.iterations." in report.combine(outs)


def test_runs_that_do_not_fit_are_refused(tmp_path: Path, run: Path):
    with pytest.raises(StoreError, match="named twice"):
        report.combine([run, run])
    other = make_run(tmp_path / "other", 1)
    measured = [r for r in results.load_run(other).records if r["mode"] != "greedy"]
    write_jsonl(other / "metrics.jsonl", measured)
    text = report.combine([run, other])  # what both measured
    assert "n = 400 answers" in text
    assert "search − greedy" not in text
    write_jsonl(run / "metrics.jsonl", [r for r in results.load_run(run).records if r["mode"] == "greedy"])
    with pytest.raises(StoreError, match="nothing in common"):
        report.combine([run, other])
    with pytest.raises(StoreError, match="holds no results"):
        report.report(tmp_path)


def test_a_run_that_measured_nothing_has_a_report(tmp_path: Path):
    write_jsonl(tmp_path / "metrics.jsonl", [record("data", "data", WARM, policy="m", train=5, seed=1)])
    text = report.report(tmp_path).read_text(encoding="utf-8")
    assert "What this holds for" in text
    assert "nan" not in text.lower().replace("finance", "")


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (tables.percent(None), "–"),
        (tables.with_interval(0.413, (0.36, 0.468)), "41.3 % [36.0, 46.8]"),
        (tables.points(0.05, (-0.01, 0.11)), "+5.0 [-1.0, +11.0]"),
        (tables.count(1234567), "1.23 M"),
        (tables.count(12345), "12,345"),
        (tables.duration(59.96), "1 min 00 s"),
        (tables.duration(3725), "1 h 02 min"),
        (tables.duration(4.04), "4.0 s"),
        (tables.probability(0.0004), "< 0.001"),
    ],
)
def test_cells(shown: str, wanted: str):
    assert shown == wanted


def test_markdown_survives_pipes():
    assert "a\\|b" in tables.Table("t", ["", "x"], [["a|b", "1"]]).markdown()
