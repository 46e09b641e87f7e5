"""What a stage costs: counted while it runs, held to its budget, and how busy that kept the engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from restmcts.engines import Engines
from restmcts.types import Budget, Usage


class Count:
    """What requests have cost so far: a `Usage` that can be added to, for it is done at every request."""

    __slots__ = ("cached_tokens", "policy_tokens", "prompt_tokens", "requests", "value_requests", "value_tokens")

    def __init__(self) -> None:
        self.policy_tokens = self.prompt_tokens = self.cached_tokens = self.value_tokens = 0
        self.requests = self.value_requests = 0

    def add(self, cost: Usage, *, of_value: bool) -> None:
        """Count what an engine says that a reply cost; `of_value`: it is the value model's."""
        self.policy_tokens += cost.policy_tokens
        self.prompt_tokens += cost.prompt_tokens
        self.cached_tokens += cost.cached_tokens
        self.value_tokens += cost.value_tokens
        self.requests += cost.requests
        if of_value:
            self.value_requests += cost.requests

    def add_all(self, cost: Usage) -> None:
        """Count what was counted elsewhere, for both models together."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(cost, name))

    def usage(self, seconds: float) -> Usage:
        """All of it, with the seconds that it took."""
        return Usage(
            self.policy_tokens,
            self.prompt_tokens,
            self.cached_tokens,
            self.value_tokens,
            self.requests,
            seconds,
            self.value_requests,
        )


class Account:
    """The cost of all trees of a stage together, and the most it may come to.

    `earlier` and `elapsed` are what earlier attempts at the stage cost, in tokens and seconds: they count against the
    budget, and not in `count`, which is this attempt's. Time runs from when the account is opened.
    """

    def __init__(self, budget: Budget | None = None, *, earlier: Usage | None = None, elapsed: float = 0.0) -> None:
        self.budget = budget or Budget()
        self.earlier = earlier or Usage()
        self.count = Count()
        self.policy_busy = self.value_busy = 0.0
        """seconds of this attempt in which each engine worked on a request"""
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

    def left(self) -> Budget:
        """What is left of each kind, 0 at least; None without a limit."""

        def rest(name: str) -> int | None:
            most = getattr(self.budget, name)
            return None if most is None else max(0, most - getattr(self.earlier, name) - getattr(self.count, name))

        seconds = self.seconds_left
        return Budget(rest("policy_tokens"), rest("value_tokens"), None if seconds is None else max(0.0, seconds))

    def spent(self) -> bool:
        """Whether there is nothing left: no further request may then be begun."""
        budget, before, now = self.budget, self.earlier, self.count
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
            "policy_tokens": self.count.policy_tokens,
            "value_tokens": self.count.value_tokens,
            "policy_busy": round(self.policy_busy, 3),
            "value_busy": round(self.value_busy, 3),
        }
