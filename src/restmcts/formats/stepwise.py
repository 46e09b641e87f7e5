"""TRL's stepwise supervision: `prompt`, `completions` (the steps) and `labels`, one for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from restmcts.errors import TaskError
from restmcts.formats.common import (
    ExportOptions,
    ImportOptions,
    Marked,
    each,
    share,
    shown,
    text_of,
    value_row,
)
from restmcts.rows import ValueRow


def write(solution: Marked, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """Labels are true and false; with `soft`, 1 − r."""
    labels: list[Any] = solution.right if options.soft else solution.signs(options.threshold)
    yield {"prompt": solution.question, "completions": solution.steps, "labels": labels}


def read(source: str, options: ImportOptions) -> Iterator[ValueRow | TaskError | None]:
    """Labels may be true and false, 1 and 0, or anything between, and None where a step was not judged."""

    def convert(where: str, row: Mapping[str, Any]) -> Iterator[ValueRow | None]:
        steps, labels = row.get("completions"), row.get("labels")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
            raise TaskError(f"{where}: completions = {shown(steps)}: it must be a list of texts; mend the row")
        if not isinstance(labels, list) or len(labels) != len(steps):
            raise TaskError(f"{where}: labels = {shown(labels)}: it must be a list of {len(steps)}, one for each step")
        right = [None if label is None else share(label, where, "a label") for label in labels]
        question = text_of(row, ["prompt"], where).strip()
        yield (
            value_row(question, [step.strip() for step in steps], right, options.scale)
            if any(x is not None for x in right)
            else None
        )

    return each(source, convert)
