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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restmcts.errors import TaskError
from restmcts.tasks import answers
from restmcts.tasks.numbers import TOLERANCE, plain_signs
from restmcts.types import Problem

if TYPE_CHECKING:
    from restmcts.tasks import Task

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
        self._memo: dict[tuple[str, str, Fraction], bool] = {}
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
        return self.judge(get_task(problem.task), problem.answer, answer)

    def judge(self, task: Task, gold: str, answer: str) -> bool:
        """Whether `answer` is right by the rule of `task`."""
        verdict = task.compare(gold, answer)
        return self.symbolic(gold, answer, task.tolerance(gold)) if verdict is None else verdict

    def symbolic(self, gold: str, answer: str, tolerance: Fraction = TOLERANCE) -> bool:
        """Whether two answers are equal as mathematics; False if that cannot be told within the limits.

        Symmetric: what is asked of the engine does not depend on which of the two is the known one.
        """
        with self._lock:
            first, second = sorted((gold, answer))
            asked = first, second, tolerance
            if asked not in self._memo:
                if len(self._memo) >= MEMO_SIZE:
                    self._memo.clear()
                self._memo[asked] = self._judge(first, second, tolerance, _Deadline(self._seconds))
            return self._memo[asked]

    def _judge(self, a: str, b: str, tolerance: Fraction, deadline: _Deadline) -> bool:
        """Part by part where both are made of parts, else by the engine."""

        def equal(x: str, y: str) -> bool:
            verdict = answers.compare_math(x, y, tolerance)
            return self._judge(x, y, tolerance, deadline) if verdict is None else verdict

        verdict = answers.compare_parts(a, b, equal)
        return self._ask(a, b, tolerance, deadline) if verdict is None else verdict

    def _ask(self, a: str, b: str, tolerance: Fraction, deadline: _Deadline) -> bool:
        for _ in range(2):  # an engine may have died of something else; one that dies twice dies of this
            if self._worker is None:
                with deadline.paused():
                    self._worker = Worker(self._megabytes)
            if (left := deadline.left()) <= 0:
                self.timeouts += 1
                return False
            reply = self._worker.ask([plain_signs(a), plain_signs(b), float(tolerance), left], left)
            if reply is not None:
                return reply is True
            self._stop()
            if deadline.left() <= 0:
                self.timeouts += 1
                return False
        self.crashes += 1
        return False

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Deadline:
    """The time that one comparison may still take, however many questions it asks."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not the comparison's fault: an engine that starts."""
        began = time.monotonic()
        yield
        self._end += time.monotonic() - began


class Worker:
    """The process of `symbolic`, ready to be asked. Raises TaskError when it cannot start."""

    def __init__(self, megabytes: int) -> None:
        script = Path(__file__).with_name("symbolic.py")
        self._process = subprocess.Popen(
            # -P: the script's folder is not searched for modules
            [sys.executable, "-P", str(script), str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes its worker
        )
        said = self._line(START_SECONDS).decode("utf-8", "replace").strip()
        if said != "ready":
            self.close()
            raise TaskError(f"math-verify cannot start ({said or 'no reply'}); run: pip install math-verify")

    def ask(self, request: Any, seconds: float) -> Any:
        """The reply to `request`; None if there was none in time, and the process is then of no further use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        # The engine ends itself after its time limit; the second more is for a process that is not even scheduled.
        line = self._line(seconds + 1)
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
