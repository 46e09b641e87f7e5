"""What many workers bring, and how much one driver can take, on a Ray cluster of one node that is started for this.

Scaling: 1, 2, 4 … 64 workers, each with engines that only wait, as long as a model's reply takes, and with as many
questions; trees a second, between the first quarter of them and the last. Workers join one search after the other, as
new machines would; so that a few cores suffice, eight of them share a process, each with calls of its own. The driver:
workers that give back at once a tree that they have at hand, so that the time is the driver's own: hand out, take back,
check, write.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, short
from restmcts import drive
from restmcts.cluster import wire
from restmcts.cluster.fleet import Fleet
from restmcts.cluster.worker import News, Worker
from restmcts.encoding import PromptSettings
from restmcts.engines import Engines
from restmcts.engines.scripted import scripted_engines
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError
from restmcts.evaluate import search_all
from restmcts.search import SearchSettings, get_search
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.types import Problem, Tree

SIZES = (1, 2, 4, 8, 16, 32, 64)
OF_LINEAR = 0.9
"""aim: of so many times the speed of one worker"""
LATENCY = 2.0
"""seconds that a reply takes at most, half of that on average: a step of some 50 tokens of a large model"""
TOGETHER = 8
"""workers in one process"""
OPEN, EACH = 8, 24
"""trees open at a worker; questions for each"""
SETTINGS = SearchSettings(iterations=2, rollout_steps=2)
FLOOD, ANSWERERS, WIDE = 3000, 4, 48
"""trees that workers give back at once; how many do so, with how many open each"""
STEP_IDS = 30
"""token ids of a step, as a tree of a model holds them"""


class SlowWorker(Worker):
    """Engines that take as long as models do, and no core."""

    def load(self, recipe: dict[str, Any], where: str) -> Engines:
        return scripted_engines(latency=LATENCY)


class ReadyWorker(Worker):
    """Gives back the same tree, whatever is asked."""

    tree: bytes | None = None

    def load(self, recipe: dict[str, Any], where: str) -> Engines:
        self.tree = wire.packed({"tree": tree_at_hand().to_record()})
        return scripted_engines()

    async def _do(self, number: int, order: bytes) -> None:
        assert self.tree is not None
        self._done.append((number, self.tree))
        self._pulse.set()


class Together:
    """Several workers in one process."""

    def __init__(self, worker: type[Worker]) -> None:
        self._workers = [worker() for _ in range(TOGETHER)]

    async def ask(self, index: int, call: str, *arguments: Any) -> Any:
        return await getattr(self._workers[index], call)(*arguments)


class Sharing:
    """One of several workers in a process. See `fleet.Remote`."""

    def __init__(self, process: Any, index: int, recipe: bytes) -> None:
        self._process, self._index, self._recipe = process, index, recipe
        self._opened: bytes | None = None

    async def _ask(self, call: str, *arguments: Any) -> Any:
        return await self._process.ask.remote(self._index, call, *arguments)

    async def where(self) -> str:
        return str(await self._ask("where"))

    async def open(self) -> bytes:
        self._opened = self._opened or await self._ask("open", self._recipe)
        assert self._opened is not None
        return self._opened

    async def give(self, jobs: Sequence[tuple[int, bytes]], allowance: bytes) -> None:
        await self._ask("give", jobs, allowance)

    async def news(self, allowance: bytes) -> News:
        news: News = await self._ask("news", allowance)
        return news

    async def close(self) -> None:
        await self._ask("close")

    def kill(self) -> None:
        """Its process ends with the benchmark."""


class Growing:
    """As many places as are wanted at the time."""

    name = "of this benchmark"

    def __init__(self, worker: type[Worker]) -> None:
        self.wanted = 1
        self._worker = worker
        self._processes: dict[int, Any] = {}

    def places(self) -> list[str]:
        return [str(i) for i in range(self.wanted)]

    def start(self, place: str) -> Sharing:
        import ray

        process, index = divmod(int(place), TOGETHER)
        if process not in self._processes:
            made = ray.remote(Together).options(num_cpus=0.01, max_concurrency=1000)
            self._processes[process] = made.remote(self._worker)
        recipe = wire.recipe_record("scripted", "scripted", PromptSettings(), EngineSettings(), ())
        return Sharing(self._processes[process], index, wire.packed(recipe))

    def end(self) -> None:
        import ray

        for process in self._processes.values():
            ray.kill(process)


def run() -> list[Figure]:
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("the benchmark cluster needs Ray; run: pip install 'restmcts[ray]'") from None
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        return [*saturation(), *scaling()]
    finally:
        ray.shutdown()


def say(what: str, rate: float) -> None:
    """One line as soon as it is known: all of this takes minutes."""
    print(f"cluster: {what}: {short(rate)} trees/s", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- scaling


def scaling() -> list[Figure]:
    """Trees a second by the number of workers, and that ÷ linear."""
    figures, one = [], 0.0
    with fleet_of(SlowWorker) as (fleet, site, engines):
        for size in SIZES:
            site.wanted = size
            wait_for(fleet, size)
            speed = speed_of(questions(size * EACH), engines)
            say(f"{size} workers", speed)
            one = one or speed
            figures.append(Figure(f"{size} workers: trees", speed, "/s"))
            aim = OF_LINEAR if size > 1 else None
            figures.append(Figure(f"{size} workers ÷ linear", speed / (size * one), "×", aim=aim, better="higher"))
    return figures


def speed_of(problems: list[Problem], engines: Engines) -> float:
    """Trees a second of a search of all, without its beginning and its end."""
    at: list[float] = []
    drive.run(
        problems,
        get_search(SETTINGS.method),
        SETTINGS,
        engines,
        task_of=lambda problem: get_task(problem.task),
        seed=0,
        concurrency=OPEN,
        on_tree=lambda tree: at.append(time.perf_counter()),
    )
    assert len(at) == len(problems)
    first, last = len(at) // 4, 3 * len(at) // 4
    return (last - first) / (at[last] - at[first])


def questions(count: int) -> list[Problem]:
    """The same kinds of questions whatever their number, so that shares are alike."""
    return [Problem(f"q{i}", f"What is {i % EACH} + 3 * {i % 4 + 2} - 5?") for i in range(count)]


@contextmanager
def fleet_of(worker: type[Worker]) -> Iterator[tuple[Fleet, Growing, Engines]]:
    """A fleet of one worker, to begin with."""
    site = Growing(worker)
    fleet = Fleet(site, wait=600, say=lambda line: None)
    engines = fleet.open()
    try:
        yield fleet, site, engines
    finally:
        asyncio.run(engines.close())
        site.end()


def wait_for(fleet: Fleet, size: int) -> None:
    """Until so many workers are ready."""

    async def waiting() -> None:
        while await fleet.ready() < size:
            await asyncio.sleep(0.2)

    asyncio.run(waiting())


# ---------------------------------------------------------------- the driver


def saturation() -> list[Figure]:
    """What the driver does in a second of one core, and what that is in trees and in bytes."""
    size = len(wire.packed(tree_at_hand().to_record()))
    problems = questions(FLOOD)
    with fleet_of(ReadyWorker) as (fleet, site, engines), tempfile.TemporaryDirectory() as folder:
        site.wanted = ANSWERERS
        wait_for(fleet, ANSWERERS)
        speed_of(problems[:400], engines)
        begin, busy = time.perf_counter(), time.process_time()
        with Grader() as grader:
            search_all(
                problems,
                "mcts_star",
                SETTINGS,
                engines,
                grader=grader,
                seed=0,
                concurrency=WIDE,
                path=Path(folder) / "trees.jsonl",
            )
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    say("driver, with a core of its own", FLOOD / busy)
    return [
        Figure("a tree on the wire", size / 1e3, "kB"),
        Figure("driver, as the machine let it: trees", FLOOD / seconds, "/s"),
        Figure("driver: its processor's time for a tree", 1e3 * busy / FLOOD, "ms"),
        Figure("driver, with a core of its own: trees", FLOOD / busy, "/s"),
        Figure("driver, with a core of its own: trees' bytes", size * FLOOD / busy / 1e6, "MB/s"),
    ]


def tree_at_hand() -> Tree:
    """A tree of 16 iterations whose steps have token ids, as a model's have."""
    found: list[Tree] = []
    drive.run(
        [Problem("q", "What is 12 + 3 * 5 - 7 * 2?")],
        get_search("mcts_star"),
        SearchSettings(threshold=2),
        scripted_engines(),
        task_of=lambda problem: get_task(problem.task),
        seed=0,
        concurrency=1,
        on_tree=found.append,
    )
    ids: list[list[int] | None] = [None, *([20_000 + i for i in range(STEP_IDS)] for _ in range(len(found[0]) - 1))]
    return dataclasses.replace(found[0], ids=ids)
