"""What the server costs: many requests at once, against the same searches driven directly, on the same engines.

The engines stand in a process of their own. There the searches are first driven directly; then the same ones come as
requests from here, all at once, and as many trees are open. Once with scripted engines that are as slow as models are,
once with the embedded model, opened anew so that both begin with an empty cache. The time of a search is that from the
beginning to its end, its wait for a place included.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import Figure
from benchmarks.engines import Work, make_work, opened
from restmcts import drive, models
from restmcts.config import RunConfig, load_config
from restmcts.engines import Engines
from restmcts.engines.scripted import scripted_engines
from restmcts.search import get_search
from restmcts.serve.server import serving
from restmcts.tasks import get_task
from restmcts.types import Problem, Tree

REQUESTS = 200
LATENCY = 0.06
"""seconds that a scripted engine takes at most, half of that on average"""
TOKENS = 48
"""of the embedded model, for each question"""
OF_BARE = 0.9
"""aim: of what is driven directly, a second"""


@dataclass(frozen=True, slots=True)
class Load:
    """What is searched, on what."""

    config: RunConfig
    questions: list[str]
    work: Work | None = None
    """the embedded model; None: the scripted engines"""
    latency: float = 0.0


@dataclass(slots=True)
class Timed:
    """Seconds from the beginning to the end of each search, and of all of them; tokens generated."""

    each: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    def share(self, percent: int) -> float:
        """The seconds in which so many of a hundred searches were done."""
        return statistics.quantiles(self.each, n=100)[percent - 1]


def run() -> list[Figure]:
    numbers = [f"What is {i} + {i % 7} * {i % 5} - {i % 11}?" for i in range(REQUESTS)]
    settings = ("search.iterations=8", "serve.port=0", "engine.concurrency=48")
    scripted = load_config(flags={"policy": "scripted"}, overrides=settings)
    figures = compared("scripted engines", Load(scripted, numbers, latency=LATENCY))
    quick = load_config(flags={"policy": "scripted"}, overrides=(*settings, "search.method=cot"))
    _, served = measure(Load(quick, numbers))
    figures.append(Figure("a request that costs its engine nothing", 1e3 * served.seconds / REQUESTS, "ms"))
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(Path(folder))
        budget = work.config.search.model_copy(update={"budget_tokens": TOKENS})
        port = work.config.serve.model_copy(update={"port": 0})
        config = work.config.model_copy(update={"search": budget, "serve": port})
        figures += compared("the embedded model", Load(config, [p.question for p in work.questions[:REQUESTS]], work))
    return figures


def compared(name: str, load: Load) -> list[Figure]:
    """Both ways side by side."""
    bare, served = measure(load)
    if bare.tokens and abs(served.tokens / bare.tokens - 1) > 0.02:
        raise AssertionError(f"{name}: {served.tokens} tokens served, {bare.tokens} driven: not the same work")
    count = len(load.questions)
    return [
        *(Figure(f"{name}, driven: p{p}", bare.share(p), "s") for p in (50, 95)),
        *(Figure(f"{name}, served: p{p}", served.share(p), "s") for p in (50, 95)),
        Figure(f"{name}, driven: searches", count / bare.seconds, "/s"),
        Figure(f"{name}, served: requests", count / served.seconds, "/s"),
        Figure(f"{name}, served ÷ driven", bare.seconds / served.seconds, "×", aim=OF_BARE, better="higher"),
    ]


def measure(load: Load) -> tuple[Timed, Timed]:
    """The searches driven directly, and the same ones served."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=engines_side, args=(load, there))
    process.start()
    there.close()
    try:
        bare: Timed = here.recv()
        url: str = here.recv()
        served = asyncio.run(ask_all(url, load.questions))
        here.send("done")
    finally:
        here.close()
        process.join()
    return bare, served


# ---------------------------------------------------------------- in the engines' process


def engines_side(load: Load, there: Connection) -> None:
    """Drive the searches and send the times; then serve, send the URL, and end when told to."""
    with models.one_thread() if load.work else _nothing():
        with engines_of(load) as engines:
            there.send(driven(load, engines))
        with engines_of(load) as engines, serving(load.config, engines) as url:
            there.send(url)
            try:
                there.recv()
            except EOFError:
                return


@contextmanager
def engines_of(load: Load) -> Iterator[Engines]:
    """Ready, and with nothing of the questions in a cache."""
    if load.work is None:
        yield scripted_engines(latency=load.latency)
    else:
        with opened("transformers", load.work) as engines:
            yield engines


def driven(load: Load, engines: Engines) -> Timed:
    """All searches by `drive.run`."""
    config, found, task = load.config, Timed(), get_task("math")
    begin = time.perf_counter()

    def on_tree(tree: Tree) -> None:
        found.each.append(time.perf_counter() - begin)
        found.tokens += tree.usage.policy_tokens

    drive.run(
        [Problem("question", question) for question in load.questions],
        get_search(config.search.method),
        config.search,
        engines,
        task_of=lambda _: task,
        seed=config.seed,
        concurrency=config.engine.concurrency,
        on_tree=on_tree,
    )
    found.seconds = time.perf_counter() - begin
    return found


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# ---------------------------------------------------------------- the clients


async def ask_all(url: str, questions: Sequence[str]) -> Timed:
    """All requests at once, each on a connection of its own."""
    found, begin = Timed(), time.perf_counter()

    async def one(question: str) -> None:
        reply = await ask(url, question)
        found.each.append(time.perf_counter() - begin)
        found.tokens += reply["usage"]["completion_tokens"]

    await asyncio.gather(*map(one, questions))
    found.seconds = time.perf_counter() - begin
    return found


async def ask(url: str, question: str) -> Any:
    """One request, with nothing about it that takes time."""
    at = urlsplit(url)
    body = json.dumps({"model": "restmcts", "messages": [{"role": "user", "content": question}]}).encode()
    head = f"POST {at.path}/chat/completions HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        writer.write(head.encode() + body)
        said = await reader.read()
    finally:
        writer.close()
    status, _, content = said.partition(b"\r\n\r\n")
    if b" 200 " not in status.splitlines()[0]:
        raise AssertionError(said[:300])
    return json.loads(content)
