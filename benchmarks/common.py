"""What all benchmarks share: figures, how they are shown and stored, timing, and work done in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from restmcts.tables import ABSENT, Table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a benchmark found, and where there is one the aim it is held to."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    better: Literal["lower", "higher"] = "lower"
    before: float | None = None
    """the same figure of an earlier state, to compare with"""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.aim is None:
            return None
        return self.value <= self.aim if self.better == "lower" else self.value >= self.aim

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "met": self.met}


Benchmark = Callable[[], list[Figure]]


def table(name: str, figures: Sequence[Figure]) -> Table:
    """The figures as a table for the screen."""
    shown = Table(name, ["", "value", "unit", "aim", "met"])
    compared = any(figure.before is not None for figure in figures)
    if compared:
        shown.columns += ["before", "before ÷ now"]
    for figure in figures:
        aim = ABSENT if figure.aim is None else f"{'≤' if figure.better == 'lower' else '≥'} {short(figure.aim)}"
        met = {None: ABSENT, True: "yes", False: "**no**"}[figure.met]
        row = [figure.name, short(figure.value), figure.unit, aim, met]
        if compared:
            ratio = figure.before / figure.value if figure.before is not None and figure.value else None
            row += [ABSENT if number is None else short(number) for number in (figure.before, ratio)]
        shown.rows.append(row)
    return shown


def short(value: float) -> str:
    """A number with three significant digits, and no more digits after the point than that."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the seconds it took, until a GPU has done all of it."""
    _finish()
    begin = time.perf_counter()
    result = work()
    _finish()
    return result, time.perf_counter() - begin


def _finish() -> None:
    """Wait for what a GPU still has to do."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """Do `work` in a new process, so that its memory is its own; it and its arguments must be importable."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used << 10
