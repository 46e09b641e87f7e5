"""The symbolic engine, in a process of its own: math-verify compares a gold and a given answer.

Run as a script by `grade.Worker`. It imports nothing of this package, so it starts as fast as sympy does. One request
a line on standard input, `[gold, answer]` as JSON; one reply a line, `true` or `false`.

What it is given may hang it, exhaust its memory or crash it. So it limits its own memory, and the kernel ends it when
an item takes too long, even when nobody is left to do so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys
from typing import Any

TOLERANCE = 1e-6
READY = "ready"


def main(seconds: float, megabytes: int) -> None:
    """Serve requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    import logging

    logging.disable(logging.CRITICAL)
    try:
        import math_verify
    except ImportError as error:
        print(str(error).replace("\n", " "), file=replies, flush=True)
        return
    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal(math_verify, gold, answer)
        except (Exception, RecursionError, MemoryError):
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


def equal(math_verify: Any, gold: str, answer: str) -> bool:
    """Whether two answers are equal as mathematics: symbolically, or numerically to `TOLERANCE` of the larger one."""
    known, given = expressions(math_verify, gold), expressions(math_verify, answer)
    return any(math_verify.verify(a, b, timeout_seconds=None) and not _apart(a, b) for a in known for b in given)


def expressions(math_verify: Any, text: str) -> list[Any]:
    """What `text` can be read as: LaTeX in its own marks or as a whole, a list or a decimal comma."""
    text = re.sub(r"\\mathrm\s*\{\s*([a-z])\s*\}", r"\1", text)
    decimals = re.fullmatch(r"\s*([+-]?\d+),(\d+)\s*", text)
    if not re.search(r"\$|\\boxed|\\\(|\\\[", text):
        text = f"${text}$"
    found: list[Any] = math_verify.parse(text, parsing_timeout=None)
    return found + (math_verify.parse(f"{decimals[1]}.{decimals[2]}", parsing_timeout=None) if decimals else [])


def _apart(a: Any, b: Any) -> bool:
    """Whether both are real numbers that differ by more than `TOLERANCE` (math-verify rounds to 6 decimals)."""
    try:
        x, y = float(a), float(b)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(x - y) > TOLERANCE * max(abs(x), abs(y))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
