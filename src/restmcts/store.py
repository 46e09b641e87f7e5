"""The run folder: what is finished stays finished, and what is half done can be taken up again.

A stage is finished when its `manifest.json` exists. Everything a stage makes is on the disk before its manifest is,
so the same command, run again after Ctrl-C, `kill -9` or a power cut, goes on exactly where the disk says.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

from restmcts.errors import ConfigError, StoreError
from restmcts.files import (
    JsonlWriter,
    explained,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
    write_jsonl,
)
from restmcts.lock import Lock

__all__ = [
    "JsonlWriter",
    "Manifest",
    "RunFolder",
    "StageFolder",
    "explained",
    "fingerprint",
    "read_json",
    "read_jsonl",
    "write_atomic",
    "write_json",
    "write_jsonl",
]

MANIFEST_SCHEMA = 1
MANIFEST = "manifest.json"
BEGUN = "begun.json"
LOCK = "run.lock"
SET_ASIDE = ".set-aside"
WHOLE = "."
"""the stage whose folder is the run folder itself: a stage done alone"""
_RECORDED_VERSIONS = ("restmcts", "numpy", "torch", "transformers", "peft", "accelerate", "math-verify")


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
    schema: int = MANIFEST_SCHEMA

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises StoreError when the file cannot be read or is of another schema."""
        record = read_json(path)
        if not isinstance(record, dict) or record.get("schema") != MANIFEST_SCHEMA:
            raise StoreError(f"{path} is not a manifest of schema {MANIFEST_SCHEMA}; use the restmcts that wrote it")
        missing = [f.name for f in fields(cls) if f.name not in record]
        if missing:
            raise StoreError(f"{path} lacks {', '.join(missing)}; restore it, or redo the stage")
        return cls(**{f.name: record[f.name] for f in fields(cls)})


