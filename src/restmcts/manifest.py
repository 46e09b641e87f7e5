"""What a stage leaves to show that it is done, or that it was begun; and how files and folders are known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from restmcts.errors import Damaged, StoreError
from restmcts.files import explained, read_json, sample

MANIFEST_SCHEMA = 1
MANIFEST = "manifest.json"
BEGUN = "begun.json"
CARD = "README.md"
"""a model's card (`cards`): no part of what its stage made, since it is written anew when more is known"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished stage was made from and what came of it."""

    stage: str
    settings: dict[str, Any]
    """the settings that matter to the stage's result"""
    inputs: dict[str, dict[str, str]]
    """label → path (relative inside the run folder) and sha256"""
    metrics: dict[str, Any]
    seconds: float
    """time spent on the stage, interrupted attempts included"""
    versions: dict[str, str]
    finished: str
    """when, in UTC"""
    files: dict[str, str] = field(default_factory=dict)
    """what the stage made (`files.inventory`); by it the stage is known to those that read it"""
    schema: int = MANIFEST_SCHEMA

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises StoreError when the file is of another schema or cannot be read, Damaged when it is no manifest."""
        record = read_mark(path)
        if record.get("schema") != MANIFEST_SCHEMA:
            raise StoreError(f"{path} is not a manifest of schema {MANIFEST_SCHEMA}; use the restmcts that wrote it")
        record.setdefault("files", {})  # there was a time without them
        return cls(**checked(path, record, {f.name: _KINDS[str(f.type)] for f in fields(cls)}))

    @property
    def made(self) -> str:
        """A fingerprint of what the stage made."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of a folder's content. Raises StoreError when it cannot be read.

    A finished stage's folder is known by what its manifest says that it made; in any other folder names, sizes and the
    content of small files count, and of big ones (model weights) the ends.
    """
    with explained(path, "read"):
        if (path / MANIFEST).is_file():
            manifest = Manifest.read(path / MANIFEST)
            if manifest.files:
                return manifest.made
            path = path / MANIFEST
        if path.is_dir():
            total = hashlib.sha256()
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
                total.update(sample(file))
            return total.hexdigest()
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def as_begun(manifest: Manifest) -> dict[str, Any]:
    """The mark of a finished stage that is taken up again."""
    same = {"stage": manifest.stage, "settings": manifest.settings, "inputs": manifest.inputs}
    return {**same, "seconds": manifest.seconds, "attempts": 1}


_KINDS: dict[str, Any] = {"str": str, "float": (int, float), "int": int} | dict.fromkeys(
    ("dict[str, Any]", "dict[str, str]", "dict[str, dict[str, str]]"), dict
)
"""what JSON gives for the fields of a manifest"""


def read_mark(path: Path) -> dict[str, Any]:
    """What a manifest or the note of a beginning says. Raises Damaged when it is not even JSON."""
    try:
        record = read_json(path)
    except StoreError as error:
        raise (error if isinstance(error.__cause__, OSError) else Damaged(str(error))) from error.__cause__
    if not isinstance(record, dict):
        raise Damaged(f"{path} is no object; restore it, or redo the stage")
    return record


def checked(path: Path, record: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The fields named in `kinds`. Raises Damaged when some are missing or of another kind."""
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    inputs = record.get("inputs")
    if not wrong and not all(
        isinstance(i, dict) and {"path", "sha256"} <= i.keys() for i in dict(inputs or {}).values()
    ):
        wrong = ["inputs"]
    if wrong:
        raise Damaged(f"{path} lacks {', '.join(wrong)}; restore it, or redo the stage")
    return {name: record[name] for name in kinds}


def read_begun(path: Path) -> dict[str, Any]:
    """How an unfinished stage was begun. Raises Damaged when the file does not say."""
    return checked(path, read_mark(path), {"settings": dict, "inputs": dict, "seconds": (int, float)})
