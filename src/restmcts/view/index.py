"""Where each tree begins in a growing file, and what the table of questions says of it.

A file of trees is read once, from beginning to end, and then only what was added; a tree that is looked at is read by
its offset. So a page over 100,000 trees costs what it shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from restmcts.errors import StoreError, TaskError
from restmcts.files import explained
from restmcts.tasks import get_task
from restmcts.types import Tree
from restmcts.view.sets import TreeSet

COLUMNS = (
    "key id question kind gold answer right reached value gap nodes finished depth iterations "
    "policy_tokens value_tokens seconds stop method"
).split()
"""key: equal for equal questions · right: whether the answer given is, null where not known · reached: whether that of
some leaf is · value: what the value model said of the answer given · gap: mean |value − right| over the finished leaves
whose answers are graded"""
_SHOWN = 400
"""characters of a question that the table is given"""

Verdicts = Sequence[bool | None]
Place = tuple[int, int]
"""where a line begins in its file, and how long it is"""


class TreeIndex:
    """The trees of one set, as far as they were read. `rows` holds a list of `COLUMNS` for each.

    `update` is for one thread; everything else may be called from any. `version` changes when what was said before no
    longer holds: the file was replaced, or the verdicts of the run arrived.
    """

    def __init__(self, tree_set: TreeSet, kinds: Mapping[str, str]) -> None:
        self.set = tree_set
        self.rows: list[list[Any]] = []
        self.unreadable = 0
        """lines that hold no tree"""
        self.version = 0
        self._kinds = kinds
        self._size = self._offset = 0
        self._places: list[Place] = []
        self._seen: tuple[Any, ...] = ()
        self._graded: dict[tuple[str, str, str], bool | None] = {}
        self._chosen: dict[str, bool] = {}
        self._verdicts: dict[str, Verdicts] = {}
        self._labels: dict[str, Place] = {}
        self._lock = threading.Lock()

    @property
    def share(self) -> float:
        """How much of the file was read, in [0, 1]."""
        return self._offset / self._size if self._size else 1.0

    def update(self, seconds: float = 1.0) -> bool:
        """Read on for about so long. Returns whether all there is was read."""
        try:
            with self.set.trees.open("rb") as file:
                self._look(file.fileno())
                file.seek(self._offset)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    line = file.readline()
                    if not line.endswith(b"\n"):  # the end, or still being written
                        return True
                    self._take(line)
        except OSError:  # moved away while it was looked at
            return True
        return False

    def listed(self, start: int, count: int) -> tuple[int, list[list[Any]]]:
        """The version, and the rows from `start` on, at most `count` of them."""
        with self._lock:
            return self.version, self.rows[start : start + count]

    def read(self, row: int) -> tuple[Tree, dict[str, Any] | None]:
        """The tree of a row, and the labels that the run gave it. Raises StoreError when it is no longer there."""
        with self._lock:
            if not 0 <= row < len(self._places):
                raise StoreError(f"{self.set.trees} has no tree {row}; it has {len(self._places)}")
            place = self._places[row]
        try:
            tree = Tree.from_record(_parsed(_piece(self.set.trees, place)))
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self.set.trees}, byte {place[0]}: {error}; search again, or mend the file") from None
        labels, place_of_labels = self.set.labels, self._labels.get(tree.problem.id)
        if labels is None or place_of_labels is None:
            return tree, None
        try:
            found = _parsed(_piece(labels, place_of_labels))
        except (ValueError, StoreError):  # replaced since; the next look will tell
            return tree, None
        whole = all(len(found.get(name) or ()) == len(tree) for name in ("correct", "m", "r", "w", "v"))
        return tree, found if whole else None

    def _look(self, descriptor: int) -> None:
        """Start over when this is another file than before, or when the run has graded these trees since."""
        stat, rows, labels = os.fstat(descriptor), self.set.rows, self.set.labels
        seen = stat.st_dev, stat.st_ino, _changed(rows), _changed(labels)
        if seen != self._seen or stat.st_size < self._offset:
            with self._lock:
                self._seen = seen
                self.rows, self._places, self._offset, self.unreadable = [], [], 0, 0
                self.version += 1
            self._chosen = {str(row["id"]): bool(row["correct"]) for _, row in _records(rows)}
            self._verdicts, self._labels = {}, {}
            for place, record in _records(labels):
                self._verdicts[str(record["id"])] = record["correct"]
                self._labels[str(record["id"])] = place
        self._size = stat.st_size

    def _take(self, line: bytes) -> None:
        row = None
        if line.strip():
            try:
                row = self._row(_parsed(line))
            except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                self.unreadable += 1
        with self._lock:
            if row is not None:
                self._places.append((self._offset, len(line)))
                self.rows.append(row)
            self._offset += len(line)

    def _row(self, tree: Mapping[str, Any]) -> list[Any]:
        problem, usage, result = tree["problem"], tree["usage"], tree["result"]
        name, question, parent = str(problem["id"]), str(problem["question"]), tree["parent"]
        verdicts = self._verdicts_on(tree)
        known = [verdict for verdict in verdicts if verdict is not None]
        right = self._chosen.get(name)
        if right is None and problem["answer"] is not None:
            right = False if result is None else verdicts[result]
        depth = [0] * len(parent)
        for node in range(1, len(parent)):
            depth[node] = depth[parent[node]] + 1
        both = zip(tree["raw_value"], verdicts, strict=True)
        gaps = [abs(said - true) for said, true in both if said is not None and true is not None]
        found = {
            "key": question_key(name, question),
            "id": name,
            "question": question[:_SHOWN],
            "kind": self._kinds.get(name),
            "gold": problem["answer"],
            "answer": tree["final_answer"],
            "right": right,
            "reached": any(known) if known else None,
            "value": None if result is None else tree["raw_value"][result],
            "gap": sum(gaps) / len(gaps) if gaps else None,
            "nodes": len(parent),
            "finished": tree["status"].count("finished"),
            "depth": max(depth),
            "iterations": max(tree["iteration"]),
            "policy_tokens": usage["policy_tokens"],
            "value_tokens": usage["value_tokens"],
            "seconds": round(usage["seconds"], 2),
            "stop": tree["stop"],
            "method": tree["method"],
        }
        return [found[column] for column in COLUMNS]

    def _verdicts_on(self, tree: Mapping[str, Any]) -> Verdicts:
        """Per node whether its answer is right: as the run graded it, else as far as can be told at once."""
        problem, nodes = tree["problem"], len(tree["parent"])
        stored = self._verdicts.get(problem["id"])
        if stored is not None and len(stored) == nodes:
            del self._verdicts[problem["id"]]  # it has served
            return stored
        gold, task = problem["answer"], str(problem.get("task") or "math")
        if gold is None:
            return [None] * nodes
        return [
            self._grade(task, str(gold), str(answer)) if status == "finished" and answer is not None else None
            for status, answer in zip(tree["status"], tree["answer"], strict=True)
        ]

    def _grade(self, task: str, gold: str, answer: str) -> bool | None:
        asked = task, gold, answer
        if asked not in self._graded:
            try:
                self._graded[asked] = get_task(task).compare(gold, answer)
            except TaskError:
                self._graded[asked] = None
        return self._graded[asked]


def question_key(name: str, question: str) -> str:
    """Equal for equal questions of one name, whichever stage they are found in."""
    return hashlib.sha256(f"{name}\0{question}".encode("utf-8", "replace")).hexdigest()[:12]


def _records(path: Path | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The graded records of a finished JSONL file with their places; what is none of ours is passed over."""
    if path is None:
        return
    start = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = _parsed(line)
            except (ValueError, RecursionError):
                record = {}
            if {"id", "correct"} <= record.keys():
                yield (start, len(line)), record
            start += len(line)


def _piece(path: Path, place: Place) -> bytes:
    with explained(path, "read"), path.open("rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def _parsed(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError where there is none, or one that holds what is no JSON (NaN)."""
    record = json.loads(line, parse_constant=_no_json)
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    return record


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _changed(path: Path | None) -> float:
    """When a file was last changed; 0 where there is none."""
    try:
        return path.stat().st_mtime if path is not None else 0.0
    except OSError:
        return 0.0
