"""Options that commands share, and what all of them do with them: read settings, show progress, set stages aside.

Settings are read alike everywhere: defaults, `--preset`, a YAML file, flags, `--set name=value`, each over the one
before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from restmcts.config import RunConfig
    from restmcts.console import Progress

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
Preset = Annotated[str | None, typer.Option(help="built-in settings to start from, e.g. demo")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="any setting, by its dotted name")]
Policy = Annotated[
    str | None, typer.Option(help="embedded, a checkpoint folder, a hub id, or scripted (no model, for trying out)")
]
Value = Annotated[str | None, typer.Option(help="value model: a checkpoint folder or a hub id")]
Problems = Annotated[
    str | None,
    typer.Option(help="JSONL, JSON, CSV or Parquet file, hub data set name[:config][@split], or gsm8k, math500, …"),
]
Method = Annotated[
    str | None, typer.Option(help="rest-mcts, rest-em, self-rewarding, mcts-dpo or online; default: rest-mcts")
]
Labels = Annotated[
    str | None, typer.Option(help="who says what is right: oracle (the known answers), majority or judge")
]
Out = Annotated[Path, typer.Option(help="folder for the results; run the same command again to resume")]
Seed = Annotated[int | None, typer.Option(help="of everything random")]
Redo = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="set aside a stage (named as its folder) and all that follows from it"),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="search on a Ray cluster: HOST:PORT, or auto for the one of this machine"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]


def listed(text: str | None) -> list[str] | None:
    """The parts between commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def read_settings(path: Path | None, preset: str | None, overrides: list[str] | None, **flags: Any) -> RunConfig:
    """The settings of a command, checked; flags that are None say nothing. Raises ConfigError."""
    from restmcts.config import load_config

    if (ray := flags.pop("ray", None)) is not None:
        flags["cluster"] = {"address": ray}
    return load_config(path, preset=preset, flags=flags, overrides=overrides or ())


def set_aside(out: Path, stages: list[str] | None, progress: Progress) -> None:
    """What `--redo` asks for."""
    from restmcts.store import RunFolder

    if stages:
        with RunFolder(out) as folder:
            for stage in stages:
                progress.say(f"set aside: {', '.join(folder.redo(stage))}")


def show_progress(quiet: bool) -> Progress:
    """Progress on a terminal, lines elsewhere, nothing if `quiet`."""
    from restmcts.console import Progress

    return Progress(mode="quiet" if quiet else "auto")
