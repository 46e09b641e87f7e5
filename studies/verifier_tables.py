"""The tables of the study of verifiers (`studies.verifiers`), over all its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from restmcts.files import read_json, read_jsonl
from restmcts.metrics import bootstrap_mean, sign_test
from restmcts.tables import Table

NUMBERS = (16, 64, 256)
"""N: how many samples are chosen among"""
Chances = dict[tuple[str, int], list[float]]
"""by row of the table and N: for each seed and question the chance of a right answer"""
Cell = Callable[[str, int], str]
"""(row, N) → what stands there"""


def report(out: Path, console: Console) -> None:
    """Show the tables over all seeds."""
    for of_steps in ("last", "min", "product"):
        show_choices(console, of_steps, *read(out, of_steps))
    costs = Table("What it cost, per seed", ["", "tokens", "epochs", "rows", "labelled steps", "trained tokens"])
    for figures in sorted(out.glob("seed-*/**/figures.json")):
        made = read_json(figures)
        cells = [str(made.get(k, "")) for k in ("policy_tokens", "epochs", "rows", "labelled_steps", "tokens")]
        costs.rows.append([figures.parent.relative_to(out).as_posix(), *cells])
        if "auc_in_question" in made:
            costs.notes.append(f"{figures.parent.parent.name}: AUC within a question {made['auc_in_question']}")
    costs.show(console)


def show_choices(console: Console, of_steps: str, found: Chances, asked: list[str], names: list[str]) -> None:
    """What choosing by each verifier gives, and how far that is from other ways to choose."""
    rows = ["SC", *(row for name in names for row in (name, f"SC + {name}"))]

    def chance(row: str, n: int) -> str:
        return share(found[row, n], asked)

    def above(other: str | None) -> Cell:
        """Beside SC, or beside `other` where the row is chosen by value and `SC + other` where it is a vote."""

        def cell(row: str, n: int) -> str:
            base = "SC" if other is None else f"SC + {other}" if row.startswith("SC") else other
            return gain(found[base, n], found[row, n], asked)

        return cell

    show(console, f"Right answers of {len(asked)}, %, by the {of_steps} of the steps' values", rows, chance)
    show(console, "Points above SC", rows[1:], above(None))
    for other in ("ORM", "MS soft"):
        beside = [row for row in rows[1:] if row.removeprefix("SC + ") != other]
        show(console, f"Points above {other}, and above SC + {other}", beside, above(other))


def show(console: Console, title: str, rows: Sequence[str], cell: Cell) -> None:
    """A table with a row for each of `rows` and a column for each N."""
    table = Table(title, ["", *map(str, NUMBERS)])
    table.rows += [[row, *(cell(row, n) for n in NUMBERS)] for row in rows]
    table.show(console)


def read(out: Path, of_steps: str) -> tuple[Chances, list[str], list[str]]:
    """The chances of all seeds, the questions they belong to, and the verifiers' names."""
    found: Chances = {}
    asked: list[str] = []
    names: list[str] = []
    for path in sorted(out.glob("seed-*/scores/chances.jsonl")):
        for record in read_jsonl(path):
            asked.append(record["id"])
            names = [name for name in record["by"] if name != "guide"]
            for name in names:
                by = record["by"][name]
                for i, n in enumerate(NUMBERS):
                    found.setdefault((name, n), []).append(by[f"best {of_steps}"][i])
                    found.setdefault((f"SC + {name}", n), []).append(by[f"vote {of_steps}"][i])
            for i, n in enumerate(NUMBERS):
                found.setdefault(("SC", n), []).append(record["by"][names[0]]["majority"][i])
    return found, asked, names


def share(chances: Sequence[float], asked: Sequence[str]) -> str:
    """The mean of chances, in %, with its interval over the questions that they belong to."""
    interval = bootstrap_mean(chances, asked, resamples=2000)
    assert interval is not None
    return f"{100 * fmean(chances):.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def gain(before: Sequence[float], after: Sequence[float], asked: Sequence[str]) -> str:
    """The paired difference with its interval over questions, and the sign test over questions."""
    change = [y - x for x, y in zip(before, after, strict=True)]
    interval = bootstrap_mean(change, asked, resamples=2000)
    assert interval is not None
    sums: dict[str, float] = {}
    for question, one in zip(asked, change, strict=True):
        sums[question] = sums.get(question, 0.0) + one
    p = sign_test(sum(x > 1e-9 for x in sums.values()), sum(x < -1e-9 for x in sums.values()))
    shown = "1" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{100 * fmean(change):+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}], p {shown}"
