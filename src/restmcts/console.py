"""Progress on the screen: one live line in a terminal, a plain line every few seconds in a log.

Only the loop and the command line know this module; everything below them gets a plain callback.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Live

Clock = Callable[[], float]


class Progress:
    """Shows the stage, how far it is, its rate, the time left, and whatever facts the work reports.

    `mode` is "live" (a terminal), "plain" (a line every `every` seconds), "quiet" (nothing), or "auto".
    It writes to standard error, so that results can be piped. As a context manager it cleans the screen up on leaving.
    """

    def __init__(
        self, *, mode: str = "auto", console: Console | None = None, every: float = 10.0, clock: Clock = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        if mode == "auto":
            terminal = self.console.is_terminal and not self.console.is_dumb_terminal and not os.environ.get("CI")
            mode = "live" if terminal else "plain"
        self.mode, self.every, self._clock = mode, every, clock
        self._started = clock()
        self._live: Live | None = None
        self._task: TaskID | None = None
        self._name = ""
        self._total: float | None = None
        self._done = self._done_before = 0.0
        self._facts: dict[str, Any] = {}
        self._stage_started = self._printed = clock()

    def stage(self, name: str, total: float | None = None, *, done: float = 0) -> None:
        """Begin a stage of `total` units, of which an earlier attempt did `done`; the stage before it ends."""
        self.finish()
        self._name, self._total, self._done, self._done_before = name, total, done, done
        self._facts = {}
        self._stage_started = self._clock()
        self._printed = self._stage_started
        if self.mode == "live":
            self._live = Live(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}[/]"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._live.add_task(escape(name), total=total, completed=int(done), line="")
            self._live.start()
        else:
            self._print(self._head("begins"))

    def update(self, done: float | None = None, total: float | None = None, **facts: Any) -> None:
        """`done` units are done; `facts` (solved, tokens, loss, …) are shown beside, latest first come."""
        if not self._name:
            return
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        self._facts.update(facts)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._done, total=self._total, line=escape(self.line()))
        elif self._clock() - self._printed >= self.every:
            self._print(self._head(self.line()))

    def finish(self) -> None:
        """End the current stage with one line that stays; without a stage, do nothing."""
        if not self._name:
            return
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None
        seconds = self._clock() - self._stage_started
        facts = self._shown_facts()
        self._print(self._head("  ".join([f"done in {duration(seconds)}", *facts])))
        self._name = ""

    def say(self, text: str) -> None:
        """Print a line of its own; a live line stays below it."""
        if self.mode != "quiet":
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line off the screen, without claiming that its stage is done."""
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None
        self._name = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()
        self.close()

    def line(self) -> str:
        """How far, how fast, how long still, and the facts."""
        seconds = self._clock() - self._stage_started
        parts = [number(self._done) if self._total is None else f"{number(self._done)}/{number(self._total)}"]
        gained = self._done - self._done_before
        if gained > 0 and seconds > 0:
            rate = gained / seconds
            parts.append(f"{rate:.1f}/s" if rate >= 0.95 else f"{1 / rate:.1f} s each")
            if self._total is not None:
                parts.append(f"{duration(max(0.0, self._total - self._done) / rate)} left")
        if self.mode == "live":
            parts.append(f"{duration(self._clock() - self._started)} elapsed")
        return "  ".join(parts + self._shown_facts())

    def _shown_facts(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {number(value)}" for name, value in self._facts.items() if value is not None]

    def _head(self, text: str) -> str:
        return f"[{duration(self._clock() - self._started)}] {self._name}  {text}"

    def _print(self, text: str) -> None:
        self._printed = self._clock()
        self.say(text)


def number(value: Any) -> str:
    """A number short enough for a status line: 1234567 is 1.2M; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit != "k" and abs(value) >= size):
            return f"{value / size:.1f}{unit}"
    return str(int(value))


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours when there are any: 1:05, 2:03:59."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
