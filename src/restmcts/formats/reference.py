"""The files of ReST-MCTS*'s published code, one JSON object a line.

For its value model: `prompt_answer`, a question with a partial solution, and `label`, its v. For its policy:
`content` (the question), `summary` (the solution), `label` (whether it is right) and `real_answer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from restmcts.errors import TaskError
from restmcts.formats.common import (
    ExportOptions,
    ImportOptions,
    Solved,
    each,
    numbered,
    share,
    shown,
    text_of,
    unnumbered,
    value_row,
)
from restmcts.rows import ValueRow

_PARTS = re.compile(r"\s*Problem:(?P<question>.*?)\nSolution:\n(?P<steps>.*)", re.DOTALL)
_STEP = re.compile(r"^(?=Step \d+:)", re.MULTILINE)


def write_value(row: ValueRow, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """A line for every labelled step: v is held as it is."""
    text = f"Problem:{row.question}\nSolution:\n"
    for step, label in zip(numbered(row.steps), row.labels, strict=True):
        text += f"{step}\n"
        if label is not None:
            yield {"prompt_answer": text, "label": label}


def write_policy(solved: Solved, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """A line for every finished solution, right or wrong."""
    tree = solved.tree
    steps = [tree.text[node] for node in tree.nodes_to(solved.leaf)]
    text = "".join(f"{step}\n" for step in numbered(steps))
    if "final answer is" not in text:
        text += f"The final answer is {tree.answer[solved.leaf]}"
    real = tree.problem.answer
    yield {"content": tree.problem.question, "summary": text, "label": solved.correct, "real_answer": real}


def read_value(source: str, options: ImportOptions) -> Iterator[ValueRow | TaskError | None]:
    """Labels are v already, whatever `scale` says; how wrong a step is (r) is not told."""

    def convert(where: str, row: Mapping[str, Any]) -> Iterator[ValueRow | None]:
        parts = _PARTS.fullmatch(text_of(row, ["prompt_answer"], where))
        if parts is None or not parts["question"].strip():
            raise TaskError(
                f"{where}: prompt_answer = {shown(row['prompt_answer'])}: it must read 'Problem:…', 'Solution:' on a "
                "line of its own, and the steps"
            )
        steps = unnumbered([part for part in _STEP.split(parts["steps"]) if part.strip()])
        if not steps:
            yield None
            return
        right: list[float | None] = [None] * (len(steps) - 1) + [share(row.get("label"), where, "label")]
        made = value_row(parts["question"].strip(), steps, right, "right")
        yield ValueRow(**{**made.to_record(), "r": [None] * len(steps)})

    return each(source, convert)
