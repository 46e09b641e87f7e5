"""The rows that training reads and the labels they come from: plain records, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any, Self, TypeVar

from restmcts.errors import StoreError
from restmcts.types import Problem, Step


class _Record:
    """A dataclass whose fields are JSON, with `to_record` and `from_record` as inverses."""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild a row; unknown keys are ignored. Raises ValueError naming the missing ones."""
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in record]
        if missing:
            raise ValueError(f"{cls.__name__} record lacks {', '.join(missing)}")
        return cls(**{name: record[name] for name in names})


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


@dataclass(frozen=True, slots=True)
class _TraceRow(_Record):
    problem_id: str
    question: str
    steps: list[str]
    step_ids: list[list[int] | None]
    """the policy's own tokens of each step; None where the step was not made by a tokenizing engine"""
    tokenizer: str | None
    """fingerprint of the vocabulary that `step_ids` belong to"""

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


Row = TypeVar("Row", bound=_Record)


def write_rows(path: FilePath, rows: Iterable[_Record]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row.to_record(), ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: FilePath, kind: type[Row]) -> list[Row]:
    """Read rows of one kind. Raises StoreError naming the file and the line that is not such a row."""
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        rows.append(kind.from_record(json.loads(line)))
                    except (ValueError, TypeError) as error:
                        raise StoreError(f"{path}:{number}: not a {kind.__name__}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read rows from {path}: {error}") from error
    return rows
