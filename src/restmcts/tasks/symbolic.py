"""The symbolic engine, in a process of its own: math-verify compares two answers.

Run as a script by `grade.Worker`. It imports nothing of this package, so it starts as fast as sympy does. One request
a line on standard input, `[answer, answer, tolerance, seconds]` as JSON; one reply a line, `true` or `false`.

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
from functools import lru_cache
from typing import Any

READY = "ready"


def main(megabytes: int) -> None:
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
        first, second, tolerance, seconds = json.loads(line)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal(math_verify, first, second, tolerance)
        except (Exception, RecursionError, MemoryError):
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


def equal(math_verify: Any, first: str, second: str, tolerance: float) -> bool:
    """Whether two answers are equal as mathematics: symbolically, or numerically to `tolerance` of the larger one.

    math-verify's own comparison depends on which answer is the known one; here both orders must agree.
    """

    def same(a: Any, b: Any) -> bool:
        return bool(math_verify.verify(a, b, allow_set_relation_comp=True, timeout_seconds=None))

    def settled(a: Any) -> Any:
        """Of an equation that holds whatever its names stand for ("7 + 5 = 12"), the last side."""
        last = a.args[-1] if type(a).__name__ == "And" else a
        if type(last).__name__ == "Equality" and (not a.free_symbols or same(last.lhs, last.rhs)):
            return last.rhs
        return a

    known, given = ([settled(a) for a in parsed(math_verify, text)] for text in (first, second))
    for a in known:
        for b in given:
            x, y = _real(a), _real(b)
            if x is not None and y is not None:
                if abs(x - y) <= tolerance * max(abs(x), abs(y)) and (tolerance > 1e-6 or same(a, b)):
                    return True
            elif same(a, b) and same(b, a):
                return True
    return False


@lru_cache(maxsize=500)
def parsed(math_verify: Any, text: str) -> list[Any]:
    """`expressions`, remembered: one known answer is compared with many."""
    return expressions(math_verify, text)


def expressions(math_verify: Any, text: str) -> list[Any]:
    """What `text` can be read as: LaTeX in its own marks or as a whole, a list or a decimal comma."""
    text = re.sub(r"\\mathrm\s*\{\s*([a-z])\s*\}", r"\1", text)
    decimals = re.fullmatch(r"\s*([+-]?\d+),(\d+)\s*", text)
    kinds = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
    if not re.search(r"\$|\\boxed|\\\(|\\\[", text):
        text, kinds = f"${text}$", kinds[:1]  # as a whole or not at all: no number is picked out of it
    found: list[Any] = math_verify.parse(text, kinds, parsing_timeout=None)
    return found + (math_verify.parse(f"{decimals[1]}.{decimals[2]}", parsing_timeout=None) if decimals else [])


def _real(a: Any) -> float | None:
    """A real number as a float; None for anything else."""
    if not getattr(a, "is_number", False) or getattr(a, "is_Matrix", False):
        return None
    try:
        return float(a)
    except (TypeError, ValueError, OverflowError):
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
