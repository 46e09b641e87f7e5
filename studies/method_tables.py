"""The tables of the study of self-training methods (`studies.methods`), over all its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from restmcts.files import read_json, read_jsonl
from restmcts.results import BASE, WARM, RunResults, load_run
from restmcts.rows import LABELS, POLICY_ROWS, PolicyRow, read_rows
from restmcts.tables import ABSENT, Table
from studies.kinds import Kind
from studies.verifier_tables import gain, share

NUMBERS = (1, 4, 16)
"""k of pass@k and of the majority of k"""
CONTROL = "rest-em, equal data"
FIRST = "rest-mcts"
"""the arm that the others are held against"""
EQUAL = {
    "tokens": "policy_tokens",
    "trained on": "rows",
    "trained tokens": "tokens",
    "faultless": "faultless",
    "s": "seconds",
}
"""columns of what was found, and where the control keeps their figures"""
Answers = tuple[list[float], list[str]]
"""right or wrong, or a chance of it, and the question each belongs to; seed by seed"""


def report(out: Path, console: Console, kind: Kind | None = None) -> None:
    """Show the tables over all seeds of which every run is finished. `kind` can tell which traces are faultless."""
    seeds = sorted(out.glob("seed-*"))
    runs = {name: [load_run(seed / "runs" / name) for seed in seeds] for name in _names(seeds[0] / "runs")}
    last = max(phase for phase, _ in runs[FIRST][0].rows)
    lines = {"base": _line(seeds, "base", runs[FIRST], BASE), "warm start": _line(seeds, None, runs[FIRST], WARM)}
    for k in range(1, last + 1):
        for name in (*runs, CONTROL):
            lines[f"{name}, round {k}"] = _line(seeds, name if k == last else None, runs.get(name, ()), k)
    accuracy = Table(f"Right of the held-out answers, %, {len(seeds)} seeds", ["", "greedy", "search", *_columns()])
    gained = Table("Points above base", list(accuracy.columns))
    ahead = Table(f"Points above {FIRST} of the same round", list(accuracy.columns))
    for title, line in lines.items():
        if any(line):
            accuracy.rows.append([title, *(ABSENT if cell is None else share(*cell) for cell in line)])
            beside = lines.get(f"{FIRST}, round {title.rpartition(' ')[2]}", line)
            if line is not lines["base"]:
                gained.rows.append([title, *(_above(a, b) for a, b in zip(lines["base"], line, strict=True))])
            if beside is not line:
                ahead.rows.append([title, *(_above(a, b) for a, b in zip(beside, line, strict=True))])
    accuracy.notes.append("95 % bootstrap over questions. Search: MCTS* with the value model that the run has.")
    paired = "Paired, on the same questions and seeds; p by the exact sign test over questions."
    gained.notes.append(paired)
    ahead.notes.append(paired)
    for table in (accuracy, gained, ahead, _found(seeds, runs, kind)):
        table.show(console)


def _line(seeds: Sequence[Path], drawn: str | None, runs: Sequence[RunResults], phase: int) -> list[Answers | None]:
    """What a model answered: greedily, by search, and what its samples would have, where they were `drawn`."""
    records = [] if drawn is None else _drawn(seeds, drawn)
    samples = [_column(records, rule, at) for rule in ("pass", "majority") for at in _shown(rule)]
    return [*(_answers(runs, phase, mode) for mode in ("greedy", "search")), *samples]


def _names(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir())
    return [FIRST, *(name for name in found if name != FIRST)]


def _columns() -> list[str]:
    return [*(f"pass@{k}" for k in NUMBERS), *(f"majority of {NUMBERS[at]}" for at in _shown("majority"))]


def _shown(rule: str) -> Sequence[int]:
    """Which of NUMBERS have a column: a majority of one is pass@1."""
    return range(0 if rule == "pass" else 1, len(NUMBERS))


def _answers(runs: Sequence[RunResults], phase: int, mode: str) -> Answers | None:
    if not runs or any((phase, mode) not in run.rows for run in runs):
        return None
    rows = [row for run in runs for row in run.rows[phase, mode]]
    return [float(row.correct) for row in rows], [row.id for row in rows]


def _drawn(seeds: Sequence[Path], title: str) -> list[dict[str, Any]]:
    paths = [seed / "drawn" / title.replace(" ", "-") / "chances.jsonl" for seed in seeds]
    return [record for path in paths if path.exists() for record in read_jsonl(path)]


def _column(records: Sequence[dict[str, Any]], rule: str, at: int) -> Answers | None:
    if not records:
        return None
    return [record[rule][at] for record in records], [record["id"] for record in records]


def _above(before: Answers | None, after: Answers | None) -> str:
    if before is None or after is None or before[1] != after[1]:
        return ABSENT
    return gain(before[0], after[0], after[1])


# ---------------------------------------------------------------- what was found, and what it cost


def _found(seeds: Sequence[Path], runs: dict[str, list[RunResults]], kind: Kind | None) -> Table:
    columns = ["tokens", "right traces", "tokens a right trace", "faultless", "trained on", "trained tokens"]
    columns += ["solved", "first time", "precision", "covered", "s"]
    table = Table("What a round found and cost, means over seeds", ["", *columns])
    for name, of_seeds in runs.items():
        for k in sorted({phase for phase, _ in of_seeds[0].rows if phase > 0}):
            facts = [_round(run, k, kind) for run in of_seeds]
            table.rows.append([f"{name} {k}", *(_mean([fact.get(column) for fact in facts]) for column in columns)])
    for k in range(1, 10):
        paths = [seed / "equal" / f"round-{k}" / "figures.json" for seed in seeds]
        made = [read_json(path) for path in paths if path.exists()]
        if made:
            facts = [{name: figures.get(key) for name, key in EQUAL.items()} for figures in made]
            table.rows.append([f"{CONTROL} {k}", *(_mean([fact.get(column) for fact in facts]) for column in columns)])
    table.notes.append(
        "Tokens: generated to collect data, a judge's verdicts too; of online those it trained on, prompts included. "
        "Right: taken to be right. Faultless: share of the policy's rows with no wrong step. Trained on: the policy's "
        "rows; pairs for mcts-dpo, questions for online. Solved: questions with a right leaf; first time: in no round "
        "before. Precision: of labels without known answers; covered: share of trees that have them."
    )
    return table


def _round(run: RunResults, k: int, kind: Kind | None) -> dict[str, float]:
    """What one round found, and what it cost."""
    stages = {kind: run.of_kind(kind).get(k) for kind in ("search", "label", "judge", "policy")}
    seconds = sum(record["seconds"] for record in run.records if record["phase"] == k and record["kind"] != "evaluate")
    found: dict[str, float] = {"s": seconds}
    if (trained := stages["policy"]) is not None:
        figures = trained["metrics"]
        found |= {"trained on": figures.get("rows", 0), "trained tokens": figures.get("tokens", 0)}
        if "reward_last" in figures:  # online: what it samples is what it trains on, prompts included
            found["tokens"] = figures["tokens"]
    collected = [made for kind in ("search", "judge") if (made := stages[kind]) is not None]
    if collected:
        found["tokens"] = sum(made["usage"]["policy_tokens"] for made in collected)
    if (labelled := stages["label"]) is not None:
        tokens, right = found["tokens"], labelled["metrics"]["right_traces"]
        solved = _solved(run, k)
        before = set().union(*(_solved(run, earlier) for earlier in range(1, k)))
        found |= {"right traces": right, "solved": len(solved), "first time": len(solved - before)}
        found |= {"tokens a right trace": tokens / right} if right else {}
        pseudo = labelled["metrics"].get("pseudo") or {}
        found |= {name: pseudo[name] for name in ("precision", "covered") if pseudo.get(name) is not None}
        if kind is not None:
            rows = read_rows(run.out / f"round-{k}" / "label" / POLICY_ROWS, PolicyRow)
            found["faultless"] = share_faultless([row for row in rows if row.round == k], kind)
    return found


def share_faultless(rows: Sequence[PolicyRow], kind: Kind) -> float:
    """The share of traces of which every step is right."""
    return fmean([kind.faultless(row.question, row.steps) for row in rows] or [0])


def _solved(run: RunResults, k: int) -> set[str]:
    records = read_jsonl(run.out / f"round-{k}" / "label" / LABELS)
    return {record["id"] for record in records if any(record["correct"])}


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ABSENT
    mean = fmean(known)
    return f"{mean:.3f}" if 0 < mean < 1 else f"{mean:,.0f}"
