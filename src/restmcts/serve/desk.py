"""The queue: how many searches are open, how many requests may wait, and how all of that ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from restmcts.drive import Drive, Errand, Watch
from restmcts.serve.refusal import Refusal
from restmcts.types import Tree

_LEAST, _MOST = 1, 60
"""seconds that a client is told to wait, when the queue is full"""
_MEMORY = 0.9
"""weight of what earlier searches took against the last one"""


class Desk:
    """Lets `places` searches onto a drive at once, first come first served, and `queue` requests wait for that.

    All of it lives on one event loop.
    """

    def __init__(self, drive: Drive, *, places: int, queue: int) -> None:
        self.drive = drive
        self.places, self.queue = places, queue
        self.inside = self.waiting = self.open = 0
        """requests that were let in and are not answered yet; of them those that wait for a place, and that have one"""
        self.ending = False
        self._free = asyncio.Semaphore(places)
        self._searches: set[asyncio.Task[Tree]] = set()
        self._usual_seconds = 1.0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Be one of the requests that are let in. Raises Refusal when there are too many, and at the end."""
        if self.ending:
            raise Refusal(503, "the server is ending", code="ending", wait=5)
        if self.inside >= self.places + self.queue:
            wait = min(max(math.ceil(self._usual_seconds * self.inside / self.places), _LEAST), _MOST)
            said = f"{self.open} searches are open and {self.waiting} requests wait: the queue is full"
            raise Refusal(429, said, code="rate_limit_exceeded", wait=wait)
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    async def search(self, errand: Errand, watch: Watch | None = None) -> Tree:
        """The tree of an errand, once it is its turn; for a request that was let in.

        Cancelled, it leaves nothing in flight. Raises what `Drive.search` raises, and Refusal when the server ends.
        """
        search = asyncio.ensure_future(self._in_turn(errand, watch))
        self._searches.add(search)
        try:
            return await search
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if self.ending and this is not None and not this.cancelling():
                raise Refusal(503, "the server is ending: the search was given up", code="ending", wait=5) from None
            raise
        finally:
            self._searches.discard(search)

    async def _in_turn(self, errand: Errand, watch: Watch | None) -> Tree:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.open += 1
        began = time.monotonic()
        try:
            tree = await self.drive.search(errand, watch)
        finally:
            self.open -= 1
            self._free.release()
        took = time.monotonic() - began
        self._usual_seconds = _MEMORY * self._usual_seconds + (1 - _MEMORY) * took
        return tree

    async def end(self, grace: float) -> None:
        """Let nobody in any more; after `grace` seconds give up what is still open. Returns when all are answered."""
        self.ending = True
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            for search in list(self._searches):
                search.cancel()
            await self._empty.wait()
