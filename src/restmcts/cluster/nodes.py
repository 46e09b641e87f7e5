"""The nodes of a Ray cluster as places for workers. The only module that knows Ray, and only inside its functions."""

from __future__ import annotations

import asyncio
import logging
import socket
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from restmcts.cluster.fleet import Lost
from restmcts.cluster.worker import News, Worker
from restmcts.errors import ConfigError, EngineError

_CLOSING = 10.0
"""seconds that a worker may take to close its engines before its process is ended"""
_REACHING = 10.0
"""seconds in which a cluster must take up a connection"""
_MOST = 10_000
"""calls that a worker answers at a time"""

_CAUSES = ("ModuleNotFoundError", "The actor is dead because", "The actor died because", "The node")
"""how lines begin that tell more than that something is wrong"""


def connect(address: str) -> str:
    """Make this process a driver of the cluster; the cluster's address. Raises ConfigError where there is none."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("--ray needs Ray, which is not installed; run: pip install 'restmcts[ray]'") from None
    if not ray.is_initialized():
        try:
            if address != "auto":
                _reach(address)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what will change in later versions of Ray
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            what = "no cluster runs on this machine" if address == "auto" else f"no cluster answers at {address}"
            raise ConfigError(
                f"{what} ({_first_line(error)}); start one with `ray start --head`, join it elsewhere with `ray start "
                "--address HOST:6379`, and run this on one of its machines"
            ) from None
    found: str = ray.get_runtime_context().gcs_address
    return found


def _reach(address: str) -> None:
    """Raise ConfigError unless it is HOST:PORT, OSError unless somebody listens there: Ray asks for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(f"cluster.address = {address!r}: it must be HOST:PORT, e.g. 10.0.0.1:6379, or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHING).close()


@dataclass(frozen=True, slots=True)
class _Place:
    """Room for one worker on a node, and what it takes of it."""

    node: str
    cpus: float
    gpus: float


class Nodes:
    """The places of a cluster: see `sections.ClusterSettings.workers`.

    `on_gpus`: whether workers run models themselves; then, where the cluster has GPUs, only nodes that have some get
    workers. `recipe` is what they are to open.
    """

    worker: type[Worker] = Worker
    """what is started"""

    def __init__(self, address: str, recipe: bytes, *, workers: int | None, on_gpus: bool) -> None:
        self.name = connect(address)
        self._recipe, self._workers, self._on_gpus = recipe, workers, on_gpus
        self._known: dict[str, _Place] = {}

    def places(self) -> Iterable[str]:
        import ray
        from ray.exceptions import RayError

        try:
            found = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        except (RayError, OSError, RuntimeError) as error:
            raise EngineError(
                f"the cluster {self.name} does not answer any more ({_first_line(error)}); start it again and run the "
                "same command again: finished work is kept"
            ) from None
        gpus = self._on_gpus and any(has.get("GPU", 0) >= 1 for _, has in found)
        self._known = {
            f"{node} {i}": place
            for node, has in found
            for i, place in enumerate(_shares(node, has.get("CPU", 0), has.get("GPU", 0), self._workers, gpus))
        }
        return list(self._known)

    def start(self, place: str) -> Actor:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        at = self._known[place]
        there = ray.remote(self.worker).options(
            num_cpus=at.cpus,
            num_gpus=at.gpus,
            max_restarts=0,
            max_concurrency=_MOST,
            scheduling_strategy=NodeAffinitySchedulingStrategy(at.node, soft=False),
        )
        return Actor(there.remote(), self._recipe)


def _shares(node: str, cpus: float, gpus: float, workers: int | None, on_gpus: bool) -> list[_Place]:
    """What each worker of a node gets: a GPU at most, and of the cores as many whole ones as all can have."""
    if (gpus if on_gpus else cpus) <= 0:
        return []
    count = workers or (max(1, int(gpus)) if on_gpus else 1)
    share = cpus / count
    cores = share if share < 1 else float(int(share))
    return [_Place(node, cores, min(1.0, gpus / count) if on_gpus else 0.0)] * count


class Actor:
    """A worker on a node. See `fleet.Remote`."""

    def __init__(self, actor: Any, recipe: bytes) -> None:
        self._actor = actor
        self._where = actor.where.remote()
        self._open = actor.open.remote(recipe)

    async def where(self) -> str:
        said: str = await self._told(lambda: self._where)
        return said

    async def open(self) -> bytes:
        said: bytes = await self._told(lambda: self._open)
        return said

    async def give(self, jobs: Sequence[tuple[int, bytes]], allowance: bytes) -> None:
        await self._told(lambda: self._actor.give.remote(jobs, allowance))

    async def news(self, allowance: bytes) -> News:
        said: News = await self._told(lambda: self._actor.news.remote(allowance))
        return said

    async def close(self) -> None:
        with suppress(Lost, TimeoutError):
            await asyncio.wait_for(self._told(lambda: self._actor.close.remote()), _CLOSING)
        self.kill()

    def kill(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    async def _told(self, ask: Callable[[], Any]) -> Any:
        """What a call says. Raises Lost when the worker cannot be reached, what it raised otherwise."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return await ask()
        except RayError as error:
            line = _first_line(error)
            if "No module named" in line:
                raise ConfigError(
                    f"a node of the cluster lacks what a worker needs ({line}): install the same everywhere"
                ) from None
            if isinstance(error, RayTaskError):  # the worker itself raised it: a bug
                raise
            raise Lost(line) from None


def _first_line(error: BaseException) -> str:
    """What Ray says of the cause, without its report of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(_CAUSES)]
    return (causes[-1:] or lines or [type(error).__name__])[0][:200]
