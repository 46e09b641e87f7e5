"""Grade answers: what text and numbers tell at once, the rest by a symbolic engine that can be killed.

The engine lives in a process of its own (`symbolic`), started when first needed. An item that takes too long, too much
memory or crashes it is graded wrong, and the next item gets a new process.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from restmcts.errors import TaskError
from restmcts.types import Problem

START_SECONDS = 120.0
"""How long the engine may take to start; sympy alone takes seconds on a busy machine."""
MEMO_SIZE = 200_000


class Grader:
    """Grades answers, in order; a context manager that owns the symbolic engine's process.

    `seconds` is the time limit of one comparison, `megabytes` the engine's memory limit (address space). Safe to use
    from several threads. `timeouts` and `crashes` count the comparisons that were given up and graded wrong.
    """

    def __init__(self, *, seconds: float = 5.0, megabytes: int = 2048) -> None:
        if seconds <= 0:
            raise TaskError(f"seconds={seconds} is no time limit; give a positive number")
        self.timeouts = 0
        self.crashes = 0
        self._seconds, self._megabytes = seconds, megabytes
        self._worker: Worker | None = None
        self._memo: dict[tuple[str, str], bool] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's process. The grader stays usable: a new one starts when needed."""
        with self._lock:
            self._stop()

    def grade_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
        """Whether each answer is right for its problem, in order.

        Raises TaskError for a problem without a known answer or of an unknown task, and when math-verify cannot run.
        """
        return [self.grade(problem, answer) for problem, answer in pairs]

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether `answer` is right for `problem`. Raises TaskError as `grade_many` does."""
        from restmcts.tasks import get_task

        if problem.answer is None:
            raise TaskError(f"problem {problem.id!r} has no answer to grade against; give it one")
        verdict = get_task(problem.task).compare(problem.answer, answer)
        return self.symbolic(problem.answer, answer) if verdict is None else verdict

    def symbolic(self, gold: str, answer: str) -> bool:
        """Whether the symbolic engine finds two answers equal; False if it cannot tell within its limits."""
        with self._lock:
            pair = gold, answer
            if pair not in self._memo:
                if len(self._memo) >= MEMO_SIZE:
                    self._memo.clear()
                self._memo[pair] = self._ask(gold, answer)
            return self._memo[pair]

    def _ask(self, gold: str, answer: str) -> bool:
        for _ in range(2):  # an engine may have died of something else; one that dies twice dies of this
            if self._worker is None:
                self._worker = Worker(self._seconds, self._megabytes)
            began = time.monotonic()
            reply = self._worker.ask([gold, answer])
            if reply is not None:
                return reply is True
            self._stop()
            if time.monotonic() - began >= self._seconds:
                self.timeouts += 1
                return False
        self.crashes += 1
        return False

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class Worker:
    """The process of `symbolic`, ready to be asked. Raises TaskError when it cannot start."""

    def __init__(self, seconds: float, megabytes: int) -> None:
        self._limit = seconds
        script = Path(__file__).with_name("symbolic.py")
        self._process = subprocess.Popen(
            # -P: the script's folder is not searched for modules
            [sys.executable, "-P", str(script), str(seconds), str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes its worker
        )
        said = self._line(START_SECONDS).decode("utf-8", "replace").strip()
        if said != "ready":
            self.close()
            raise TaskError(f"math-verify cannot start ({said or 'no reply'}); run: pip install math-verify")

    def ask(self, request: Any) -> Any:
        """The reply to `request`; None if there was none in time, and the process is then of no further use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        # The engine ends itself after its time limit; the second more is for a process that is not even scheduled.
        line = self._line(self._limit + 1)
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _line(self, seconds: float) -> bytes:
        """One line of the process's output; an incomplete one after `seconds` or at its end."""
        assert self._process.stdout is not None
        source, line, end = self._process.stdout.fileno(), b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while not line.endswith(b"\n") and (left := end - time.monotonic()) > 0:
                if selector.select(left):
                    piece = os.read(source, 4096)
                    if not piece:
                        break
                    line += piece
        return line


_default: Grader | None = None


def default_grader() -> Grader:
    """The grader that tasks use when they are asked directly; its process ends with this one."""
    global _default
    if _default is None:
        _default = Grader()
        atexit.register(_default.close)
    return _default
