"""Where a run keeps what an export is made of: rows as they are stored, or the trees and labels behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from restmcts.datasets import policy_rows, step_pairs, value_rows
from restmcts.errors import StoreError
from restmcts.evaluate import TREES
from restmcts.files import numbered_jsonl
from restmcts.formats.common import Kind, Solved, marked
from restmcts.manifest import MANIFEST, Manifest
from restmcts.rows import (
    LABELS,
    PAIRS,
    POLICY_ROWS,
    VALUE_ROWS,
    PolicyRow,
    PreferenceRow,
    TreeLabels,
    ValueRow,
    read_rows,
)
from restmcts.types import Tree

FILES: dict[Kind, str] = {
    "policy": POLICY_ROWS,
    "pairs": PAIRS,
    "value": VALUE_ROWS,
    "marked": VALUE_ROWS,
    "solutions": LABELS,
}
"""kind of export → the file it is made of"""
_ROUND = re.compile(r"round-(\d+)")


def read(
    source: Path, kind: Kind, *, round: int | None = None, from_trees: bool = False, margin: float = 0.0
) -> Iterator[Any]:
    """What an export of `kind` is made of, one after the other; None for what holds nothing to export.

    `source` is a file, the folder of a stage, or a run, whose last round is taken unless another is named. With
    `from_trees`, all that labelled trees hold, in place of the rows that were chosen to be trained on. Pairs that no
    stage made are those of sibling steps at least `margin` apart in v. Raises StoreError where there is nothing.
    """
    stored = None if from_trees and kind != "solutions" else find(source, FILES[kind], round)
    if kind == "solutions":
        if stored is None:
            raise _nothing(source, LABELS, round)
        yield from _solutions(*trees_and_labels(stored))
    elif stored is None:
        labels = find(source, LABELS, round) if source.is_dir() else None
        if labels is None or (kind != "pairs" and not from_trees):
            raise _nothing(source, LABELS if from_trees else FILES[kind], round)
        yield from _of_trees(kind, *trees_and_labels(labels), margin)
    elif kind == "policy":
        yield from read_rows(stored, PolicyRow)
    elif kind == "pairs":
        yield from read_rows(stored, PreferenceRow)
    else:
        rows = read_rows(stored, ValueRow)
        yield from marked(rows) if kind == "marked" else rows


def find(source: Path, name: str, round: int | None = None) -> Path | None:
    """The file `name` of a source: of a run, that of its last round, or of the one named."""
    if source.is_file():
        return source
    if round is None and (source / name).is_file():
        return source / name
    found: dict[int, Path] = {}
    for path in sorted(source.glob(f"round-*/*/{name}")):
        number = _ROUND.fullmatch(path.parents[1].name)
        if number is not None:
            found[int(number[1])] = path
    return found.get(max(found, default=0) if round is None else round)


def _nothing(source: Path, name: str, round: int | None) -> StoreError:
    if not source.exists():
        return StoreError(f"no such file or folder: {source}")
    where = f"{source}" if round is None else f"round {round} of {source}"
    return StoreError(f"{where} holds no {name}; give a run, the folder of a label stage, or a file of such rows")


def trees_and_labels(labels: Path) -> tuple[list[Tree], list[TreeLabels]]:
    """The labelled trees of a label stage whose labels.jsonl this is, in its order. Raises StoreError."""
    path = _trees_of(labels.parent)
    trees: dict[str, Tree] = {}
    for number, record in numbered_jsonl(path, skip_torn=True):
        try:
            tree = Tree.from_record(record)
        except ValueError as error:
            raise StoreError(f"{path}, line {number}: {error}; search again, or mend the file") from None
        trees[tree.problem.id] = tree
    records = read_rows(labels, TreeLabels)
    missing = next((record.id for record in records if record.id not in trees), None)
    if missing is not None:
        raise StoreError(f"{path} holds no tree of {missing!r}, which {labels} labels; label the trees again")
    return [trees[record.id] for record in records], records


def _trees_of(folder: Path) -> Path:
    """The trees that a label stage was made from: its own, with completions, else those its manifest names."""
    if (folder / TREES).is_file():
        return folder / TREES
    if not (folder / MANIFEST).is_file():
        raise StoreError(f"{folder} holds no {MANIFEST} that names its trees; give the folder of a label stage")
    inputs = Manifest.read(folder / MANIFEST).inputs
    run = folder.parents[1] if _ROUND.fullmatch(folder.parent.name) else folder
    own = f"trees of {folder.parent.name}"
    named = next((inputs[label]["path"] for label in (own, "trees") if label in inputs), None)
    path = run / (named or "")  # an absolute path stays as it is
    path = path / TREES if path.is_dir() else path
    if named is None or not path.is_file():
        raise StoreError(f"{folder} was labelled from {named or 'no trees'}, which is not there; put it back")
    return path


def _of_trees(kind: Kind, trees: Sequence[Tree], labels: Sequence[TreeLabels], margin: float) -> Iterator[Any]:
    if kind == "policy":
        yield from policy_rows(trees, labels)
    elif kind == "pairs":
        yield from step_pairs(trees, labels, margin=margin)
    else:
        rows = value_rows(trees, labels)
        yield from marked(rows) if kind == "marked" else rows


def _solutions(trees: Sequence[Tree], labels: Sequence[TreeLabels]) -> Iterator[Solved]:
    for tree, record in zip(trees, labels, strict=True):
        if len(record.correct) != len(tree):
            raise StoreError(f"labels of {record.id!r} do not fit its tree: label it again")
        for leaf, correct in enumerate(record.correct):
            if correct is not None and tree.status[leaf] == "finished":
                yield Solved(tree, leaf, correct)
