"""Counting the time in which an engine had something to do."""

from __future__ import annotations

import time
from collections.abc import Callable


class Busy:
    """Seconds during which at least one of any number of overlapping intervals was open.

        with busy:
            await the_reply()

    Intervals may be opened on one thread only, and `seconds` read on any; it includes the intervals still open.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._since = 0.0
        self._before = 0.0

    @property
    def seconds(self) -> float:
        return self._before + (self._clock() - self._since if self._open else 0.0)

    def __enter__(self) -> None:
        if not self._open:
            self._since = self._clock()
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        if not self._open:
            self._before += self._clock() - self._since
