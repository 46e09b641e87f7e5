"""Files that are whole: written at once or not at all, or line by line with a torn last line repaired."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from restmcts.errors import StoreError

log = logging.getLogger("restmcts")

PART = ".part"
"""ends the name of a file that is being written; one that is left behind never was the file it was to become"""
TORN = ".torn"
"""ends the name of the file beside a file of records to which its damaged lines are moved"""


@contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an `OSError` about `path` into a StoreError of one line that names the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(_explain(error, path, doing)) from error
    except ValueError as error:
        if "null byte" not in str(error) and not isinstance(error, UnicodeEncodeError):
            raise
        raise StoreError(f"cannot {doing} {str(path)!r}: that is no path; choose another one") from None


def _explain(error: OSError, path: Path, doing: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: cannot {doing} {path}; free some space and run the same command again, nothing is lost"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"cannot {doing} {path}: a file is where a folder is needed; choose another place"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot {doing} {path}: no permission; choose a place you may write to"
    if error.errno == errno.ENOENT and doing == "read":
        return f"no such file: {path}"
    if error.errno == errno.EISDIR:
        return f"cannot {doing} {path}: it is a folder, a file is needed"
    return f"cannot {doing} {path}: {error.strerror or error}"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`, which is then there whole or as it was, also after a power cut.

    Raises StoreError.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        _sync_folder(path.parent)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises StoreError."""
    with replacing(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically, indented. Raises StoreError."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file. Raises StoreError naming the file when it is missing or no JSON."""
    with explained(path, "read"):
        raw = path.read_bytes()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON ({error}); restore it, or redo the stage that wrote it") from None


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, one JSON object a line, atomically. Raises StoreError."""
    with replacing(path) as file:
        for record in records:
            file.write(_line(record))


def read_jsonl(path: str | Path, *, skip_torn: bool = False) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; blank lines are passed over.

    With `skip_torn` a broken last line without its newline is passed over: it is still owed by whoever writes the
    file. Raises StoreError naming file and line for everything else that is not a JSON object.
    """
    return (record for _, record in numbered_jsonl(path, skip_torn=skip_torn))


def numbered_jsonl(
    path: str | Path, *, skip_torn: bool = False, damaged: dict[int, str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`, with the number of each line. Where `damaged` is given, lines that hold no JSON object are
    passed over and noted there, with what is wrong with them."""
    path = Path(path)
    with explained(path, "read"):
        file = path.open("rb")
    with file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            record, problem = _parse(raw)
            if record is not None:
                yield number, record
            elif damaged is not None:
                damaged[number] = problem
            elif not (skip_torn and not raw.endswith(b"\n")):
                raise StoreError(f"{path}, line {number}: {problem}; each line must be one JSON object")


def set_aside_lines(path: Path, damaged: Mapping[int, str]) -> None:
    """Move the lines numbered in `damaged`, with what is wrong with them, to NAME.torn, and say so. Raises StoreError.

    They are there before they are gone here.
    """
    if not damaged:
        return
    torn = path.with_name(path.name + TORN)
    with replacing(path) as kept, path.open("rb") as file, torn.open("ab") as aside:
        for number, raw in enumerate(file, start=1):
            (aside if number in damaged else kept).write(raw.rstrip(b"\n") + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    first, problem = next(iter(damaged.items()))
    many = f"line {first}" if len(damaged) == 1 else f"{len(damaged)} lines, the first of them line {first}"
    log.warning("%s is damaged (%s: %s): set aside in %s, and owed again", path, many, problem, torn.name)


def _parse(raw: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        record = json.loads(raw)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        return None, f"not JSON ({error})"
    except RecursionError:
        return None, "JSON nested too deeply"
    if not isinstance(record, dict):
        return None, f"JSON, but {type(record).__name__} and not an object"
    return record, ""


def _line(record: Mapping[str, Any]) -> bytes:
    # allow_nan: NaN is no JSON; a writer that has one must say null.
    compact: Any = {"allow_nan": False, "separators": (",", ":")}
    try:
        return (json.dumps(record, ensure_ascii=False, **compact) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate from a model's broken text has no UTF-8, but it has an escape
        return (json.dumps(record, ensure_ascii=True, **compact) + "\n").encode("ascii")


def sync_tree(folder: Path) -> None:
    """Put everything in a folder on the disk, and take away what was left of writes cut short. Raises StoreError."""
    with explained(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                _sync_folder(path)
            elif path.name.endswith(PART) and path.name.startswith("."):
                path.unlink()
            elif path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(folder)


def inventory(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """The files of a folder, hidden ones and those `without` apart: name → size and hash of content (`sample`)."""
    left_out = set(without)
    found: dict[str, str] = {}
    with explained(folder, "read"):
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = any(part.startswith(".") or part in left_out for part in parts) or path.name.endswith(TORN)
            if path.is_file() and not hidden:
                found["/".join(parts)] = f"{path.stat().st_size} {sample(path, 1 << 25).hex()}"
    return found


def damage(folder: Path, files: Mapping[str, str]) -> str | None:
    """What has become of the `files` that `inventory` found in a folder: None, or the first that is gone or changed.

    A small file of settings may be edited; of records and weights every byte counts.
    """
    for name, was in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is gone"
        if path.suffix in (".jsonl", ".safetensors"):
            with explained(path, "read"):
                now = f"{path.stat().st_size} {sample(path, 1 << 25).hex()}"
            if now != was:
                return f"{path} has changed since it was written"
    return None


def sample(path: Path, piece: int = 1 << 20) -> bytes:
    """sha256 of the first and the last `piece` bytes of a file."""
    with path.open("rb") as file:
        head = file.read(piece)
        file.seek(max(piece, path.stat().st_size - piece))
        return hashlib.sha256(head + file.read(piece)).digest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JsonlWriter:
    """Appends records to a file, one JSON object a line, and keeps it whole.

    A record is with the operating system when `write` returns (it outlives the process) and on the disk at most
    `sync_seconds` later (it outlives the machine). A last line torn by an earlier crash is moved to `NAME.torn` on
    opening, so its record is owed again; when the disk is full, the partial line is taken back.
    """

    def __init__(self, path: str | Path, *, sync_seconds: float = 1.0) -> None:
        self.path = Path(path)
        self.sync_seconds = sync_seconds
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                self._size = self._repair(self._file)
            except BaseException:
                os.close(self._file)
                raise
        self._synced = time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Raises StoreError when it cannot be written; the file is as it was before."""
        self.write_many([record])

    def write_many(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records: all of them or, with a StoreError, none."""
        if self._file is None:
            raise StoreError(f"{self.path} is already closed")
        raw = b"".join(_line(record) for record in records)
        with explained(self.path):
            try:
                view = memoryview(raw)
                while view:
                    view = view[os.write(self._file, view) :]
            except BaseException:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(raw)
            if time.monotonic() - self._synced >= self.sync_seconds:
                self.sync()

    def sync(self) -> None:
        """Put everything written so far on the disk."""
        if self._file is not None:
            with explained(self.path):
                os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything on the disk and close; closing twice is fine."""
        if self._file is not None:
            descriptor, self._file = self._file, None
            with explained(self.path):
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self, descriptor: int) -> int:
        """Leave the file ending in a whole line; return its size."""
        size = os.fstat(descriptor).st_size
        start = _last_line_start(descriptor, size)
        last = os.pread(descriptor, size - start, start)
        if not last.strip() and last.endswith(b"\n"):
            return size
        record, _ = _parse(last) if last else ({}, "")
        if record is None:
            torn = self.path.with_name(self.path.name + TORN)
            with torn.open("ab") as aside:
                aside.write(last.rstrip(b"\n") + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            os.ftruncate(descriptor, start)
            log.warning("%s: its torn last line is set aside in %s, and owed again", self.path, torn.name)
            return start
        if last and not last.endswith(b"\n"):
            size += os.write(descriptor, b"\n")
        return size


def _last_line_start(descriptor: int, size: int) -> int:
    """Where the last line begins; the newline that may end the file does not count."""
    end, chunk = size, 1 << 16
    skip = 1  # the final newline, if there is one
    while end > 0:
        begin = max(0, end - chunk)
        block = os.pread(descriptor, end - begin, begin)
        found = block.rfind(b"\n", 0, len(block) - skip)
        if found >= 0:
            return begin + found + 1
        end, skip = begin, 0
    return 0
