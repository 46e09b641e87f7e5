"""Who has which job: what is handed out to workers, and what comes back from one that is lost. Pure bookkeeping."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from restmcts.seeds import derive_seed

W = TypeVar("W")


@dataclass(eq=False, slots=True)
class Job(Generic[W]):
    """One thing to be done by a worker: a whole search, or a single request. `waits` is what its owner waits on."""

    number: int
    order: bytes
    waits: W
    name: str
    """the question it is about"""
    search: bool
    losses: int = 0
    """workers that were lost while they had it"""
    suspect: bool = False


@dataclass(slots=True)
class _Held(Generic[W]):
    """The jobs that one worker has, by number, and how many of them are searches."""

    jobs: dict[int, Job[W]] = field(default_factory=dict)
    searches: int = 0

    def add(self, job: Job[W]) -> None:
        self.jobs[job.number] = job
        self.searches += job.search

    def remove(self, number: int) -> Job[W] | None:
        job = self.jobs.pop(number, None)
        self.searches -= job is not None and job.search
        return job


class Queue(Generic[W]):
    """Jobs that wait, and jobs that workers have: each is in one place, and leaves it when its result is first told.

    A search goes to the worker that has the fewest, none having more than `room`. Single requests of a question all go
    to one worker, at once, for they share their beginning. A search that would be given up with the next worker that is
    lost is a suspect: a worker has one of these at a time, so that it shows which of them is the cause.
    """

    def __init__(self, room: int = 1, *, last: int = 0) -> None:
        self.room = room
        self.last = last
        """number of the latest job; none has the number of another one, of an earlier queue either"""
        self._searches: deque[Job[W]] = deque()
        self._suspects: deque[Job[W]] = deque()
        self._requests: deque[Job[W]] = deque()
        self._held: dict[str, _Held[W]] = {}
        self._out = 0
        """searches that workers have"""

    def __contains__(self, worker: str) -> bool:
        return worker in self._held

    def __iter__(self) -> Iterator[Job[W]]:
        """All jobs."""
        yield from (*self._requests, *self._suspects, *self._searches)
        for held in self._held.values():
            yield from held.jobs.values()

    def put(self, order: bytes, waits: W, name: str, *, search: bool) -> Job[W]:
        """A new job, at the end of the queue."""
        self.last += 1
        job = Job(self.last, order, waits, name, search)
        (self._searches if search else self._requests).append(job)
        return job

    def join(self, worker: str) -> None:
        """A worker is there to be given jobs."""
        self._held[worker] = _Held()

    def lose(self, worker: str, most: int) -> tuple[int, list[Job[W]]]:
        """Take the jobs of a worker that is gone back to the front of the queue, in their order.

        Returns how many, and those that are given up: `most` workers were lost with them.
        """
        held = self._held.pop(worker, _Held())
        self._out -= held.searches
        back, given_up = 0, []
        for job in sorted(held.jobs.values(), key=lambda job: -job.number):
            job.losses += 1
            if job.losses >= most:
                given_up.append(job)
                continue
            back += 1
            job.suspect = job.search and job.losses == most - 1
            (self._suspects if job.suspect else self._searches if job.search else self._requests).appendleft(job)
        return back, given_up

    def done(self, worker: str, number: int) -> Job[W] | None:
        """The job that a worker has done; None when it does not have it: then it was given up, or done by another."""
        held = self._held.get(worker)
        job = None if held is None else held.remove(number)
        self._out -= job is not None and job.search
        return job

    def drop(self) -> list[Job[W]]:
        """Take the searches that still wait out of the queue."""
        dropped = [*self._suspects, *self._searches]
        self._suspects.clear()
        self._searches.clear()
        return dropped

    def hand_out(self, coming: int = 0) -> dict[str, list[Job[W]]]:
        """Give waiting jobs to workers: worker → what it is to begin now.

        Where there are fewer searches than there is room for, a worker gets its share only: of as many workers as there
        are and, `coming`, as soon will be.
        """
        given: dict[str, list[Job[W]]] = {}
        if not self._held:
            return given
        while self._requests:
            job = self._requests.popleft()
            self._give(max(self._held, key=lambda worker: derive_seed(job.name, worker)), job, given)
        waiting = len(self._suspects) + len(self._searches)
        if not waiting:
            return given
        share = -(-(waiting + self._out) // (len(self._held) + coming))
        most = min(self.room, share)
        free = [(held.searches, worker) for worker, held in self._held.items() if held.searches < most]
        for load, worker in sorted(free):
            if self._suspects and not any(job.suspect for job in self._held[worker].jobs.values()):
                self._give(worker, self._suspects.popleft(), given)
                free.remove((load, worker))
                free += [(load + 1, worker)] * (load + 1 < most)
        heapq.heapify(free)
        while self._searches and free:
            load, worker = heapq.heappop(free)
            self._give(worker, self._searches.popleft(), given)
            if load + 1 < most:
                heapq.heappush(free, (load + 1, worker))
        return given

    def _give(self, worker: str, job: Job[W], given: dict[str, list[Job[W]]]) -> None:
        self._held[worker].add(job)
        self._out += job.search
        given.setdefault(worker, []).append(job)
