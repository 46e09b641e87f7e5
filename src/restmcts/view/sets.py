"""Which trees a folder holds: the search and evaluation stages of a run, or the stages done alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from restmcts.errors import StoreError
from restmcts.evaluate import ROWS, TREES
from restmcts.results import BASE, WARM, kind_of, phase_name
from restmcts.store import BEGUN, MANIFEST, SET_ASIDE, read_json, read_jsonl

LABELS = "labels.jsonl"
_STAGE = re.compile(r"(?:(base)|round-(\d+))/(?:(search)|evaluate/(\w+))")
_QUESTIONS = ("train.jsonl", "heldout.jsonl", "worked.jsonl")


@dataclass(frozen=True)
class TreeSet:
    """The trees of one stage: one question set, one method, one pair of models."""

    name: str
    """its folder, relative to the folder looked at"""
    folder: Path
    phase: int | None = None
    """of the run, as in `results`; None for a stage done alone"""
    mode: str | None = None
    """what was measured: greedy or search; None for a search for training data"""

    @property
    def pool(self) -> str:
        """Which questions these are: those of one pool can be set side by side."""
        return "" if self.phase is None else "training" if self.mode is None else "held-out"

    @property
    def title(self) -> str:
        if self.phase is None:
            return self.folder.resolve().name if self.name == "." else self.name
        return f"{phase_name(self.phase)}, {self.mode or 'training search'}"

    @property
    def trees(self) -> Path:
        return self.folder / TREES

    @property
    def rows(self) -> Path | None:
        """The scored rows, once these trees are an evaluation that is finished."""
        path = self.folder / ROWS
        return path if path.is_file() else None

    @property
    def labels(self) -> Path | None:
        """The labels of a search's trees, once they are finished: they lie in the folder beside it."""
        folder = self.folder.parent / "label"
        return folder / LABELS if self.folder.name == "search" and (folder / MANIFEST).is_file() else None

    @property
    def finished(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the stage; empty where they cannot be read."""
        for name in (MANIFEST, BEGUN):
            try:
                record = read_json(self.folder / name)
            except StoreError:
                continue
            found = record.get("settings") if isinstance(record, dict) else None
            if isinstance(found, dict):
                return found
        return {}


def find_sets(out: Path) -> list[TreeSet]:
    """The tree sets below `out`, in the order of a run: phase by phase, the search before what was measured after it.

    What `--redo` set aside is left out.
    """
    sets = []
    for path in out.rglob(TREES):
        folder = path.parent.relative_to(out)
        if SET_ASIDE in folder.parts:
            continue
        name = folder.as_posix()
        known = _STAGE.fullmatch(name)
        if known is None:
            sets.append(TreeSet(name, path.parent))
        else:
            phase = BASE if known[1] else int(known[2])
            sets.append(TreeSet(name, path.parent, phase, known[4]))
    return sorted(sets, key=_in_order)


def _in_order(tree_set: TreeSet) -> tuple[bool, int, str, str]:
    return tree_set.phase is None, tree_set.phase or WARM, tree_set.mode or "", tree_set.name


def read_kinds(out: Path) -> dict[str, str]:
    """What kind of question each id is, where the run's question sets say so."""
    found: dict[str, str] = {}
    for name in _QUESTIONS:
        for record in _readable(out / "data" / name):
            kind = kind_of(record.get("extra") or {})
            if kind is not None:
                found.setdefault(str(record.get("id")), kind)
    return found


def read_questions(out: Path, name: str) -> list[dict[str, Any]]:
    """The questions of a run's data file (train.jsonl, heldout.jsonl, worked.jsonl); none where it is missing."""
    return list(_readable(out / "data" / name))


def _readable(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        yield from read_jsonl(path, skip_torn=True)
    except StoreError:  # a page over a run does without what cannot be read
        return
