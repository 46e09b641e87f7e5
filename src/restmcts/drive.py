"""The one place where search meets engines: concurrency, budgets, retries, counting.

Every open tree is carried by a task that awaits its own replies; there is no barrier between trees. What a tree asks
depends on its own seed and replies alone, so how many are open at once does not change what any of them finds. Only a
budget of seconds or of a whole stage does: what it leaves room for depends on who came first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from restmcts.account import Account, Count
from restmcts.engines import Engines, TransientError
from restmcts.errors import ConfigError, EngineError
from restmcts.eventloop import first_error, rare_collections, run_async
from restmcts.search import Method, Search, SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import (
    STAGE_BUDGET,
    Answer,
    Ask,
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
    account: Account | None = None,
    questions: int | None = None,
) -> None:
    """Search every problem with at most `concurrency` trees open; `on_tree` gets each tree the moment it is done.

    Problems are drawn as trees finish, so there may be any number of them. The seed of a tree is derived from `seed`
    and its problem's id. The budgets of `settings` hold for each tree by itself: a request is cut to what is left, and
    a tree that has nothing left answers with what it has. `account` counts the cost of all trees; once its budget is
    spent no request is begun: open trees answer with what they have (`tree.stop` is then `stage_budget`), and the
    problems left are not drawn. `questions` says how many problems there are in all, counting those that were searched
    earlier; by default those given. Where they are fewer than `settings.parallel`, each tree has several expansions in
    flight. The engines stay open. Those of several machines (`Engines.carrier`) have so many trees open each.

    Raises EngineError when an engine is gone for good, and ConfigError when the method asks for values and there is no
    value model; trees delivered before are complete, the others are lost. What `on_tree` or the method raises comes
    through, and so does Ctrl-C; in each case everything in flight is cancelled first.
    """
    if questions is None:
        questions = len(problems) if isinstance(problems, Sized) else settings.parallel
    settings = settings.shared_by(questions)
    errands = (Errand(problem, method, settings, seed, task_of(problem)) for problem in problems)
    run_errands(errands, engines, concurrency=concurrency, on_tree=lambda errand, tree: on_tree(tree), account=account)


@dataclasses.dataclass(frozen=True, slots=True)
class Errand:
    """One search to be made; the seed of its tree is derived from `seed` and the problem's id.

    `most` are limits of whoever runs it, beside the budgets of `settings`, with which the method plans.
    """

    problem: Problem
    method: Method
    settings: SearchSettings
    seed: int
    task: Task
    most: Budget | None = dataclasses.field(default=None, kw_only=True)

    def search(self) -> Search:
        return self.method(self.problem, self.settings, derive_seed(self.seed, self.problem.id), self.task)

    def limits(self) -> Budget:
        """The smaller of both limits of each kind."""
        own = self.settings.budget()
        return own if self.most is None else own.within(self.most)


E = TypeVar("E", bound=Errand)

Watch = Callable[[Ask, Count], None]
"""told what a search asks, before it is answered, and what the search has cost up to there"""


class Drive:
    """Engines at work on any number of trees, to which trees are added as they come (see `driving`).

    One event loop asks all of them; each tree is awaited, and given up, by itself.
    """

    def __init__(self, engines: Engines, account: Account) -> None:
        self.engines = engines
        self.account = account

    async def search(self, errand: Errand, watch: Watch | None = None) -> Tree:
        """The tree of one errand, within its own budget and that of the account.

        Raises EngineError when an engine is gone for good, ConfigError when the method asks for values and there is no
        value model; what the method or `watch` raises comes through. When it is cancelled, so is what it has in flight.
        """
        ride = _Ride(errand.search(), self.engines, errand.limits(), self.account, watch)
        return await ride.to_the_end()


@contextmanager
def driving(engines: Engines, *, concurrency: int, account: Account | None = None) -> Iterator[Drive]:
    """A drive, for searches of which about `concurrency` are open at once. The engines stay open."""
    bill = account or Account()
    with bill.watching(engines), rare_collections(concurrency):
        yield Drive(engines, bill)


def run_errands(
    errands: Iterable[E],
    engines: Engines,
    *,
    concurrency: int,
    on_tree: Callable[[E, Tree], None],
    account: Account | None = None,
) -> None:
    """`run` for searches of which each has a method and settings of its own; they are begun in the order given."""
    if concurrency < 1:
        raise ConfigError(f"concurrency = {concurrency}: at least one tree must be open")
    if engines.carrier is not None:
        bill = account or Account()
        with bill.watching(engines), rare_collections(concurrency):
            engines.carrier.carry(errands, concurrency=concurrency, on_tree=on_tree, account=bill)
        return
    waiting = iter(errands)

    async def lane(drive: Drive) -> None:
        while not drive.account.spent() and (errand := next(waiting, None)) is not None:
            on_tree(errand, await drive.search(errand))

    async def lanes(drive: Drive) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(lane(drive))
        except BaseExceptionGroup as failures:
            raise first_error(failures) from None  # it stopped the others

    with driving(engines, concurrency=concurrency, account=account) as drive:
        run_async(lanes(drive))


class _Ride:
    """One tree on its way: its requests are answered, what they cost is counted, its budget is held."""

    def __init__(
        self, search: Search, engines: Engines, budget: Budget, account: Account, watch: Watch | None = None
    ) -> None:
        self.watch = watch
        self.search = search
        self.engines = engines
        self.budget = budget
        self.account = account
        self.count = Count()
        self.seconds = 0.0
        self.started = time.monotonic()
        self.timed = budget.seconds is not None or account.budget.seconds is not None
        self.cut_off = False
        """whether it was the stage's budget that left a request without a reply"""

    async def to_the_end(self) -> Tree:
        try:
            asked = next(self.search)
            while (answer := await self.answer(asked)) is not None:
                asked = self.search.send(answer)
            self.search.throw(BudgetExhausted())
            raise RuntimeError("a search method went on asking after its budget was exhausted; it must return its tree")
        except StopIteration as done:
            tree: Tree = done.value
        finally:
            self.search.close()
        if self.cut_off and tree.stop == "budget":
            tree.stop = STAGE_BUDGET
        policy, value = self.engines.policy, self.engines.value
        tree.usage = self.count.usage(self.seconds)
        tree.models = {
            "policy": policy.identity,
            "value": None if value is None else value.identity,
            "tokenizer": policy.tokenizer_id,
        }
        return tree

    async def answer(self, asked: Ask) -> Answer | None:
        """The engines' replies within what is left of the budget; None when it is exhausted."""
        if self.watch is not None:
            self.watch(asked, self.count)
        begin = time.monotonic()
        if isinstance(asked, tuple):
            replies = await self.replies(asked)
            answer: Answer | None = None if replies.count(None) == len(replies) else replies
        else:
            affordable = self.afford(asked)
            answer = None if affordable is None else await self.reply(asked, affordable)
        self.seconds += time.monotonic() - begin
        return answer

    async def replies(self, requests: Sequence[Request]) -> tuple[Reply | None, ...]:
        """The replies to several requests, those together in flight that the budget can pay whatever they cost.

        The others wait until it is known what these cost; only the first of those in flight is cut to what is left.
        """
        replies: list[Reply | None] = [None] * len(requests)

        async def fill(index: int, affordable: Request) -> None:
            replies[index] = await self.reply(requests[index], affordable)

        waiting = deque(enumerate(requests))
        while waiting:
            reserved = 0
            async with asyncio.TaskGroup() as group:
                while waiting:
                    index, request = waiting[0]
                    affordable = self.afford(request, reserved)
                    if reserved and affordable is not request:
                        break
                    waiting.popleft()
                    if affordable is not None:
                        reserved += _most_tokens(affordable)
                        group.create_task(fill(index, affordable))
        return tuple(replies)

    async def reply(self, request: Request, affordable: Request) -> Reply | None:
        """The reply to the request as it was cut to the budget; None when the time is up before it is there."""
        reply: Reply | None = None
        left = self.seconds_left()
        try:
            if left is None:
                reply = await self.ask(affordable)
            else:
                async with asyncio.timeout(left) as clock:
                    reply = await self.ask(affordable)
        except TimeoutError:
            if left is None or not clock.expired():  # the engine's own
                raise
            self.cut_off = self.account.spent()
        if reply is not None:
            of_value = isinstance(request, Score)
            self.count.add(reply.usage, of_value=of_value)
            self.account.count.add(reply.usage, of_value=of_value)
        return reply if affordable is request else _without_cut_steps(request, affordable, reply)

    def seconds_left(self) -> float | None:
        """Until the tree's time or the stage's is up; None without a limit."""
        if not self.timed:
            return None
        own = None if self.budget.seconds is None else self.started + self.budget.seconds - time.monotonic()
        both = [left for left in (own, self.account.seconds_left) if left is not None]
        return min(both, default=None)

    def afford(self, request: Request, reserved: int = 0) -> Request | None:
        """The request, cut to what is left of the token budget when `reserved` of it is; None when nothing is left."""
        if self.account.spent():
            self.cut_off = True
            return None
        if (left := self.seconds_left()) is not None and left <= 0:
            return None
        if isinstance(request, Score):  # what a score will cost is known only afterwards
            most = self.budget.value_tokens
            return request if most is None or self.count.value_tokens < most else None
        if self.budget.policy_tokens is None:
            return request
        tokens = self.budget.policy_tokens - self.count.policy_tokens - reserved
        if tokens <= 0:
            return None
        if isinstance(request, Critique):
            return request if request.max_tokens <= tokens else dataclasses.replace(request, max_tokens=tokens)
        if request.n * request.max_tokens <= tokens:
            return request
        # Fewer samples rather than shorter ones: a step that is cut short is worth nothing.
        n = min(request.n, max(tokens // request.max_tokens, 1))
        return dataclasses.replace(request, n=n, max_tokens=min(request.max_tokens, tokens))

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
            for sample in proposals.samples:
                if sample.logprob is not None and not math.isfinite(sample.logprob):
                    raise EngineError(f"{policy.identity} gave the log-probability {sample.logprob}; it must be finite")
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


def _most_tokens(request: Request) -> int:
    """How many policy tokens a request may cost."""
    if isinstance(request, Propose):
        return request.n * request.max_tokens
    return request.max_tokens if isinstance(request, Critique) else 0


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
