"""The driver's side of a cluster: it hands out searches, takes trees back, starts workers and sees to lost ones.

A `Fleet` carries what `drive.run_errands` is given (`Engines.carrier`). A built-in search goes whole to a worker: one
question out, one tree back; it depends on its seed, not on who grew it. Everything else, such as completions, is driven
here and asks the workers request by request. What a lost worker had goes to others, and is counted when its tree is
there. Nothing here knows Ray: where workers may be, and how they are reached, is a `Site`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from restmcts import __version__
from restmcts.account import Account
from restmcts.cluster import wire
from restmcts.cluster.far import FarPolicy, FarValue
from restmcts.cluster.queue import Job, Queue
from restmcts.cluster.worker import News
from restmcts.console import duration
from restmcts.drive import Drive, Errand
from restmcts.engines import Engines
from restmcts.engines.opening import Say
from restmcts.errors import ConfigError, EngineError
from restmcts.eventloop import first_error, run_async
from restmcts.types import Proposals, Request, Scores, Tree, Usage, Verdict

POLL = 2.0
"""seconds between two looks for places where there is no worker yet"""
LOSSES = 3
"""workers that may be lost with one question before it is held to be the cause"""
DEATHS = 3
"""workers that may be lost at one place, one after the other, before it is left alone"""

E = TypeVar("E", bound=Errand)


class Lost(Exception):
    """A worker is gone, and the text says what is known of why."""


class Remote(Protocol):
    """A worker elsewhere: the calls of `worker.Worker`. Each raises Lost when it is gone."""

    async def where(self) -> str: ...

    async def open(self) -> bytes:
        """What `Worker.open` says of the recipe that it was started with; asked again, the same."""

    async def give(self, jobs: Sequence[tuple[int, bytes]], allowance: bytes) -> None: ...

    async def news(self, allowance: bytes) -> News: ...

    async def close(self) -> None:
        """End it: its engines first, if it still hears."""

    def kill(self) -> None: ...


class Site(Protocol):
    """Where workers may be."""

    name: str

    def places(self) -> Iterable[str]:
        """Places for one worker each, as of now."""

    def start(self, place: str) -> Remote: ...


@dataclass(slots=True)
class _Member:
    """A worker, from when it is asked for."""

    name: str
    place: str
    remote: Remote
    where: str = ""
    """once it is a process"""
    ready: bool = False
    busy: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class _Pulse:
    """What there is of a fleet in one event loop: its tasks end with the loop, the workers stay."""

    loop: asyncio.AbstractEventLoop
    stir: asyncio.Event = field(default_factory=asyncio.Event)
    """there may be something to hand out"""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """a worker has come or gone, or a lane has ended"""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    error: BaseException | None = None


class Fleet:
    """Workers at the places of a site, each with the same engines. `wait`: seconds that there may be none."""

    def __init__(self, site: Site, *, wait: float, say: Say) -> None:
        self.site, self.wait, self.say = site, wait, say
        self.facts: dict[str, Any] | None = None
        """what the first worker has opened; all open the same"""
        self.busy = [0.0, 0.0]
        """seconds in which policy and value models were at work, on average over the workers"""
        self._members: dict[str, _Member] = {}
        self._deaths: dict[str, int] = {}
        self._started = 0
        self._run = 0
        self._account = Account()
        self._queue: Queue[asyncio.Future[Any]] = Queue()
        self._pulse: _Pulse | None = None
        self._reason = ""
        """why the latest worker was lost"""
        self._engines: Engines | None = None

    # ------------------------------------------------------------ for the driver

    def open(self) -> Engines:
        """Wait for the first worker; the engines that stand for those of all workers, and that end them when closed.

        Raises what kept a worker from opening its engines, and EngineError when there is none for too long.
        """

        async def first() -> None:
            pulse = self._awake()
            while self.facts is None:
                if pulse.error is not None:
                    raise pulse.error
                pulse.changed.clear()
                await pulse.changed.wait()

        try:
            run_async(first())
        except BaseException:
            self.kill()
            raise
        assert self.facts is not None
        facts = self.facts
        value = None if facts["value"] is None else FarValue(self, facts["value"], facts["value_tokens"])
        self._engines = Engines(FarPolicy(self, facts["policy"], facts["policy_tokens"]), value, facts["kind"], self)
        return self._engines

    def carry(
        self, errands: Iterable[E], *, concurrency: int, on_tree: Callable[[E, Tree], None], account: Account
    ) -> None:
        """`drive.run_errands`, with `concurrency` searches open at each worker, also at one that comes later.

        The budget of `account` is held by each worker as it was last told it, once in a while (`worker.BEAT`): it may
        be exceeded by what all of them spend in that time, beside the requests that are being answered.
        """
        assert self._engines is not None, "a fleet is opened before it carries anything"
        waiting, ended = iter(errands), False
        own = Drive(self._engines, account)

        async def lane(pulse: _Pulse) -> None:
            nonlocal ended
            while not account.spent() and (errand := next(waiting, None)) is not None:
                record = wire.errand_record(errand)
                if record is None:
                    on_tree(errand, await own.search(errand))
                    continue
                told = await self._have(wire.packed({"search": record}), errand.problem.id, search=True)
                if told is not None:
                    on_tree(errand, wire.tree_of(told["tree"], errand.problem))
            ended = True
            pulse.changed.set()

        async def lanes() -> None:
            pulse = self._awake()
            self._account, self._queue.room, self._run = account, concurrency, self._run + 1
            begun = 0
            try:
                async with asyncio.TaskGroup() as group:
                    while not ended:
                        workers = sum(bool(member.where) for member in self._members.values())
                        for _ in range(begun, concurrency * max(1, workers)):
                            group.create_task(lane(pulse))
                            begun += 1
                        pulse.changed.clear()
                        await pulse.changed.wait()
            except BaseExceptionGroup as failures:
                raise first_error(failures) from None
            finally:
                self._account = Account()

        run_async(lanes())

    async def ready(self) -> int:
        """How many workers there are now; they come and go only while this or another part of the fleet is awaited."""
        self._awake()
        return sum(member.ready for member in self._members.values())

    async def request(self, request: Request) -> Proposals | Scores | Verdict:
        """The reply of a worker's engine."""
        order = wire.packed({"ask": wire.request_record(request)})
        told = await self._have(order, request.problem.id, search=False)
        return wire.reply_of(told["reply"])

    async def close(self) -> None:
        """End all workers, and give back what they hold."""
        members, self._members = list(self._members.values()), {}
        await asyncio.gather(*(member.remote.close() for member in members))

    def kill(self) -> None:
        """`close`, without asking."""
        for member in self._members.values():
            member.remote.kill()
        self._members.clear()

    # ------------------------------------------------------------ jobs

    async def _have(self, order: bytes, name: str, *, search: bool) -> Any:
        """Have a worker do something; what it says, or None for a search that the stage's budget left unasked.

        Raises the error that it met, or that keeps the fleet from going on.
        """
        pulse = self._awake()
        if pulse.error is not None:
            raise pulse.error
        job = self._queue.put(order, pulse.loop.create_future(), name, search=search)
        pulse.stir.set()
        return await job.waits

    async def _hand_out(self, pulse: _Pulse) -> None:
        while True:
            await pulse.stir.wait()
            await asyncio.sleep(0)  # what is put or done at the same moment goes along
            pulse.stir.clear()
            if self._account.spent():
                for job in self._queue.drop():
                    _settle(job, None)
            coming = sum(bool(member.where) and member.name not in self._queue for member in self._members.values())
            for name, jobs in self._queue.hand_out(coming).items():
                self._task(pulse, self._give(pulse, self._members[name], jobs))

    async def _give(self, pulse: _Pulse, member: _Member, jobs: Sequence[Job[Any]]) -> None:
        try:
            await member.remote.give([(job.number, job.order) for job in jobs], self._allowance())
        except Lost as lost:
            self._lose(pulse, member, str(lost))

    def _allowance(self) -> bytes:
        left = self._account.left()
        limits = {"policy_tokens": left.policy_tokens, "value_tokens": left.value_tokens, "seconds": left.seconds}
        return wire.packed({"run": self._run, "concurrency": self._queue.room, "left": limits})

    def _take(self, pulse: _Pulse, member: _Member, news: News) -> None:
        done, told = news[0], wire.unpacked(news[1])
        if told and told["run"] == self._run:
            self._account.count.add_all(Usage(**told["spent"]))
        if told:
            ready = sum(other.ready for other in self._members.values())
            for i in range(2):
                self.busy[i] += max(0.0, told["busy"][i] - member.busy[i]) / ready
            member.busy = told["busy"]
        broken: BaseException | None = None
        for number, result in done:
            what = wire.unpacked(result)
            error = _error_in(what)
            if type(error) is EngineError:  # of this worker's engines: those of others may go on
                broken = error
            elif (job := self._queue.done(member.name, number)) is not None:
                self._deaths.pop(member.place, None)
                _settle(job, what if error is None else error)
        if broken is not None:
            self._lose(pulse, member, str(broken))
        if done:
            pulse.stir.set()

    # ------------------------------------------------------------ workers

    def _awake(self) -> _Pulse:
        """The fleet's tasks in the running event loop, begun when they are first needed there."""
        loop = asyncio.get_running_loop()
        if self._pulse is None or self._pulse.loop is not loop:
            self._queue = Queue(self._queue.room, last=self._queue.last)
            self._pulse = pulse = _Pulse(loop)
            self._task(pulse, self._keep(pulse))
            self._task(pulse, self._hand_out(pulse))
            for member in self._members.values():
                self._task(pulse, self._tend(pulse, member))
        return self._pulse

    async def _keep(self, pulse: _Pulse) -> None:
        """Have a worker at every place, and an error when there is none for too long."""
        alone: float | None = None
        while True:  # what `places` asks is answered by this machine, or by one next to it
            taken = {member.place for member in self._members.values()}
            for place in self.site.places():
                if place not in taken and self._deaths.get(place, 0) < DEATHS:
                    self._start(pulse, place)
            if any(member.where for member in self._members.values()):
                alone = None
            elif alone is None:
                alone = time.monotonic()
            elif time.monotonic() - alone > self.wait:
                lost = f" (the last one was lost: {self._reason})" if self._reason else ""
                raise EngineError(
                    f"no worker on the cluster {self.site.name} for {self.wait:g} s{lost}; see with `ray status` what "
                    "is free, or raise cluster.wait, and run the same command again: finished work is kept"
                )
            pulse.stir.set()  # the time of a budget may be up
            await asyncio.sleep(min(POLL, self.wait / 4))

    def _start(self, pulse: _Pulse, place: str) -> None:
        self._started += 1
        member = _Member(f"worker {self._started}", place, self.site.start(place))
        self._members[member.name] = member
        self._task(pulse, self._tend(pulse, member))

    async def _tend(self, pulse: _Pulse, member: _Member) -> None:
        """See a worker open its engines, and hear what it has to tell until it is gone."""
        try:
            member.where = await member.remote.where()
            pulse.changed.set()
            facts = wire.unpacked(await member.remote.open())
            self._check(facts)
            self._queue.join(member.name)
            if not member.ready:
                member.ready = True
                ready = sum(other.ready for other in self._members.values())
                self.say(f"a worker is ready on {member.where} ({ready} in all)")
            pulse.stir.set()
            pulse.changed.set()
            while True:
                self._take(pulse, member, await member.remote.news(self._allowance()))
        except Lost as lost:
            self._lose(pulse, member, str(lost))

    def _check(self, told: dict[str, Any]) -> None:
        """Raise what kept a worker from opening, or ConfigError where it is not the same as the others."""
        if (error := _error_in(told)) is not None:
            raise error
        facts = told["facts"]
        if facts["version"] != __version__:
            raise ConfigError(
                f"restmcts {facts['version']} on {facts['where']} and {__version__} here: install the same everywhere"
            )
        self.facts = self.facts or facts
        if any(facts[name] != self.facts[name] for name in ("policy", "value")):
            raise ConfigError(
                f"the models on {facts['where']} are not those on {self.facts['where']}, under the same names: put "
                "them on a file system that all machines share"
            )

    def _lose(self, pulse: _Pulse, member: _Member, reason: str) -> None:
        if self._members.pop(member.name, None) is None:  # known already, or closed
            return
        member.remote.kill()
        self._deaths[member.place] = self._deaths.get(member.place, 0) + 1
        self._reason = reason
        back, given_up = self._queue.lose(member.name, LOSSES)
        if member.where:
            left = sum(other.ready for other in self._members.values())
            also = f"{left} left" if left else f"none is left: waiting up to {duration(self.wait)} for another"
            self.say(f"lost the worker on {member.where} ({reason}); {back} open questions go to others; {also}")
        for job in given_up:
            _settle(job, EngineError(f"{job.losses} workers were lost with question {job.name!r}, the last: {reason}"))
        pulse.stir.set()
        pulse.changed.set()

    def _task(self, pulse: _Pulse, work: Coroutine[Any, Any, None]) -> None:
        task = pulse.loop.create_task(work)
        pulse.tasks.add(task)
        task.add_done_callback(lambda task: self._ended(pulse, task))

    def _ended(self, pulse: _Pulse, task: asyncio.Task[None]) -> None:
        """What one of the fleet's own tasks raises, everybody who waits for something is told."""
        pulse.tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        pulse.error = pulse.error or error
        for job in self._queue:
            _settle(job, error)
        pulse.changed.set()


def _error_in(told: dict[str, Any]) -> BaseException | None:
    """The error that a worker tells of, if it does."""
    if "error" in told:
        return wire.error_of(told["error"])
    return RuntimeError(told["bug"]) if "bug" in told else None


def _settle(job: Job[asyncio.Future[Any]], result: Any) -> None:
    """Tell whoever waits for a job, if he still does."""
    if job.waits.done():
        return
    if isinstance(result, BaseException):
        job.waits.set_exception(result)
    else:
        job.waits.set_result(result)
