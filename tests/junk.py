"""What models write when they go wrong, and what somebody writes who means harm: answers that must break nothing.

`python -m tests.junk 100000 [seed]` grades so many of them by every rule and says how long it took and the memory used.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterator

GOLDS = {
    "math": ["42", "x^2 + 3", r"\frac{\pi}{7}", r"\{1, 2, 3\}", "(1, 2)", r"x \in [0, 1)", "50%", "5 cm", "east"],
    "numeric": ["42", "0.25", "1,000"],
    "exact": ["Paris"],
    "choice": ["B"],
    "scibench": [r"4.59 [10^{17} \mathrm{Hz}]", "50.7"],
    "theoremqa": ["1.42", "true", "[1, 6]", "(c)"],
    "countdown": ["977 from 3 5 8 12"],
    "game24": ["24 from all of 3 3 8 8"],
}
"""Known answers by rule."""

NASTY = [
    *[
        "10**10**10",
        "10^{10^{10}}",
        "9^{9^{9^{9}}}",
        "1e999999999",
        "-1e-999999999",
        "9" * 1_000_000,
        "1/" * 5000 + "1",
    ],
    *["(" * 20_000, "(" * 900 + "1" + ")" * 900, "{" * 20_000, r"\frac{" * 3000, r"\boxed{" * 5000, r"\left(" * 500],
    *[r"\sqrt{" * 200 + "2" + "}" * 200, "[" * 500 + "1,2" + "]" * 500, "1," * 5000, "a=" * 2000, "x" * 1_000_000],
    *[
        "\x00",
        "4\x002",
        "\ud800",
        "4\udfff2",
        "\u202e42\u202c",
        "\u200f42",
        "4\u200d2",
        "\ufeff42",
        "٤٢",
        "42\u0300" * 50,
    ],
    *[
        "factorial(10**9)",
        "10!!!!!!!!",
        "(10^9)!",
        r"\binom{10^9}{5\cdot 10^8}",
        r"\sum_{k=1}^{10^9} k!",
        r"\int e^{x^{x^x}}",
    ],
    *[
        "Answer: " * 5000,
        "The answer is " * 5000,
        "#### " * 5000,
        "$" * 5001,
        "$$\n" * 3000,
        "答案是" * 5000,
        "\\" * 5000,
    ],
    *[
        "__import__('os').system('true')",
        "lambda: 0",
        "exit()",
        "None",
        "nan",
        "inf",
        "-oo",
        "True",
        "S(1)",
        "<script>",
    ],
    *[
        r"\begin{pmatrix}" + "1&" * 3000 + r"\end{pmatrix}",
        r"\begin{array}" * 300,
        "1 and " * 3000,
        "= " * 3000,
        "%" * 3000,
    ],
    *[
        r"\pm" * 50 + "1",
        r"\{" * 300,
        "||" * 500,
        "x_{" * 300,
        "^" * 500,
        "2^" * 500 + "2",
        "-" * 5000 + "1",
        "+" * 5000,
    ],
]
PIECES = [
    *"0123456789+-*/^=(){}[]$\\,.;:%!?<>|&_~'\" xyzneiπ",
    *[
        r"\frac{",
        r"\sqrt",
        r"\pi",
        r"\text{",
        "10^",
        r"\pm",
        r"\boxed{",
        r"\left(",
        r"\right)",
        r"\cup",
        r"\infty",
        r"\in",
    ],
    *[
        "Answer: ",
        "The answer is ",
        "#### ",
        "答案是",
        "。",
        "\n",
        "\t",
        " and ",
        " or ",
        "\x00",
        "\ud800",
        "\u202e",
        "\u200f",
    ],
    *[
        "e99",
        "**",
        "1,000",
        "0.5",
        "½",
        "²",
        "°",
        "√",
        "∞",
        "≤",
        "×",
        "÷",
        "−",
        "５",
        "🙂",
        "kg",
        " percent",
        r"\\",
        r"\sin",
        "cm^2",
    ],
    *[r"\begin{pmatrix}", r"\end{pmatrix}", r"\{", r"\}", r"\sum_{i=1}^{", r"\int_0^", r"\log", "A. ", "(B)", " = 24"],
]


def junk(count: int, seed: int = 0) -> Iterator[str]:
    """`count` strings: the nasty ones first, then at random short, long, one thing repeated, right answers damaged."""
    rng = random.Random(seed)
    golds = [gold for known in GOLDS.values() for gold in known]
    yield from NASTY[:count]
    for _ in range(count - len(NASTY)):
        kind = rng.random()
        if kind < 0.6:
            text = "".join(rng.choices(PIECES, k=rng.randint(1, 25)))
        elif kind < 0.7:
            text = "".join(
                chr(rng.choice((rng.randrange(0x110000), rng.randrange(128)))) for _ in range(rng.randint(1, 40))
            )
        elif kind < 0.75:
            text = "".join(rng.choices(PIECES, k=rng.randint(1, 4))) * rng.randint(2, 400)
        elif kind < 0.8:
            text = rng.choice(NASTY)[:2000] + rng.choice(PIECES)
        else:
            gold = rng.choice(golds)
            place = rng.randint(0, len(gold))
            text = gold[:place] + rng.choice(PIECES) + gold[place + rng.randint(0, 1) :]
        yield rng.choice(("", "", "", "Answer: ", "\\boxed{", "#### ")) + text


def grade_junk(count: int, seed: int = 0) -> dict[str, float]:
    """Grade `count` strings, every second one as mathematics, the others by each rule in turn.

    Returns counts and seconds; raises what grading raises.
    """
    from restmcts.tasks.answers import equivalent
    from restmcts.tasks.grade import default_grader

    rng = random.Random(seed + 1)
    rules = list(GOLDS)
    slowest, right = 0.0, 0
    began = time.perf_counter()
    for number, text in enumerate(junk(count, seed)):
        rule = rules[number // 2 % len(rules)] if number % 2 else "math"
        gold = rng.choice(GOLDS[rule])
        start = time.perf_counter()
        verdict = equivalent(gold, text, rule=rule)
        slowest = max(slowest, time.perf_counter() - start)
        assert verdict in (True, False)
        right += verdict
    grader = default_grader()
    return {
        "strings": count,
        "right": right,
        "seconds": time.perf_counter() - began,
        "slowest": slowest,
        "timeouts": grader.timeouts,
        "crashes": grader.crashes,
    }


if __name__ == "__main__":
    found = grade_junk(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    from restmcts.tasks.grade import default_grader

    default_grader().close()
    for name, who in (("MB", resource.RUSAGE_SELF), ("engine MB", resource.RUSAGE_CHILDREN)):
        found[name] = resource.getrusage(who).ru_maxrss / 1024
    print(", ".join(f"{name} {value:.5g}" for name, value in found.items()))
