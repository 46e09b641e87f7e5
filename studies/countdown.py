"""Questions that are easier to check than to answer: four numbers, each to be used once, and a target.

    22 from 2 3 5 9     3*5=15:7,2 9 / 15+9=24:2,2 / 24-2=22:0 / Answer: ((3*5)+9)-2

After each operation stands how far that is from the target, and which numbers are left. A policy learns from worked
solutions of which some miss the target, so it computes well and aims badly. Whether the numbers that are left can still
reach the target is for a value model to find out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from restmcts.tasks.expressions import read_expression
from restmcts.types import Problem
from studies.kinds import Kind

NUMBERS = range(1, 10)
MOST = 40
"""No step comes to more."""
AIMED = 0.7
"""share of a policy's worked solutions that reach the target"""
ANSWER = "Answer: "


def problems(
    count: int, seed: int, name: str, size: int, *, taken: set[str], of_seed: int | None = None
) -> list[Problem]:
    """`count` different questions with `size` numbers: none in `taken`, to which they are added.

    With `of_seed`, some of the solutions are others with the same numbers, which need not reach the target.
    """
    chance = random.Random(seed)
    made: list[Problem] = []
    while len(made) < count:
        chain = _chain(chance, [chance.choice(NUMBERS) for _ in range(size)])
        numbers, target = sorted(chain.numbers), chain.totals[-1]
        question = f"{target} from {' '.join(map(str, numbers))}"
        if target and question not in taken:
            taken.add(question)
            if of_seed is not None and chance.random() > AIMED:
                chain = _chain(chance, numbers)
            known, solution = question.replace("from", "from all of"), "\n".join(chain.steps(target))
            made.append(Problem(f"{name}-{len(made)}", question, known, solution, task="countdown"))
    return made


@dataclass(frozen=True)
class Chain:
    """Numbers in the order in which they are taken, the signs between them, and what all comes to after each."""

    numbers: list[int]
    signs: list[str]
    totals: list[int]

    def steps(self, target: int) -> list[str]:
        """How it is written down."""
        lines, text = list[str](), str(self.numbers[0])
        for at, (sign, number) in enumerate(zip(self.signs, self.numbers[1:], strict=True), 1):
            before, total = self.totals[at - 1 : at + 1]
            left = " ".join(map(str, sorted(self.numbers[at + 1 :])))
            lines.append(f"{before}{sign}{number}={total}:{abs(total - target)}{',' if left else ''}{left}")
            text = f"{f'({text})' if at > 1 else text}{sign}{number}"
        return [*lines, ANSWER + text]


def _chain(chance: random.Random, numbers: Sequence[int]) -> Chain:
    """The numbers in some order and with some signs, so that nothing is negative or more than MOST."""
    while True:
        order = chance.sample(numbers, len(numbers))
        signs = chance.choices("+-*", k=len(order) - 1)
        totals = [order[0]]
        for sign, number in zip(signs, order[1:], strict=True):
            totals.append({"+": totals[-1] + number, "-": totals[-1] - number, "*": totals[-1] * number}[sign])
        if min(totals) >= 0 and max(totals) <= MOST:
            return Chain(order, signs, totals)


def faultless(question: str, steps: Sequence[str]) -> bool:
    """Whether every step comes to what it says, as far from the target as it says."""
    target = int(question.split()[0])
    return all(_holds(step, target) for step in steps)


def _holds(step: str, target: int) -> bool:
    if step.startswith(ANSWER):
        return True
    found = re.fullmatch(r"(.*)=(\d+):(\d+)(,[\d ]+)?", step)
    if found is None or (worked := read_expression(found[1])) is None:
        return False
    return worked.value == int(found[2]) and abs(worked.value - target) == int(found[3])


KIND = Kind(
    name="countdown",
    task="countdown",
    draw=problems,
    size=4,
    worked=((3, 1000), (4, 4500)),
    epochs=5,
    faultless=faultless,
    words=(ANSWER, "\n", " from ", " ", *"+-*()=:,", *map(str, range(100))),
    pieces=rf"{ANSWER}| from |\d+|[^\d]",
)
