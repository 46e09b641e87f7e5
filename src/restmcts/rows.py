"""The rows that training reads and the labels they come from: plain records, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path as FilePath
from typing import Any, Self, TypeVar

from restmcts.errors import StoreError
from restmcts.files import numbered_jsonl, write_jsonl
from restmcts.records import typed
from restmcts.types import Problem, Step

LABELS, POLICY_ROWS, VALUE_ROWS, PAIRS = "labels.jsonl", "policy_rows.jsonl", "value_rows.jsonl", "pairs.jsonl"
"""files of a run: what verified trees say, and what the trainings read"""
REWARDS = "rewards.jsonl"
"""what online training rewarded each question's solutions with, step by step"""


class _Record:
    """A dataclass whose fields are JSON, with `to_record` and `from_record` as inverses."""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild a row; unknown keys are ignored. Raises ValueError naming what is missing or of another type."""
        row = cls(**typed(cls, record, tuple(f.name for f in fields(cls))))  # type: ignore[arg-type]
        row.check()
        return row

    def check(self) -> None:
        """Raise ValueError unless lists that belong together are of one length."""


@dataclass(frozen=True, slots=True)
class TreeLabels(_Record):
    """What a verified tree says about its nodes: one entry per node, None where there is nothing to say.

    `correct` is known for finished leaves; `m`, `r`, `w`, `v` are those of `rewards.Labels` (paper: Eqs. 1 and 2).
    """

    id: str
    """of the problem; the n-th record belongs to the n-th tree"""
    correct: list[bool | None]
    m: list[float | None]
    r: list[float | None]
    w: list[float | None]
    v: list[float | None]

    def check(self) -> None:
        same_length(self, "correct", "m", "r", "w", "v")


@dataclass(frozen=True, slots=True)
class _TraceRow(_Record):
    problem_id: str
    question: str
    steps: list[str]
    step_ids: list[list[int] | None]
    """the policy's own tokens of each step; None where the step was not made by a tokenizing engine"""
    tokenizer: str | None
    """fingerprint of the vocabulary that `step_ids` belong to"""

    def check(self) -> None:
        same_length(self, "steps", "step_ids")

    def problem(self) -> Problem:
        return Problem(self.problem_id, self.question)

    def path(self, tokenizer_id: str | None) -> tuple[Step, ...]:
        """The trace as steps. Token ids of another vocabulary than `tokenizer_id` are left out."""
        same = self.tokenizer is not None and self.tokenizer == tokenizer_id
        return tuple(
            Step(text, tuple(ids) if same and ids is not None else None)
            for text, ids in zip(self.steps, self.step_ids, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PolicyRow(_TraceRow):
    """A correct trace for the policy to imitate."""

    value: float | None = None
    """what the value model said of the whole trace, in [0, 1]; None if it was not asked"""
    round: int = 0
    """the round whose search found it; 0 is the warm start"""


@dataclass(frozen=True, slots=True)
class ValueRow(_TraceRow):
    """A trace for the value model, with a label per step.

    `labels[k]` is v of the partial solution that ends with step k, in [0, 1], or None where another row trains it.
    `r[k]` says how wrong step k is (0 right, 1 wrong), None wherever `labels[k]` is.
    """

    labels: list[float | None]
    r: list[float | None]

    def check(self) -> None:
        same_length(self, "steps", "step_ids", "labels", "r")


def same_length(record: object, *names: str) -> None:
    """Raise ValueError unless the lists of these names have one length."""
    lengths = {name: len(getattr(record, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "lists that belong together differ in length: " + ", ".join(f"{n} {k}" for n, k in lengths.items())
        )


@dataclass(frozen=True, slots=True)
class PreferenceRow(_TraceRow):
    """Two ways to go on from one partial solution (`steps`, which may be empty), the first better than the second.

    `chosen_value` and `rejected_value` in [0, 1] are what they were compared by. A side that `ends` is a solution: the
    end of the turn follows it.
    """

    chosen: list[str]
    chosen_ids: list[list[int] | None]
    rejected: list[str]
    rejected_ids: list[list[int] | None]
    chosen_value: float
    rejected_value: float
    chosen_ends: bool = True
    rejected_ends: bool = True
    round: int = 0

    def sides(self, tokenizer_id: str | None) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """The better and the worse continuation as steps, as `path`."""
        better, worse = (
            replace(self, steps=steps, step_ids=ids).path(tokenizer_id)
            for steps, ids in ((self.chosen, self.chosen_ids), (self.rejected, self.rejected_ids))
        )
        return better, worse


Row = TypeVar("Row", bound=_Record)


def write_rows(path: FilePath, rows: Iterable[_Record]) -> None:
    """Write rows as JSON lines, whole or not at all. Raises StoreError."""
    write_jsonl(path, (row.to_record() for row in rows))


def read_rows(path: FilePath, kind: type[Row]) -> list[Row]:
    """Read rows of one kind. Raises StoreError naming the file and the line that is not such a row."""
    rows: list[Row] = []
    for number, record in numbered_jsonl(path):
        try:
            rows.append(kind.from_record(record))
        except ValueError as error:
            raise StoreError(f"{path}, line {number}: {error}") from None
    return rows
