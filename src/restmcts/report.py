"""The report on a run, or on several seeds of it: tables on the screen, in Markdown, or in a page (`view.page`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restmcts.errors import StoreError
from restmcts.findings import result_tables
from restmcts.results import RunResults, load_run
from restmcts.store import write_atomic
from restmcts.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

REPORT = "report.md"


def report(out: str | Path, console: Console | None = None) -> Path:
    """Write report.md of a run and, with a console, show the same there. Returns the path of the report."""
    run = load_run(out)
    tables = result_tables([run])
    path = run.out / REPORT
    write_atomic(path, markdown(title([run]), tables))
    if console is not None:
        show(tables, console)
    return path


def combine(outs: Sequence[str | Path], console: Console | None = None, target: Path | None = None) -> str:
    """One report over several runs (seeds); written to `target` where given. Returns its markdown.

    What not all of them measured is left out. Raises StoreError when a folder holds no results or nothing is common.
    """
    runs = load_runs(outs)
    tables = result_tables(runs)
    text = markdown(title(runs), tables)
    if target is not None:
        write_atomic(target, text)
    if console is not None:
        show(tables, console)
    return text


def load_runs(outs: Sequence[str | Path]) -> list[RunResults]:
    """The results of several runs, less what not all of them measured. Raises StoreError as `combine` does."""
    runs = [load_run(out) for out in outs]
    if len({run.out.resolve() for run in runs}) < len(runs):
        raise StoreError("a run is named twice; give each run folder once")
    common = set.intersection(*(set(run.rows) for run in runs))
    for run in runs[1:]:
        if run.rows and not common:
            raise StoreError(f"{run.out} and {runs[0].out} measured nothing in common; finish both, or leave one out")
    for run in runs:  # what only some of them measured cannot be pooled
        run.rows = {measured: rows for measured, rows in run.rows.items() if measured in common}
    return runs


def title(runs: Sequence[RunResults]) -> str:
    return f"{len(runs)} runs" if len(runs) > 1 else f"Run {runs[0].out.name}"


def markdown(heading: str, tables: Iterable[Table]) -> str:
    return f"# {heading}\n\n" + "\n".join(table.markdown() for table in tables)


def show(tables: Iterable[Table], console: Console) -> None:
    for table in tables:
        table.show(console)
