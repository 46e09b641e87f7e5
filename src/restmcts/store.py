"""The run folder: what is finished stays finished, and what is half done can be taken up again.

A stage is finished when its `manifest.json` exists. Everything a stage makes is on the disk before its manifest is,
so the same command, run again after Ctrl-C, `kill -9` or a power cut, goes on exactly where the disk says. What is
found damaged is named, set aside and made again; nothing is deleted.
"""

from __future__ import annotations

import json
import logging
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

from restmcts.errors import ConfigError, Damaged, StoreError
from restmcts.files import (
    PART,
    JsonlWriter,
    damage,
    explained,
    inventory,
    read_json,
    read_jsonl,
    sync_tree,
    write_atomic,
    write_json,
    write_jsonl,
)
from restmcts.lock import Lock
from restmcts.manifest import BEGUN, CARD, MANIFEST, Manifest, as_begun, fingerprint, read_begun

__all__ = [
    "BEGUN",
    "MANIFEST",
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

LOCK = "run.lock"
SET_ASIDE = ".set-aside"
WHOLE = "."
"""the stage whose folder is the run folder itself: a stage done alone"""
log = logging.getLogger("restmcts")
_RECORDED_VERSIONS = ("restmcts", "numpy", "torch", "transformers", "peft", "trl", "accelerate", "math-verify")


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
        self._begun = as_begun(self.manifest)
        write_json(self.path / BEGUN, self._begun)
        with explained(self.path):
            (self.path / MANIFEST).unlink()
        self.manifest = None
        self._since = time.monotonic()

    def finish(self, metrics: Mapping[str, Any] | None = None) -> Manifest:
        """Put everything in the folder on the disk, then write the manifest. Raises StoreError."""
        sync_tree(self.path)
        manifest = Manifest(
            stage=self.name,
            settings=self._begun["settings"],
            inputs=self._begun["inputs"],
            metrics=_plain(dict(metrics or {})),
            seconds=round(self.seconds, 3),
            versions=_versions(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            files=inventory(self.path, without=(BEGUN, CARD, MANIFEST, LOCK)),
        )
        write_json(self.path / MANIFEST, asdict(manifest))
        with explained(self.path):
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
        with explained(self.path):
            for part in self.path.glob(f".*{PART}"):  # whoever was writing it is gone
                part.unlink(missing_ok=True)

    def finished(self, name: str) -> Manifest | None:
        """The manifest of stage `name`, or None while it is not finished. Raises StoreError if it is unreadable."""
        path = self.path / name / MANIFEST
        return Manifest.read(path) if path.exists() else None

    def stage(
        self, name: str, *, settings: Mapping[str, Any], inputs: Mapping[str, str | Path] | None = None
    ) -> StageFolder:
        """Begin, resume or look up a stage (`done` tells which).

        `settings` are those that change the stage's result, nested as you like; `inputs` are the files and folders
        it reads. Raises ConfigError when the stage was made, wholly or in part, with other settings or inputs, and
        Damaged when it cannot be made because an earlier one has lost what it made: that one is owed again.
        """
        manifest = self._sound_manifest(name)
        if manifest is not None:
            with explained(self.path):  # a process may have died between the manifest and this
                (self.path / name / BEGUN).unlink(missing_ok=True)
        now = {"settings": _plain(settings), "inputs": {}}
        earlier = asdict(manifest) if manifest is not None else self._begun(name)
        if earlier is not None:
            self._check_settings(name, earlier["settings"], now["settings"])
        if manifest is None:
            self.check_whole(inputs or {})
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
        aside = self._aside()
        # The stage itself goes last: a redo that is cut short leaves nothing that was made from what is gone.
        for stage in sorted(gone, key=lambda stage: (stage == name or stage.startswith(name + "/"), stage)):
            self._move(stage, aside)
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
        mark = self.path / name / BEGUN
        if not mark.exists() or not any(file.stat().st_size for file in self._work(name)):
            return None
        return read_begun(mark)

    def _work(self, name: str) -> Iterator[Path]:
        """What a stage has written, its marks apart."""
        for file in (self.path / name).rglob("*"):
            inside = file.relative_to(self.path).parts
            own = file.name in (BEGUN, LOCK, MANIFEST) or file.name.endswith(PART) or SET_ASIDE in inside
            if file.is_file() and not own:
                yield file

    def _sound_manifest(self, name: str) -> Manifest | None:
        """As `finished`; a stage whose marks cannot be read is set aside, for nobody knows what made it."""
        try:
            manifest = self.finished(name)
            if manifest is None:
                self._begun(name)
            return manifest
        except Damaged as error:
            aside = self._aside()
            self._move(name, aside)
            log.warning("%s: %s is set aside in %s, and done again", error, self._called(name), aside)
            return None

    def check_whole(self, inputs: Mapping[str, str | Path]) -> None:
        """Raise Damaged where an input was made by a finished stage and is no longer what it made.

        A stage of this run is then taken up again, with what is left of its work.
        """
        for path in map(Path, inputs.values()):
            folder = path if (path / MANIFEST).is_file() else path.parent
            if not (folder / MANIFEST).is_file() or not folder.resolve().is_relative_to(self.path.resolve()):
                continue
            manifest = Manifest.read(folder / MANIFEST)
            problem = damage(folder, manifest.files)
            if problem is None:
                continue
            aside = self._aside()
            inside = folder.resolve().relative_to(self.path.resolve())
            with explained(aside):
                (aside / inside).mkdir(parents=True)
                for file in folder.iterdir():
                    if file.is_file() and (file.suffix == ".jsonl" or file.name == MANIFEST):
                        shutil.copy2(file, aside / inside)
                write_json(folder / BEGUN, as_begun(manifest))
                (folder / MANIFEST).unlink()
            raise Damaged(
                f"{problem}: copies of what is left are in {aside}, and {inside.as_posix()} is taken up again"
            )

    def _aside(self) -> Path:
        """A new place for what is set aside."""
        return self.path / SET_ASIDE / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"

    def _move(self, name: str, aside: Path) -> None:
        """Move the folder of a stage to `aside`; of one that is the whole run folder, what is in it."""
        folder = self.path / name
        with explained(aside):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            if name != WHOLE:
                folder.rename(aside / name)
                return
            aside.mkdir(exist_ok=True)
            for entry in folder.iterdir():
                if entry.name not in (LOCK, SET_ASIDE):
                    entry.rename(aside / entry.name)

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
