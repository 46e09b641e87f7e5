"""Rows of question sets: JSONL, JSON, CSV, TSV and Parquet files, and data sets of the Hugging Face hub.

Every row comes with the place it stands at ("train.jsonl:17"), and everything wrong with a source is a TaskError that
names that place and says what to do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from restmcts.errors import TaskError

Row = tuple[str, Mapping[str, Any]]
"""where the row stands, its columns"""

_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@\s]+))?(?:@(?P<split>\S+))?")
LARGEST = 4 << 30
"""bytes that a packed file may unpack to"""
_PARQUET_ROWS = 64
_LISTS = ("data", "problems", "questions", "examples", "rows", "train", "test")


def read_rows(source: str | Path) -> Iterator[Row]:
    """The rows of a file, or of a hub data set `name[:config][@split]`. Raises TaskError, also while reading."""
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise TaskError(f"{path} is a folder; give one file ({', '.join(READERS)})")
    if path.is_file():
        if reader is None:
            raise TaskError(f"{path} is of no known kind; give {', '.join(READERS)}")
        return reader(path)
    hub = _HUB.fullmatch(str(source))
    if reader is not None or isinstance(source, Path) or hub is None or str(source).startswith("."):
        raise TaskError(f"no such file: {source}; give a file, or a hub data set as name[:config][@split]")
    return read_hub(**hub.groupdict())


# ---------------------------------------------------------------- files


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            text = _text(raw, where)
            if text.strip():
                yield where, _object(_json(text, where), where)


def _json_file(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        value = _json(_text(file.read(), str(path)), str(path))
    if isinstance(value, dict):
        lists = [name for name in _LISTS if isinstance(value.get(name), list)]
        if len(lists) != 1:
            raise TaskError(
                f"{path} holds one object; give a list of objects, or one object a line as {path.stem}.jsonl"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise TaskError(f"{path} holds {kind_of(value)}; give a list of objects")
    for number, item in enumerate(value, start=1):
        where = f"{path}, item {number}"
        yield where, _object(item, where)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    with _open(path) as file:
        text = _text(file.read(), str(path))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    before = 0
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise TaskError(f"{path}:{lines.line_num}: broken row ({error}); check its quotes") from None
        where, before = f"{path}:{before + 1}", lines.line_num
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise TaskError(f"{where}: two columns have one name ({', '.join(header)}); rename one")
        elif len(cells) != len(header):
            raise TaskError(f"{where}: {len(cells)} cells where the header has {len(header)}; quote cells with commas")
        else:
            # A cell that was left empty says nothing about its column.
            yield where, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise TaskError(f"reading {path} needs pyarrow; run: pip install 'restmcts[hf]'") from None
    number = held = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
            _bounded(path, sum(group.total_byte_size for group in groups))
            # In small batches, and by row: what repeats takes no room in a file or a column, and all of it in rows.
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                columns = held + batch.nbytes
                for row in batch.to_pylist():
                    number += 1
                    held += sum(len(value) for value in row.values() if isinstance(value, str))
                    _bounded(path, max(columns, held))
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise TaskError(f"{path} is not a readable Parquet file ({_first_line(error)}); write it again") from None


def _bounded(path: Path, size: int) -> None:
    if size > LARGEST:
        raise TaskError(f"{path} holds more than {LARGEST >> 20} MiB of text; give it in parts")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json_file,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}; check that you may read it") from None


def _text(raw: bytes, where: str) -> str:
    """`raw` as text without a byte order mark. Null bytes and anything but UTF-8 are refused."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{_at(where, raw[: error.start])}: not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise TaskError(f"{_at(where, raw[: raw.index(0)])}: a null byte; save the file as UTF-8 text")
    return text


def _at(where: str, before: bytes) -> str:
    """`where`, with a line number if it is the name of a whole file."""
    return where if re.search(r":\d+$", where) else f"{where}:{before.count(10) + 1}"


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = _at(where, error.doc[: error.pos].encode("utf-8", "replace"))
        raise TaskError(f"{place}: not JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: JSON that cannot be read ({_first_line(error)}); mend or remove it") from None


def kind_of(value: Any) -> str:
    """What a value of a row is, in words."""
    names = {"int": "a number", "float": "a number", "bool": "a truth value", "str": "text", "dict": "an object"}
    name = type(value).__name__
    return names.get(name, "null" if value is None else f"a {name}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f'{where}: {kind_of(value)}, not an object; write {{"question": …, "answer": …}}')
    return value


# ---------------------------------------------------------------- hub


def read_hub(name: str, config: str | None, split: str | None) -> Iterator[Row]:
    """The rows of a hub data set; of all its configurations, or splits, one after the other, where "*" is asked for."""
    asked = name + (f":{config}" if config else "") + f"@{split or 'train'}"
    try:
        import datasets
    except ModuleNotFoundError:
        raise TaskError(f"no such file: {name}; and for the hub: pip install 'restmcts[hf]'") from None
    try:
        parts = datasets.get_dataset_config_names(name) if config == "*" else [config]
        tables = [
            (part, each, datasets.load_dataset(name, part, split=each))
            for part in parts
            for each in (datasets.get_dataset_split_names(name, part) if split == "*" else [split or "train"])
        ]
    except Exception as error:  # the library has no common base class for what can go wrong
        raise TaskError(
            f"{asked} is neither a file nor a data set that can be loaded from the hub ({_first_line(error)}); check "
            "the name and the connection, write name:config@split, or give a file"
        ) from None
    for part, each, rows in tables:
        where = name + (f":{part}" if part else "") + f"@{each}"
        for number, row in enumerate(rows, start=1):
            yield f"{where}, row {number}", row


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
