"""What the formats share: options, solutions with marked steps, and checks of what strangers wrote."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from restmcts.encoding import PromptSettings
from restmcts.errors import TaskError
from restmcts.rows import ValueRow
from restmcts.tasks.sources import read_rows
from restmcts.types import Tree

Kind = Literal["policy", "pairs", "value", "marked", "solutions"]
"""what of a run an export is made of: policy rows, pairs, value rows as they are stored; `Marked`; `Solved`"""
Scale = Literal["right", "progress"]
"""what v of an imported step says: whether it is right (1 or 0), or how far along the solution is (Eqs. 1 and 2)"""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    threshold: float = 0.5
    """a step is right where 1 − r, in [0, 1], reaches it: for formats with hard labels"""
    soft: bool = False
    """1 − r itself, for the format that can hold it"""
    prompt: PromptSettings = field(default_factory=PromptSettings)
    """how questions are put to the policy"""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    scale: Scale = "right"
    neutral: float = 1.0
    """how right a step rated 0 (neither right nor wrong) of PRM800K is, in [0, 1]"""


Write = Callable[[Any, ExportOptions], Iterable[dict[str, Any]]]
"""one thing of the export's kind → its lines; none where the format cannot hold it"""
Import = Callable[[str, ImportOptions], Iterator[ValueRow | TaskError | None]]
"""a source → its rows; None for a row that says nothing, an error for one that is wrong: the caller decides"""


@dataclass(frozen=True, slots=True)
class Export:
    of: Kind
    write: Write


@dataclass(frozen=True, slots=True)
class Marked:
    """A solution with how right each step is, `right[k]` = 1 − r in [0, 1]."""

    problem_id: str
    question: str
    steps: list[str]
    right: list[float]

    def signs(self, threshold: float) -> list[bool]:
        return [right >= threshold for right in self.right]


@dataclass(frozen=True, slots=True)
class Solved:
    """A finished solution of a tree and whether its answer is right."""

    tree: Tree
    leaf: int
    correct: bool


# ---------------------------------------------------------------- rows of ours, for formats that mark every step


def marked(rows: Sequence[ValueRow], delimiter: str = "\n") -> Iterator[Marked | None]:
    """Every row with a mark on every step; None for one without any label.

    A step that another row trains has its label from there. Steps that nothing is known of are one step with the next
    that has a label; what follows the last label is left out.
    """
    known: dict[bytes, float] = {}
    for row in rows:
        known.update((key, r) for key, r in zip(_prefixes(row), row.r, strict=True) if r is not None)
    for row in rows:
        steps: list[str] = []
        right: list[float] = []
        waiting: list[str] = []
        for key, text, own in zip(_prefixes(row), row.steps, row.r, strict=True):
            if own is not None:  # of equal steps in several trees, those of a tree stand together
                known[key] = own
            waiting.append(text)
            r = known.get(key)
            if r is not None:
                steps.append(delimiter.join(waiting))
                right.append(1.0 - r)
                waiting = []
        yield Marked(row.problem_id, row.question, steps, right) if steps else None


def _prefixes(row: ValueRow) -> Iterator[bytes]:
    """A fingerprint of every partial solution of a row."""
    digest = hashlib.sha256(repr((row.problem_id, row.question)).encode("utf-8", "surrogatepass"))
    for step in row.steps:
        digest.update(repr(step).encode("utf-8", "surrogatepass"))
        yield digest.digest()


def numbered(steps: Sequence[str]) -> list[str]:
    """Steps that begin with "Step k: ", as many formats want them; those that do by themselves stay as they are."""
    return [s if s.startswith(f"Step {k}:") else f"Step {k}: {s}" for k, s in enumerate(steps, start=1)]


def unnumbered(steps: Sequence[str]) -> list[str]:
    """The inverse of `numbered`."""
    return [s.strip().removeprefix(f"Step {k}:").strip() for k, s in enumerate(steps, start=1)]


# ---------------------------------------------------------------- rows from elsewhere


def each(
    source: str, convert: Callable[[str, Mapping[str, Any]], Iterable[ValueRow | None]]
) -> Iterator[ValueRow | TaskError | None]:
    """What `convert` makes of each row of a file or a hub data set; the error of one that it refuses.

    Raises TaskError where the source itself cannot be read.
    """
    for where, row in read_rows(source):
        try:
            yield from convert(where, row)
        except TaskError as error:
            yield error


def value_row(
    question: str,
    steps: Sequence[str],
    right: Sequence[float | None],
    scale: Scale,
    *,
    total: int | None = None,
    trained: int = 0,
) -> ValueRow:
    """A solution whose steps are `right` (1), wrong (0), in between, or of unknown worth (None), as a row.

    `total` is the number of steps of a whole solution (default: of this one). The first `trained` steps are those of
    another row and get no label.
    """
    values = list(right) if scale == "right" else progress(right, total or len(steps))
    wrong = [None if v is None or x is None else 1.0 - x for v, x in zip(values, right, strict=True)]
    blank: list[float | None] = [None] * trained
    return ValueRow(
        problem_id=hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        question=question,
        steps=list(steps),
        step_ids=[None] * len(steps),
        tokenizer=None,
        labels=blank + values[trained:],
        r=blank + wrong[trained:],
    )


def progress(right: Sequence[float | None], total: int) -> list[float | None]:
    """v of every step by Eqs. 1 and 2 in a solution of `total` steps, with r = 1 − right.

    m of a right step is what is left of the solution, of a wrong one that of the last right step before it. From the
    first step of unknown worth on, nothing is known.
    """
    v, m = 0.0, total
    values: list[float | None] = []
    for k, good in enumerate(right, start=1):
        if good is None:
            return values + [None] * (len(right) - len(values))
        if good >= 0.5:
            m = max(total - k, 0)
        v = max(0.0, v + (1 - v) / (m + 1) * (2 * good - 1))
        values.append(min(v, 1.0))
    return values


def text_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of the columns `names` that is there, which must be text. Raises TaskError."""
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(found, str) or not found.strip():
        raise TaskError(f"{where}: {names[0]} = {shown(found)}: it must be text; mend or remove the row")
    return found


def shown(value: object) -> str:
    """A value of a stranger's row, in a few characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def share(value: object, where: str, what: str) -> float:
    """A number in [0, 1], or a truth value as 1 or 0. Raises TaskError."""
    if isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    raise TaskError(f"{where}: {what} = {shown(value)}: it must be true, false or a number from 0 to 1; mend the row")
