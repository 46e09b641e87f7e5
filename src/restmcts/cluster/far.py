"""Engines elsewhere that look like engines here: every request is answered by a worker's."""

from __future__ import annotations

from typing import Protocol

from restmcts.types import Critique, Proposals, Propose, Request, Score, Scores, Verdict


class Asked(Protocol):
    """Who passes a request on (`fleet.Fleet`)."""

    busy: list[float]
    """seconds in which policy and value models were at work, on average over the workers"""

    async def request(self, request: Request) -> Proposals | Scores | Verdict: ...

    async def close(self) -> None: ...


class FarPolicy:
    """The policies of all workers, as one."""

    def __init__(self, asked: Asked, identity: str, tokenizer_id: str | None) -> None:
        self.asked, self.identity, self.tokenizer_id = asked, identity, tokenizer_id

    @property
    def busy_seconds(self) -> float:
        return self.asked.busy[0]

    async def propose(self, request: Propose) -> Proposals:
        reply = await self.asked.request(request)
        assert isinstance(reply, Proposals)
        return reply

    async def critique(self, request: Critique) -> Verdict:
        reply = await self.asked.request(request)
        assert isinstance(reply, Verdict)
        return reply

    async def close(self) -> None:
        await self.asked.close()


class FarValue:
    """The value models of all workers, as one."""

    def __init__(self, asked: Asked, identity: str, tokenizer_id: str | None) -> None:
        self.asked, self.identity, self.tokenizer_id = asked, identity, tokenizer_id

    @property
    def busy_seconds(self) -> float:
        return self.asked.busy[1]

    async def score(self, request: Score) -> Scores:
        reply = await self.asked.request(request)
        assert isinstance(reply, Scores)
        return reply

    async def close(self) -> None:
        """The policy ends the workers."""
