"""The whole main job, `make run` after set-up: its time by stage, and what it reached.

The figures are read from the folder of a finished run; without one the preset runs into a temporary folder, which
takes as long as it takes. With an earlier run's folder they stand beside that one's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Figure
from restmcts.results import MODES, RunResults, accuracy, load_run, phase_name

PRESET = "demo"
MINUTES = 12.0
"""aims: the whole job's time, and how much faster than before it must be"""
FASTER = 2.0


def run(folder: Path | None = None, before: Path | None = None) -> list[Figure]:
    """Figures of the run in `folder`, by default of one made now, beside those of the run in `before`."""
    earlier = None if before is None else load_run(before)  # a wrong folder is found out before the job has run
    if folder is not None:
        return figures(load_run(folder), earlier)
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "restmcts", "run", "--preset", PRESET, "--out", made]
        subprocess.run(command, check=True)
        return figures(load_run(made), earlier)


def figures(now: RunResults, before: RunResults | None = None) -> list[Figure]:
    old = {} if before is None else {name: (value, unit) for name, value, unit, _ in _facts(before)}
    found = []
    for name, value, unit, aim in _facts(now):
        better: Any = "lower" if unit in ("s", "min") else "higher"
        known = old.get(name)
        found.append(Figure(name, value, unit, aim, better, before=None if known is None else known[0]))
    if before is not None:
        found.append(Figure("the whole job: before ÷ now", _seconds(before) / _seconds(now), "×", FASTER, "higher"))
    return found


def _facts(run: RunResults) -> Iterator[tuple[str, float, str, float | None]]:
    """Name, value, unit and aim of everything that is told of one run."""
    for record in run.records:
        yield record["stage"], record["seconds"], "s", None
        if (rate := _rate(record)) is not None:
            yield f"{record['stage']}: tokens", rate, "tokens/s", None
    for kind in dict.fromkeys(record["kind"] for record in run.records):
        yield f"all of kind {kind}", sum(r["seconds"] for r in run.records if r["kind"] == kind), "s", None
    yield "the whole job", _seconds(run) / 60, "min", MINUTES
    for mode in MODES:
        phases = [phase for phase, measured in sorted(run.rows) if measured == mode]
        if phases and (share := accuracy([run], phases[-1], mode)) is not None:
            yield f"right after {phase_name(phases[-1])}, {mode}", 100 * share[0], "%", None


def _rate(record: dict[str, Any]) -> float | None:
    """Tokens generated or trained a second; None for a stage that does neither."""
    speed = record.get("speed")
    if speed and speed["policy_tokens"]:
        return float(speed["policy_tokens"] / speed["seconds"])
    trained = record["metrics"].get("tokens_per_second")
    return None if trained is None else float(trained)


def _seconds(run: RunResults) -> float:
    return float(sum(record["seconds"] for record in run.records))
