"""`restmcts export` and `restmcts import`: files in, files out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from restmcts.config import RunConfig, load_config
from restmcts.errors import ConfigError, StoreError, TaskError
from restmcts.files import replacing, write_jsonl
from restmcts.formats import EXPORTS, IMPORTS, stored
from restmcts.formats.common import ExportOptions, ImportOptions
from restmcts.job import models_and_files
from restmcts.results import CONFIG
from restmcts.rows import VALUE_ROWS, ValueRow, write_rows
from restmcts.store import RunFolder

F = TypeVar("F")
BATCH = 1000
"""rows that are written to a Parquet file at a time"""


def named(formats: dict[str, F], name: str) -> F:
    """The format of that name. Raises ConfigError with the nearest when there is none."""
    if name not in formats:
        near = get_close_matches(name, formats, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(formats)}"
        raise ConfigError(f"unknown format {name!r}; {hint}")
    return formats[name]


# ---------------------------------------------------------------- out


def settings_of(source: Path, config: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The settings of an export: those of the run it is made of, unless a file is given."""
    own = source / CONFIG
    return load_config(own if config is None and own.is_file() else config, overrides=overrides)


def export(
    name: str,
    source: Path,
    out: Path,
    options: ExportOptions,
    *,
    round: int | None = None,
    from_trees: bool = False,
    margin: float = 0.0,
    limit: int | None = None,
    force: bool = False,
) -> tuple[int, int]:
    """Write what is stored in `source` to the file `out`, JSONL or Parquet by its name, whole or not at all.

    Returns how many lines were written, and how many rows the format could not hold. Raises ConfigError for options
    that cannot be, StoreError for a source without such rows.
    """
    chosen = named(EXPORTS, name)
    if not 0 < options.threshold <= 1:
        raise ConfigError(f"--threshold {options.threshold:g}: it must be more than 0 and at most 1")
    if options.soft and name != "stepwise":
        raise ConfigError(f"--soft: {name} holds hard labels only; use --threshold, or the format stepwise")
    if out.suffix not in (".jsonl", ".json", ".parquet"):
        raise ConfigError(f"{out} is of no known kind; end it with .jsonl or .parquet")
    if out.exists() and not force:
        raise StoreError(f"{out} is there already; choose another name, or write over it with --force")
    counts = {"written": 0, "left out": 0}

    def lines() -> Iterator[dict[str, Any]]:
        for item in stored.read(source, chosen.of, round=round, from_trees=from_trees, margin=margin):
            made = list(chosen.write(item, options)) if item is not None else []
            counts["left out"] += not made
            for line in made:
                if limit is not None and counts["written"] >= limit:
                    return
                counts["written"] += 1
                yield line

    write_lines(out, lines())
    return counts["written"], counts["left out"]


def write_lines(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines or, by the file's name, as Parquet. Raises StoreError."""
    if out.suffix != ".parquet":
        write_jsonl(out, lines)
        return
    import pyarrow
    import pyarrow.parquet

    batches = iter(lambda: list(itertools.islice(lines, BATCH)), [])
    lines = iter(lines)
    try:
        with replacing(out) as file:
            first = pyarrow.Table.from_pylist(next(batches, []))
            with pyarrow.parquet.ParquetWriter(file, first.schema) as writer:
                writer.write_table(first)
                for batch in batches:
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema=first.schema))
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise StoreError(f"{out}: these rows do not fit a Parquet file ({said}); write .jsonl instead") from None


# ---------------------------------------------------------------- in


def import_rows(
    name: str, source: str, out: Path, options: ImportOptions, *, limit: int | None = None, skip_bad: bool = False
) -> dict[str, Any]:
    """Read labelled solutions of another project into OUT/value_rows.jsonl, which `restmcts train value` reads.

    Returns how many rows there are, how many of the source's said nothing, and how many were bad (with `skip_bad`).
    Raises TaskError naming the place of the first bad row, ConfigError for options that cannot be, and where `out` was
    made from another source or with other options.
    """
    read = named(IMPORTS, name)
    if not 0 <= options.neutral <= 1:
        raise ConfigError(f"--neutral {options.neutral:g}: it must be from 0 to 1")
    counts: dict[str, Any] = {"rows": 0, "said_nothing": 0, "bad": 0}

    def rows() -> Iterator[ValueRow]:
        for row in itertools.islice(read(source, options), limit):
            if isinstance(row, TaskError):
                if not skip_bad:
                    raise row
                counts["bad"] += 1
                counts.setdefault("first_bad", str(row))
            elif row is None:
                counts["said_nothing"] += 1
            else:
                counts["rows"] += 1
                yield row

    hub, files = models_and_files({"source": source})
    settings = {"format": name, **asdict(options), "limit": limit, "skip_bad": skip_bad, **hub}
    with RunFolder(out) as folder, folder.stage(".", settings=settings, inputs=files) as stage:
        if stage.manifest is not None:
            print(f"{out} is finished: nothing was read again")
            return stage.manifest.metrics
        write_rows(stage.path / VALUE_ROWS, rows())
        if not counts["rows"]:
            raise TaskError(f"{source}: none of its rows says anything about a step; is it {name}?")
        return stage.finish(counts).metrics