class StageFolder:
    """One stage of a run while it is worked on; `path` is its folder.

    As a context manager it remembers the time spent when the work is cut short. `done` says that the stage is
    finished and `manifest` tells with what result; else do the work and call `finish`.
    """

    def __init__(self, run: RunFolder, name: str, begun: dict[str, Any], manifest: Manifest | None) -> None:
        self.path = run.path / name
        self.name = self.path.resolve().name if name == WHOLE else name
        self.manifest = manifest
        self._begun = begun
        self._since = time.monotonic()

    @property
    def done(self) -> bool:
        return self.manifest is not None

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt left its work here, unfinished."""
        return not self.done and bool(self._begun["attempts"])

    @property
    def seconds(self) -> float:
        """Time spent on the stage so far, earlier attempts included."""
        if self.manifest is not None:
            return self.manifest.seconds
        return float(self._begun["seconds"]) + time.monotonic() - self._since

    def reopen(self) -> None:
        """Take a finished stage up again: what it holds is kept, and more is to come. Raises StoreError."""
        assert self.manifest is not None
        old = self.manifest
        self._begun = {"stage": self._begun["stage"], "settings": old.settings, "inputs": old.inputs}
        self._begun |= {"seconds": old.seconds, "attempts": 1}
        write_json(self.path / BEGUN, self._begun)
        (self.path / MANIFEST).unlink()
        self.manifest = None
        self._since = time.monotonic()

    def finish(self, metrics: Mapping[str, Any] | None = None) -> Manifest:
        """Put everything in the folder on the disk, then write the manifest. Raises StoreError."""
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                with explained(file), file.open("rb") as opened:
                    os.fsync(opened.fileno())
        manifest = Manifest(
            stage=self.name,
            settings=self._begun["settings"],
            inputs=self._begun["inputs"],
            metrics=_plain(dict(metrics or {})),
            seconds=round(self.seconds, 3),
            versions=_versions(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_json(self.path / MANIFEST, asdict(manifest))
        (self.path / BEGUN).unlink(missing_ok=True)
        self.manifest = manifest
        return manifest

    def __enter__(self) -> StageFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.done:
            with suppress(StoreError):  # the reason for leaving matters more than this note
                write_json(self.path / BEGUN, {**self._begun, "seconds": self.seconds, "attempts": 1})


class RunFolder:
    """A run's folder, owned by this process until `close` (or its end).

    Raises StoreError when the folder cannot be made or another process works in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with explained(self.path, "make"):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path / LOCK)

    def finished(self, name: str) -> Manifest | None:
        """The manifest of stage `name`, or None while it is not finished. Raises StoreError if it is unreadable."""
        path = self.path / name / MANIFEST
        return Manifest.read(path) if path.exists() else None

    def stage(
        self, name: str, *, settings: Mapping[str, Any], inputs: Mapping[str, str | Path] | None = None
    ) -> StageFolder:
        """Begin, resume or look up a stage (`done` tells which).

        `settings` are those that change the stage's result, nested as you like; `inputs` are the files and folders
        it reads. Raises ConfigError when the stage was made, wholly or in part, with other settings or inputs.
        """
        manifest = self.finished(name)
        now = {"settings": _plain(settings), "inputs": {}}
        earlier = asdict(manifest) if manifest is not None else self._begun(name)
        if earlier is not None:
            self._check_settings(name, earlier["settings"], now["settings"])
        now["inputs"] = self._fingerprints(inputs or {}, needed=manifest is None)
        if earlier is not None:
            self._check_inputs(name, earlier["inputs"], now["inputs"])
        begun = {"stage": name, **now, "seconds": 0.0, "attempts": 0}
        if manifest is None:
            if earlier is not None:
                begun.update(seconds=earlier["seconds"], attempts=1)
            else:
                write_json(self.path / name / BEGUN, begun)
        return StageFolder(self, name, begun, manifest)

    def stages(self) -> list[str]:
        """Names of the stages finished or begun, in order of their paths."""
        marks = [*self.path.rglob(MANIFEST), *self.path.rglob(BEGUN)]
        names = {mark.parent.relative_to(self.path).as_posix() for mark in marks}
        return sorted(name for name in names if not name.startswith(SET_ASIDE))

    def redo(self, name: str) -> list[str]:
        """Set aside stage `name` (or all stages in folder `name`) and all that were made from it; return their names.

        Nothing is deleted: the folders move to `.set-aside/`. Raises ConfigError when there is no such stage.
        """
        name = name.strip("/")
        stages = self.stages()
        gone = {stage for stage in stages if stage == name or stage.startswith(name + "/")}
        if not gone:
            near = get_close_matches(name, stages, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(stages) or 'none yet'}"
            raise ConfigError(f"no stage {name!r} in {self.path}; {known}")
        reads = {stage: self._reads(stage, stages) for stage in stages}
        while more := {stage for stage in stages if stage not in gone and reads[stage] & gone}:
            gone |= more
        aside = self.path / SET_ASIDE / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        for stage in sorted(gone):
            with explained(aside):
                (aside / stage).parent.mkdir(parents=True, exist_ok=True)
                (self.path / stage).rename(aside / stage)
        return sorted(gone)

    def close(self) -> None:
        """Give the folder back; closing twice is fine."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begun(self, name: str) -> dict[str, Any] | None:
        """How an unfinished stage was begun; None where nothing came of it yet, so that a typo can be mended."""
        folder = self.path / name
        if not (folder / BEGUN).exists():
            return None
        work = (file for file in folder.rglob("*") if file.is_file() and file.name not in (BEGUN, LOCK))
        return read_json(folder / BEGUN) if any(file.stat().st_size for file in work) else None

    def _reads(self, stage: str, stages: list[str]) -> set[str]:
        """The stages whose files `stage` was made from."""
        manifest = self.finished(stage)
        record = asdict(manifest) if manifest is not None else self._begun(stage)
        paths = [entry["path"] for entry in (record or {"inputs": {}})["inputs"].values()]
        return {other for other in stages for path in paths if path == other or path.startswith(other + "/")}

    def _fingerprints(self, inputs: Mapping[str, str | Path], *, needed: bool) -> dict[str, dict[str, str]]:
        prints = {}
        for label, path in inputs.items():
            path = Path(path)
            if not needed and not path.exists():
                continue  # an input cleared away after the stage was finished cannot make it wrong
            inside = path.resolve().is_relative_to(self.path.resolve())
            shown = path.resolve().relative_to(self.path.resolve()) if inside else path.absolute()
            prints[label] = {"path": shown.as_posix(), "sha256": fingerprint(path)}
        return prints

    def _check_settings(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, after = dict(_flat(old)), dict(_flat(new))
        changed = [key for key in {**before, **after} if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
        if changed:
            shown = ", ".join(
                f"{key} = {_shown(before.get(key, _ABSENT))} (now {_shown(after.get(key, _ABSENT))})"
                for key in changed[:3]
            )
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ConfigError(f"{self._called(name)} was made with {shown}{more}; {_remedy(name)}")

    def _check_inputs(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for label, entry in new.items():
            if label in old and old[label]["sha256"] != entry["sha256"]:
                what = f"{entry['path']} has changed since"
                raise ConfigError(f"{self._called(name)} was made from another {label}: {what}; {_remedy(name)}")

    def _called(self, name: str) -> str:
        return str(self.path) if name == WHOLE else f"stage {name}"


_ABSENT = object()


def _remedy(name: str) -> str:
    return "use another --out, or move that folder away" if name == WHOLE else f"use another --out, or --redo {name}"


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of a folder's content. Raises StoreError when it cannot be read.

    A finished stage's folder is known by its manifest, which is written last and never again; in any other folder
    names, sizes and the content of small files count, and of big ones (model weights) the ends.
    """
    with explained(path, "read"):
        if (path / MANIFEST).is_file():
            path = path / MANIFEST
        if path.is_dir():
            total = hashlib.sha256()
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
                total.update(_sample(file))
            return total.hexdigest()
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def _sample(path: Path, piece: int = 1 << 20) -> bytes:
    with path.open("rb") as file:
        head = file.read(piece)
        file.seek(max(piece, path.stat().st_size - piece))
        return hashlib.sha256(head + file.read(piece)).digest()


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """`value` as it would come back from JSON, so that what is compared is what was stored."""
    return json.loads(json.dumps(value, default=str))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED_VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
