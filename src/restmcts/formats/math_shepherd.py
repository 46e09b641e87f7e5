"""Math-Shepherd (Wang et al., arXiv 2312.08935): a question and its steps as one text.

In `input` every step ends with the tag `ки`, in `label` with `+` or `-` in its place; `task` names the question set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from restmcts.errors import TaskError
from restmcts.formats.common import (
    ExportOptions,
    ImportOptions,
    Marked,
    each,
    numbered,
    text_of,
    unnumbered,
    value_row,
)
from restmcts.rows import ValueRow

TAG = "ки"
_END = re.compile(rf"(?<=\s){TAG}[ \t]*(?:\n|\Z)")
"""the end of a step: the tag as a word of its own at the end of a line"""
_FIRST = re.compile(r"(?:^|(?<=\s))Step 1:")


def write(solution: Marked, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """Nothing where a text has marks of the format in it, so that it would be read as something else."""
    steps, right = numbered(solution.steps), solution.signs(options.threshold)
    tagged = _laid_out(solution.question, steps, [TAG] * len(steps))
    labelled = _laid_out(solution.question, steps, ["+" if sign else "-" for sign in right])
    with suppress(TaskError):
        if split(tagged, labelled, "") == (solution.question.strip(), unnumbered(steps), right):
            yield {"input": tagged, "label": labelled, "task": "restmcts"}


def _laid_out(question: str, steps: list[str], marks: list[str]) -> str:
    return f"{question} " + "\n".join(f"{step} {mark}" for step, mark in zip(steps, marks, strict=True))


def read(source: str, options: ImportOptions) -> Iterator[ValueRow | TaskError | None]:
    """Steps lose their "Step k:", since a policy that writes one step a line writes none."""

    def convert(where: str, row: Mapping[str, Any]) -> Iterator[ValueRow | None]:
        question, steps, right = split(text_of(row, ["input"], where), text_of(row, ["label"], where), where)
        yield value_row(question, steps, right, options.scale) if steps else None

    return each(source, convert)


def split(tagged: str, labelled: str, where: str) -> tuple[str, list[str], list[float]]:
    """Question, steps and how right each is. Raises TaskError where the two texts do not tell."""
    pieces, right, at, begin = list[str](), list[float](), 0, 0
    for end in _END.finditer(tagged):
        piece = tagged[begin : end.start()]
        if not labelled.startswith(piece, at):
            raise TaskError(f"{where}: label differs from input before step {len(pieces) + 1}; mend or remove the row")
        sign = labelled[at + len(piece) : at + len(piece) + 1]
        if sign not in ("+", "-"):
            raise TaskError(f"{where}: step {len(pieces) + 1} ends with {sign!r} in label: it must be + or -")
        pieces.append(piece)
        right.append(float(sign == "+"))
        at += len(piece) + 1
        following = re.compile(r"[ \t]*\n?").match(labelled, at)
        at = at if following is None else following.end()
        begin = end.end()
    if not pieces:
        return tagged, [], []
    begins = list(_FIRST.finditer(pieces[0]))
    if not begins or not pieces[0][: begins[-1].start()].strip():
        raise TaskError(f"{where}: input holds no question before 'Step 1:'; mend or remove the row")
    cut = begins[-1].start()
    question, pieces[0] = pieces[0][:cut].strip(), pieces[0][cut:]
    return question, unnumbered(pieces), right
