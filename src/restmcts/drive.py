"""The one place where search meets engines: concurrency, budgets, retries, counting.

Every open tree is a task that awaits its own replies; there is no barrier between trees. What a tree asks for depends
on its own seed and replies alone, so the width of the drive does not change what it finds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator

from restmcts.engines import Engines, TransientError
from restmcts.errors import EngineError
from restmcts.search import Method, SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import (
    Budget,
    BudgetExhausted,
    Critique,
    Failed,
    Problem,
    Propose,
    Reply,
    Request,
    Score,
    Step,
    Tree,
    Usage,
)

Search = Generator[Request, Reply, Tree]
_RETRIES = 4
_FIRST_PAUSE = 0.25
"""seconds before the first retry; doubles each time, with jitter"""


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
    """Search every problem with at most `concurrency` trees open; `on_tree` gets each tree as it is done.

    Problems are drawn lazily. The seed of a tree is derived from `seed` and the problem's id. Budgets of `settings`
    hold for each tree: a request is cut to what is left, and a tree with nothing left ends with the answer it has.
    Raises EngineError when an engine is gone for good; trees delivered before are complete, the others are lost.
    Ctrl-C cancels what is in flight and is raised again.
    """
    asyncio.run(_run(problems, method, settings, engines, task_of, seed, concurrency, on_tree))


async def _run(
    problems: Iterable[Problem],
    method: Method,
    settings: SearchSettings,
    engines: Engines,
    task_of: Callable[[Problem], Task],
    seed: int,
    concurrency: int,
    on_tree: Callable[[Tree], None],
) -> None:
    waiting: Iterator[Problem] = iter(problems)

    async def lane() -> None:
        for problem in waiting:
            search = method(problem, settings, derive_seed(seed, problem.id), task_of(problem))
            on_tree(await _Ride(search, engines, settings.budget(), problem).finish())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(concurrency, 1)):
                group.create_task(lane())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class _Ride:
    """One tree on its way: answers its requests, counts what they cost, holds it to its budget."""

    def __init__(self, search: Search, engines: Engines, budget: Budget, problem: Problem) -> None:
        self.search = search
        self.engines = engines
        self.budget = budget
        self.usage = Usage()
        self.started = time.monotonic()
        self.jitter = random.Random(problem.id)

    async def finish(self) -> Tree:
        policy, value = self.engines.policy, self.engines.value
        try:
            request = next(self.search)
            while True:
                affordable = self.afford(request)
                if affordable is None:
                    request = self.search.throw(BudgetExhausted())
                    continue
                reply = await self.answer(affordable)
                self.usage += reply.usage
                request = self.search.send(reply)
        except StopIteration as done:
            tree: Tree = done.value
        tree.usage = dataclasses.replace(self.usage, seconds=time.monotonic() - self.started)
        tree.models = {
            "policy": policy.identity,
            "value": None if value is None else value.identity,
            "tokenizer": policy.tokenizer_id,
        }
        return tree

    def afford(self, request: Request) -> Request | None:
        """The request, cut to the budget; None when there is nothing left for it."""
        seconds = self.budget.seconds
        if seconds is not None and time.monotonic() - self.started >= seconds:
            return None
        if isinstance(request, Score):
            most = self.budget.value_tokens
            return request if most is None or self.usage.value_tokens < most else None
        if self.budget.policy_tokens is None:
            return request
        left = self.budget.policy_tokens - self.usage.policy_tokens
        if isinstance(request, Critique):
            return dataclasses.replace(request, max_tokens=min(request.max_tokens, left)) if left > 0 else None
        # Fewer samples rather than shorter ones: a step cut short is worth nothing.
        n = min(request.n, max(left // request.max_tokens, 1))
        return dataclasses.replace(request, n=n, max_tokens=min(request.max_tokens, left)) if left > 0 else None

    async def answer(self, request: Request) -> Reply:
        """The engine's reply; Failed when it could not give one after several tries."""
        for attempt in range(_RETRIES + 1):
            try:
                return await self.ask(request)
            except TransientError as error:
                if attempt == _RETRIES:
                    return Failed(str(error))
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt * self.jitter.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    async def ask(self, request: Request) -> Reply:
        policy, value = self.engines.policy, self.engines.value
        if isinstance(request, Propose):
            return await policy.propose(request)
        if isinstance(request, Critique):
            return await policy.critique(request)
        if value is None:
            raise EngineError("this method asks for values and there is no value model; give one with --value")
        if value.tokenizer_id != policy.tokenizer_id:  # another tokenizer's ids would mean other text
            paths = tuple(tuple(Step(step.text) for step in path) for path in request.paths)
            request = dataclasses.replace(request, paths=paths)
        return await value.score(request)
