"""One thread per device runs every in-process model there, one bounded piece of work at a time.

A policy and a value model on the same cores or card would otherwise fight for them. Each model is a `Stepper`; the
worker asks whichever is most in need for its next step. Requests enter from any event loop; replies go back to it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar, Protocol

import torch

from restmcts.engines.busy import Busy
from restmcts.errors import EngineError, is_out_of_memory
from restmcts.models import cores

log = logging.getLogger("restmcts")


class Stepper(Protocol):
    """A model that does its work in steps."""

    busy: Busy
    """counts the time its steps take"""

    def urgency(self) -> float:
        """How much a step is due now; 0 means nothing to do."""

    def step(self) -> None:
        """Do one bounded piece of work."""

    def shrink(self) -> bool:
        """Memory ran out in a step: give back what can be, and be ready to do it again with less at once.

        False when it cannot be less.
        """

    def fail(self, error: EngineError) -> None:
        """Answer everything that waits with `error`."""


class Worker:
    """The thread of one device."""

    _workers: ClassVar[dict[str, Worker]] = {}

    def __init__(self, device: str) -> None:
        self._steppers: list[Stepper] = []
        self._cores = cores()
        self._wake = threading.Condition()
        self._stepping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"restmcts-{device}", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, device: str) -> Worker:
        if device not in cls._workers:
            cls._workers[device] = cls(device)
        return cls._workers[device]

    def add(self, stepper: Stepper) -> None:
        with self._wake:
            self._steppers.append(stepper)

    def remove(self, stepper: Stepper) -> None:
        """Forget a stepper; returns when none of its steps is running."""
        with self._wake:
            if stepper in self._steppers:
                self._steppers.remove(stepper)
        with self._stepping:
            stepper.fail(EngineError("the engine was closed"))

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._cores)  # of this thread alone
        while True:
            with self._wake:
                due = max(self._steppers, key=lambda s: s.urgency(), default=None)
                if due is None or due.urgency() <= 0:
                    self._wake.wait()
                    continue
            with self._stepping:
                failure: Exception | None = None
                try:
                    with due.busy:
                        due.step()
                except Exception as error:  # whatever a model raises, its callers must hear of it
                    failure = error.with_traceback(None)  # whose frames would keep tensors in memory
                if failure is not None and not (is_out_of_memory(failure) and _again_with_less(due)):
                    due.fail(_engine_error(failure))
            del due  # a closed model must not be kept in memory until the next step


def _again_with_less(stepper: Stepper) -> bool:
    if not stepper.shrink():
        return False
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("out of memory: the engine goes on with less at once")
    return True


class Letter:
    """A request, and where its reply goes."""

    _numbers: ClassVar[Iterator[int]] = count()

    def __init__(self, request: Any, box: Mailbox) -> None:
        self.request = request
        self.number = next(self._numbers)
        self._box = box
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def reply(self, result: Any) -> None:
        self._close(lambda: self.future.set_result(result))

    def refuse(self, error: Exception) -> None:
        self._close(lambda: self.future.set_exception(error))

    def _close(self, act: Callable[[], None]) -> None:
        self._box.taken.discard(self)

        def unless_done() -> None:
            if not self.future.done():
                act()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(unless_done)


class Mailbox:
    """Requests for one stepper: those that wait and those it has taken and not answered yet."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._waiting: deque[Letter] = deque()
        self.taken: set[Letter] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, request: Any) -> Any:
        """Post a request and await its reply. A caller that is cancelled is simply not answered."""
        letter = Letter(request, self)
        with self._lock:
            self._waiting.append(letter)
        self._worker.wake()
        return await letter.future

    def take(self, fits: Callable[[Letter], bool] = lambda _: True) -> Letter | None:
        """The oldest request still wanted, if it fits."""
        with self._lock:
            while self._waiting and self._waiting[0].future.cancelled():
                self._waiting.popleft()
            if not self._waiting or not fits(self._waiting[0]):
                return None
            letter = self._waiting.popleft()
            self.taken.add(letter)
            return letter

    def put_back(self) -> None:
        """Let everything that was taken and not answered wait again, before the others."""
        with self._lock:
            for letter in sorted(self.taken, key=lambda letter: letter.number, reverse=True):
                self._waiting.appendleft(letter)
            self.taken.clear()

    def refuse_all(self, error: EngineError) -> None:
        """Answer everything, waiting or taken, with `error`."""
        while self.take() is not None:
            pass
        for letter in list(self.taken):
            letter.refuse(error)


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    text = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return EngineError("out of memory; lower engine.max_rows, engine.cache_mb or engine.concurrency")
    return EngineError(f"the model failed: {type(error).__name__}: {text}")
