"""What a run will do with what its folder holds already: `restmcts run --dry-run`. Reads only, and loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from restmcts.config import RunConfig, dump_yaml, read_yaml
from restmcts.loop import check
from restmcts.manifest import BEGUN, MANIFEST, Manifest
from restmcts.plan import make_plan
from restmcts.results import CONFIG, differing
from restmcts.tables import ABSENT, Table, count, duration

if TYPE_CHECKING:
    from rich.console import Console

FINISHED, BEGAN, TO_DO = "finished", "begun", "to do"


def show_run(config: RunConfig, console: Console) -> None:
    """Print the settings as YAML, defaults included, and the stages."""
    table = stages_table(config)
    print(dump_yaml(config), end="")
    table.show(console)


def stages_table(config: RunConfig) -> Table:
    """The stages of a run in their order: which are finished, which are begun. Raises ConfigError, StoreError."""
    check(config)
    plan = make_plan(config)
    table = Table(f"Stages in {config.out}", ["stage", "questions", "state", "time"])
    for stage in plan.stages:
        state, seconds = state_of(config.out / stage.name)
        asked = count(stage.questions) if stage.questions else ABSENT
        table.rows.append([stage.name, asked, state, duration(seconds)])
    states = [row[2] for row in table.rows]
    table.notes.append(f"{states.count(FINISHED)} of {len(states)} stages are finished. Nothing was run.")
    table.notes += plan.guessed
    changed = changed_settings(config)
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        table.notes.append(
            f"Other than in {config.out / CONFIG}: {', '.join(changed[:5])}{more}. A finished stage that one of these "
            "settings made is refused until it is redone (--redo)."
        )
    return table


def state_of(folder: Path) -> tuple[str, float | None]:
    """How far a stage is, and the seconds spent on it, where it is finished."""
    if (folder / MANIFEST).is_file():
        return FINISHED, Manifest.read(folder / MANIFEST).seconds
    return (BEGAN if (folder / BEGUN).is_file() else TO_DO), None


def changed_settings(config: RunConfig) -> list[str]:
    """Names of the settings that are not as the run's folder has them; speed settings may change at any time."""
    path = config.out / CONFIG
    if not path.is_file():
        return []
    return [name for name in differing(read_yaml(path), config.model_dump(mode="json")) if not _free(name)]


def _free(name: str) -> bool:
    return name.startswith(("engine.", "stage_budget.", "compare.")) or name in ("rounds", "engine", "stage_budget")
