"""One worker of a cluster: engines of its own, and many searches open on them, driven as everywhere else.

What it is to do is told by `give`, what came of it is fetched by `news`, one call at a time. Nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import os
import platform
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from restmcts import __version__
from restmcts.account import Account
from restmcts.cluster import wire
from restmcts.drive import Drive, driving
from restmcts.encoding import PromptSettings
from restmcts.engines import Engines
from restmcts.engines.opening import load_engines
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError, EngineError, RestmctsError, is_out_of_memory
from restmcts.types import Budget, Critique, Problem, Propose, Usage

BEAT = 1.0
"""seconds after which a worker tells what it has spent though nothing is done"""
LINGER = 0.005
"""seconds that a result waits for others, so that they go together"""

News = tuple[Sequence[tuple[int, bytes]], bytes]
"""(number of a job, its result) of what is done, and what was spent since the last news"""


class Worker:
    """Opens engines and searches on them. All that goes in and out is numbers and JSON."""

    def __init__(self) -> None:
        self._engines: Engines | None = None
        self._run = 0
        self._drive: Drive | None = None
        self._opened = ExitStack()
        self._told = Usage()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: list[tuple[int, bytes]] = []
        self._pulse = asyncio.Event()
        self._listener = 0

    async def where(self) -> str:
        """Which process of which machine this is; it answers as soon as there is one."""
        return f"{platform.node()} (process {os.getpid()})"

    async def open(self, recipe: bytes) -> bytes:
        """Open the engines; what they are, or the error that kept them from opening."""
        where = await self.where()
        try:
            self._engines = engines = self.load(wire.unpacked(recipe), where)
        except Exception as error:
            return wire.packed(_failed(error, where))
        policy, value = engines.policy, engines.value
        facts = {
            "policy": policy.identity,
            "value": None if value is None else value.identity,
            "policy_tokens": policy.tokenizer_id,
            "value_tokens": None if value is None else value.tokenizer_id,
            "kind": engines.kind,
            "version": __version__,
            "where": where,
        }
        return wire.packed({"facts": facts})

    def load(self, recipe: dict[str, Any], where: str) -> Engines:
        """The engines of a recipe (`wire.recipe_record`). Raises what `opening.load_engines` does."""
        wire.check_folders(recipe, where)
        return load_engines(
            recipe["policy"],
            recipe["value"],
            PromptSettings.model_validate(recipe["prompt"]),
            EngineSettings.model_validate(recipe["engine"]),
            [Problem(**example) for example in recipe["examples"]],
        )

    async def give(self, jobs: Sequence[tuple[int, bytes]], allowance: bytes) -> None:
        """Begin jobs, searches within the `allowance`: what the driver knows to be left for all workers together."""
        if not self._allow(wire.unpacked(allowance)):
            return
        for number, order in jobs:
            task = asyncio.create_task(self._do(number, order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def news(self, allowance: bytes) -> News:
        """What is done, as soon as something is, and after `BEAT` at the latest; only the latest caller is told."""
        if not self._allow(wire.unpacked(allowance)):
            return (), b"{}"
        self._listener += 1
        me = self._listener
        self._pulse.set()  # whoever listened before
        await asyncio.sleep(0)
        if not self._done:
            self._pulse.clear()
            try:
                async with asyncio.timeout(BEAT):
                    await self._pulse.wait()
                    await asyncio.sleep(LINGER)
            except TimeoutError:
                pass
        if me != self._listener:
            return (), b"{}"
        done, self._done = self._done, []
        return done, self._spent()

    async def close(self) -> None:
        """Give up what is open, and close the engines."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._opened.close()
        engines, self._engines = self._engines, None
        if engines is not None:
            await engines.close()

    def _allow(self, allowance: dict[str, Any]) -> bool:
        """Take up the driver's word for what is left: no worker spends more than that by itself.

        False, and nothing is done, where it is the word of an earlier run: calls may overtake each other on their way.
        """
        assert self._engines is not None, "a worker is opened before it is asked for anything"
        if allowance["run"] < self._run:
            return False
        if self._drive is None or allowance["run"] != self._run:
            self._opened.close()
            bill = Account(Budget(**allowance["left"]))
            opened = driving(self._engines, concurrency=allowance["concurrency"], account=bill)
            self._drive, self._run, self._told = self._opened.enter_context(opened), allowance["run"], Usage()
            return True
        bill, left = self._drive.account, Budget(**allowance["left"])
        bill.budget = Budget(
            None if left.policy_tokens is None else bill.count.policy_tokens + left.policy_tokens,
            None if left.value_tokens is None else bill.count.value_tokens + left.value_tokens,
            None if left.seconds is None else bill.seconds + left.seconds,
        )
        return True

    def _spent(self) -> bytes:
        assert self._engines is not None
        assert self._drive is not None
        policy, value = self._engines.policy, self._engines.value
        count = self._drive.account.count
        now, before = count.usage(0.0), self._told
        self._told = now
        counted = {name: getattr(now, name) - getattr(before, name) for name in type(count).__slots__}
        busy = policy.busy_seconds, 0.0 if value is None else value.busy_seconds
        return wire.packed({"run": self._run, "spent": counted, "busy": busy})

    async def _do(self, number: int, order: bytes) -> None:
        assert self._drive is not None
        drive, what = self._drive, wire.unpacked(order)
        try:
            if "search" in what:
                tree = await drive.search(wire.errand_of(what["search"]))
                result = wire.packed({"tree": tree.to_record()})
            else:
                result = wire.packed({"reply": await self._answer(what["ask"])})
        except Exception as error:
            result = wire.packed(_failed(error, await self.where()))
        self._done.append((number, result))
        self._pulse.set()

    async def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
        assert self._engines is not None
        policy, value, request = self._engines.policy, self._engines.value, wire.request_of(record)
        if isinstance(request, Propose):
            return wire.reply_record(await policy.propose(request))
        if isinstance(request, Critique):
            return wire.reply_record(await policy.critique(request))
        if value is None:
            raise ConfigError("this search method asks for values and there is no value model; give one with --value")
        return wire.reply_record(await value.score(request))


def _failed(error: Exception, where: str) -> dict[str, Any]:
    """The error as data; a bug with the lines that tell where it happened."""
    if is_out_of_memory(error):
        error = EngineError(
            f"out of memory on {where}; lower engine.concurrency, engine.max_rows or engine.cache_mb, or use a smaller "
            "model"
        )
    elif type(error) is EngineError:
        error = EngineError(f"{error} (on {where})")
    if isinstance(error, RestmctsError):
        return {"error": wire.error_record(error)}
    return {"bug": f"on {where}: {''.join(traceback.format_exception(error))}"}
