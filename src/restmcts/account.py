"""What a stage costs: counted while it runs, held to its budget, and how busy that kept the engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from restmcts.engines import Engines
from restmcts.types import Budget, Usage


class Account:
    """The cost of all trees of a stage together, and the most it may come to.

    `earlier` and `elapsed` are what earlier attempts at the stage cost, in tokens and seconds: they count against the
    budget, and not in `usage`, which is this attempt's. Time runs from when the account is opened.
    """

    def __init__(self, budget: Budget | None = None, *, earlier: Usage | None = None, elapsed: float = 0.0) -> None:
        self.budget = budget or Budget()
        self.earlier = earlier or Usage()
        self.usage = Usage()
        self.policy_busy = self.value_busy = 0.0
        """seconds of this attempt in which the engines worked on a request"""
        self._elapsed = elapsed
        self._opened = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since this attempt began."""
        return time.monotonic() - self._opened

    @property
    def seconds_left(self) -> float | None:
        """None without a limit."""
        return None if self.budget.seconds is None else self.budget.seconds - self._elapsed - self.seconds

    def spend(self, usage: Usage) -> None:
        self.usage += usage

    def spent(self) -> bool:
        """Whether there is nothing left: no further request may then be begun."""
        budget, before, now = self.budget, self.earlier, self.usage
        return (
            (budget.policy_tokens is not None and before.policy_tokens + now.policy_tokens >= budget.policy_tokens)
            or (budget.value_tokens is not None and before.value_tokens + now.value_tokens >= budget.value_tokens)
            or ((left := self.seconds_left) is not None and left <= 0)
        )

    @contextmanager
    def watching(self, engines: Engines) -> Iterator[None]:
        """Count how long `engines` are busy in the `with` block."""
        policy, value = engines.policy, engines.value
        before = policy.busy_seconds, value.busy_seconds if value is not None else 0.0
        try:
            yield
        finally:
            self.policy_busy += policy.busy_seconds - before[0]
            self.value_busy += value.busy_seconds - before[1] if value is not None else 0.0

    def speed(self) -> dict[str, Any]:
        """How fast this attempt went, JSON-ready: what `metrics.jsonl` holds of it."""
        return {
            "seconds": round(self.seconds, 3),
            "policy_tokens": self.usage.policy_tokens,
            "value_tokens": self.usage.value_tokens,
            "policy_busy": round(self.policy_busy, 3),
            "value_busy": round(self.value_busy, 3),
        }
