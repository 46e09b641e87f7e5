"""The one place where search meets engines: concurrency, budgets, retries, counting.

Every open tree is carried by a task that awaits its own replies; there is no barrier between trees. What a tree asks
depends on its own seed and replies alone, so how many are open at once does not change what any of them finds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from restmcts.engines import Engines, TransientError
from restmcts.errors import ConfigError, EngineError
from restmcts.search import Method, SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import (
    Budget,
    BudgetExhausted,
    Critique,
    Failed,
    Problem,
    Proposals,
    Propose,
    Reply,
    Request,
    Score,
    Scores,
    Step,
    Tree,
    Usage,
)

RETRIES = 4
"""how often a request that failed for the moment is asked again"""
FIRST_PAUSE = 0.25
"""seconds before the first retry; each further pause is twice as long, give or take half"""


def run(
    problems: Iterable[Problem],
    method: Method,
    settings: SearchSettings,
    engines: Engines,
    *,
    task_of: Callable[[Problem], Task],
    seed: int,
    concurrency: int,
    on_tree: Callable[[Tree], None],
) -> None:
    """Search every problem with at most `concurrency` trees open; `on_tree` gets each tree the moment it is done.

    Problems are drawn as trees finish, so there may be any number of them. The seed of a tree is derived from `seed`
    and its problem's id. The budgets of `settings` hold for each tree by itself: a request is cut to what is left, and
    a tree that has nothing left answers with what it has. The engines stay open.

    Raises EngineError when an engine is gone for good, and ConfigError when the method asks for values and there is no
    value model; trees delivered before are complete, the others are lost. What `on_tree` or the method raises comes
    through, and so does Ctrl-C; in each case everything in flight is cancelled first.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency = {concurrency}: at least one tree must be open")
    waiting = iter(problems)

    async def lane() -> None:
        for problem in waiting:
            search = method(problem, settings, derive_seed(seed, problem.id), task_of(problem))
            on_tree(await _Ride(search, engines, settings.budget()).to_the_end())

    async def lanes() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(lane())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the first one stopped the others

    _run(lanes())


def _run(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, also from within a running event loop, as notebooks have one: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    inside: list[asyncio.Task[Any]] = []

    async def watched() -> None:
        if (task := asyncio.current_task()) is not None:
            inside.append(task)
        await main

    with ThreadPoolExecutor(1, "restmcts-drive") as thread:
        running = thread.submit(asyncio.run, watched())
        try:
            running.result()
        except KeyboardInterrupt:
            if not running.done():
                inside[0].get_loop().call_soon_threadsafe(inside[0].cancel)
            raise


class _Ride:
    """One tree on its way: its requests are answered, what they cost is counted, its budget is held."""

    def __init__(self, search: Generator[Request, Reply, Tree], engines: Engines, budget: Budget) -> None:
        self.search = search
        self.engines = engines
        self.budget = budget
        self.usage = Usage()
        self.started = time.monotonic()

    async def to_the_end(self) -> Tree:
        try:
            request = next(self.search)
            while (reply := await self.reply(request)) is not None:
                request = self.search.send(reply)
            self.search.throw(BudgetExhausted())
            raise RuntimeError("a search method went on asking after its budget was exhausted; it must return its tree")
        except StopIteration as done:
            tree: Tree = done.value
        finally:
            self.search.close()
        policy, value = self.engines.policy, self.engines.value
        tree.usage = self.usage
        tree.models = {
            "policy": policy.identity,
            "value": None if value is None else value.identity,
            "tokenizer": policy.tokenizer_id,
        }
        return tree

    async def reply(self, request: Request) -> Reply | None:
        """The engine's reply within what is left of the budget; None when it is exhausted."""
        begin = time.monotonic()
        left = None if self.budget.seconds is None else self.started + self.budget.seconds - begin
        affordable = self.afford(request)
        if affordable is None or (left is not None and left <= 0):
            return None
        reply: Reply | None = None
        try:
            async with asyncio.timeout(left) as clock:
                reply = await self.ask(affordable)
        except TimeoutError:
            if not clock.expired():  # the engine's own
                raise
        spent = Usage() if reply is None else reply.usage
        self.usage += dataclasses.replace(spent, seconds=time.monotonic() - begin)
        return reply if affordable is request else _without_cut_steps(request, affordable, reply)

    def afford(self, request: Request) -> Request | None:
        """The request, cut to what is left of the token budget; None when there is nothing left for it."""
        if isinstance(request, Score):  # what a score will cost is known only afterwards
            most = self.budget.value_tokens
            return request if most is None or self.usage.value_tokens < most else None
        if self.budget.policy_tokens is None:
            return request
        left = self.budget.policy_tokens - self.usage.policy_tokens
        if left <= 0:
            return None
        if isinstance(request, Critique):
            return request if request.max_tokens <= left else dataclasses.replace(request, max_tokens=left)
        if request.n * request.max_tokens <= left:
            return request
        # Fewer samples rather than shorter ones: a step that is cut short is worth nothing.
        n = min(request.n, max(left // request.max_tokens, 1))
        return dataclasses.replace(request, n=n, max_tokens=min(request.max_tokens, left))

    async def ask(self, request: Request) -> Reply:
        """The engine's reply; Failed when it could not give one however often it was asked."""
        spent = Usage()
        for attempt in range(RETRIES + 1):
            try:
                reply = await self.ask_once(request)
                return dataclasses.replace(reply, usage=reply.usage + spent)
            except TransientError as error:
                reason = str(error)
                spent += error.usage
                if not error.again:
                    break
            except MemoryError:
                raise EngineError("out of memory; lower engine.concurrency or use a smaller model") from None
            if attempt < RETRIES:
                # Trees that failed together should not all come back together; results do not depend on it.
                await asyncio.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
        return Failed(reason, spent)

    async def ask_once(self, request: Request) -> Reply:
        policy, value = self.engines.policy, self.engines.value
        if isinstance(request, Propose):
            proposals = await policy.propose(request)
            if len(proposals.samples) > request.n:
                raise EngineError(f"{policy.identity} made {len(proposals.samples)} samples of {request.n} asked for")
            return proposals
        if isinstance(request, Critique):
            return await policy.critique(request)
        if value is None:
            raise ConfigError("this search method asks for values and there is no value model; give one with --value")
        if value.tokenizer_id != policy.tokenizer_id:  # one vocabulary's ids are another text in the other
            paths = tuple(tuple(Step(step.text) for step in path) for path in request.paths)
            request = dataclasses.replace(request, paths=paths)
        scores = await value.score(request)
        return _sound(scores, len(request.paths), value.identity)


def _sound(scores: Scores, count: int, who: str) -> Scores:
    if len(scores.values) != count:
        raise EngineError(f"{who} gave {len(scores.values)} values for {count} paths; one for each is needed")
    for value in scores.values:
        if not 0 <= value <= 1:  # not a number fails this too
            raise EngineError(f"{who} gave the value {value}; values lie in [0, 1]")
    return scores


def _without_cut_steps(request: Request, cut: Request, reply: Reply | None) -> Reply | None:
    """The reply to a request made shorter, less the steps that only the budget cut off: they are no steps of the model.

    None when nothing is left of it.
    """
    if not (isinstance(reply, Proposals) and isinstance(request, Propose) and isinstance(cut, Propose)):
        return reply
    if cut.max_tokens == request.max_tokens:
        return reply
    whole = tuple(sample for sample in reply.samples if sample.finish != "length")
    return dataclasses.replace(reply, samples=whole) if whole else None
