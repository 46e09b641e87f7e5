"""Tables as plain data, written as markdown or shown on a terminal. Absent numbers are shown as –."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ABSENT = "–"


@dataclass(slots=True)
class Table:
    """A titled table of finished cells; the first column names its row. `notes` are sentences below it.

    A cell in **asterisks** is a warning. Columns after the first are numbers unless `words`.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: bool = False

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        if self.rows:
            rule = ["---"] + ["---" if self.words else "---:"] * (len(self.columns) - 1)
            lines += [_line(self.columns), "| " + " | ".join(rule) + " |", *map(_line, self.rows), ""]
        for note in self.notes:
            lines += [note, ""]
        return "\n".join(lines)

    def show(self, console: Console) -> None:
        """Print to a rich console."""
        from rich.markup import escape
        from rich.table import Table as Grid

        console.print()
        if self.rows:
            grid = Grid(title=escape(self.title), title_justify="left", title_style="bold", header_style="bold")
            for i, column in enumerate(self.columns):
                grid.add_column(escape(column), justify="right" if i and not self.words else "left", overflow="fold")
            for row in self.rows:
                grid.add_row(*map(_screen, row))
            console.print(grid)
        else:
            console.print(escape(self.title), style="bold")
        for note in self.notes:
            console.print(escape(note), style="dim" if self.rows else None, soft_wrap=True)


def _screen(cell: str) -> str:
    from rich.markup import escape

    warned = cell.startswith("**") and cell.endswith("**")
    return f"[bold yellow]{escape(cell[2:-2])}[/]" if warned else escape(cell)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


# ---------------------------------------------------------------- cells


def percent(x: float | None) -> str:
    return ABSENT if x is None else f"{100 * x:.1f} %"


def with_interval(x: float | None, interval: Sequence[float] | None) -> str:
    """A share and its 95 % interval: `41.3 % [36.0, 46.8]`."""
    if x is None:
        return ABSENT
    return f"{100 * x:.1f} %" + ("" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")


def points(x: float | None, interval: Sequence[float] | None) -> str:
    """A difference of shares in percentage points, and its 95 % interval: `+5.0 [-1.0, +11.0]`."""
    if x is None:
        return ABSENT
    return f"{100 * x:+.1f}" + ("" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]")


def number(x: float | None, digits: int = 3) -> str:
    return ABSENT if x is None else f"{x:.{digits}f}"


def count(x: float | None) -> str:
    """A whole number with thousands set apart; large ones in millions."""
    if x is None:
        return ABSENT
    return f"{x / 1e6:.2f} M" if abs(x) >= 1e6 else f"{round(x):,}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def probability(p: float | None) -> str:
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
