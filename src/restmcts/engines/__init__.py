"""Who proposes and who scores. Every engine is asynchronous and batches by itself; `drive` just awaits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from restmcts.engines.busy import Busy
from restmcts.errors import EngineError
from restmcts.types import Critique, Proposals, Propose, Score, Scores, Usage, Verdict


class TransientError(EngineError):
    """This request failed, others may succeed.

    `again` says whether it is worth asking again: False where the engine has already done so, or where the request
    itself is what it cannot answer. `usage` is what the failure cost.
    """

    def __init__(self, message: str, *, again: bool = True, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.usage = usage or Usage()


class PolicyEngine(Protocol):
    """Proposes steps and criticises partial solutions."""

    identity: str
    """names the model and its weights; stored with every tree"""
    tokenizer_id: str | None
    """fingerprint of the vocabulary that `Step.ids` belong to; None for engines without token ids"""

    @property
    def busy_seconds(self) -> float:
        """Seconds so far in which at least one of its requests was being worked on (see `Busy`)."""

    async def propose(self, request: Propose) -> Proposals: ...

    async def critique(self, request: Critique) -> Verdict: ...

    async def close(self) -> None: ...


class ValueEngine(Protocol):
    """Scores partial solutions in [0, 1]."""

    identity: str
    tokenizer_id: str | None

    @property
    def busy_seconds(self) -> float: ...

    async def score(self, request: Score) -> Scores: ...

    async def close(self) -> None: ...


class Carrier(Protocol):
    """Takes whole searches to engines in other processes (`cluster.fleet.Fleet`); `drive.run_errands` asks it to."""

    def carry(
        self, errands: Iterable[Any], *, concurrency: int, on_tree: Callable[[Any, Any], None], account: Any
    ) -> None:
        """What `drive.run_errands` does, with `concurrency` trees open at each of the others."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The pair a search runs on. `value` is None for methods that never ask for a score."""

    policy: PolicyEngine
    value: ValueEngine | None = None
    kind: str | None = None
    """which of `opening.ENGINES` serves them; None when they were put together by hand"""
    carrier: Carrier | None = None
    """who takes searches to where the models are; `policy` and `value` then ask there, request by request"""

    async def close(self) -> None:
        await self.policy.close()
        if self.value is not None:
            await self.value.close()


__all__ = ["Busy", "Carrier", "Engines", "PolicyEngine", "TransientError", "ValueEngine"]
