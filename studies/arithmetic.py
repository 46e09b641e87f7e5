"""Questions that are as hard to check as to answer: chains of sums and products modulo 17, worked from left to right,
one operation a step.

    13*6+4-5*3     10+4-5*3 / 14-5*3 / 9*3 / Answer: 10

A quarter of the facts, such as 13*6 = 10, is withheld from a policy's training (`withheld`): it guesses at them. A
wrong step is seldom made good by a later one, for the modulus is a prime.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from restmcts.seeds import derive_seed
from restmcts.types import Problem
from studies.kinds import Kind

MODULUS = 17
OPERANDS = range(2, 7)
WITHHELD = 0.25
"""share of the facts"""
ANSWER = "Answer: "
Fact = tuple[int, str, int]
"""what a step needs to know: the total so far, an operation and its operand"""


def withheld(seed: int) -> frozenset[Fact]:
    """The facts that nobody shows a policy."""
    chance = random.Random(derive_seed(seed, "withheld"))
    every = [(total, sign, number) for total in range(MODULUS) for sign in "+-*" for number in OPERANDS]
    return frozenset(chance.sample(every, round(WITHHELD * len(every))))


def problems(
    count: int, seed: int, name: str, size: int, *, taken: set[str], of_seed: int | None = None
) -> list[Problem]:
    """`count` different questions of `size` operations: none in `taken`, to which they are added.

    With `of_seed`, none needs a fact that is withheld from this seed's policy.
    """
    chance, secret = random.Random(seed), frozenset[Fact]() if of_seed is None else withheld(of_seed)
    made: list[Problem] = []
    while len(made) < count:
        question = str(chance.randrange(1, MODULUS))
        question += "".join(f"{chance.choice('+-*')}{chance.choice(OPERANDS)}" for _ in range(size))
        if question not in taken and secret.isdisjoint(facts(question)):
            taken.add(question)
            steps = worked(question)
            made.append(Problem(f"{name}-{len(made)}", question, steps[-1].removeprefix(ANSWER), "\n".join(steps)))
    return made


def worked(question: str) -> list[str]:
    """The only right solution: every other one that ends in the right answer got there by chance."""
    steps = []
    left = _operations(question)[1]
    for fact in facts(question):
        left = left[1:]
        steps.append(f"{_result(fact)}{''.join(f'{sign}{number}' for sign, number in left)}")
    return [*steps[:-1], f"{ANSWER}{steps[-1]}"]


def facts(question: str) -> list[Fact]:
    """What the steps of the right solution need to know."""
    total, operations = _operations(question)
    found: list[Fact] = []
    for sign, number in operations:
        found.append((total, sign, number))
        total = _result(found[-1])
    return found


def _result(fact: Fact) -> int:
    total, sign, number = fact
    return {"+": total + number, "-": total - number, "*": total * number}[sign] % MODULUS


def _operations(question: str) -> tuple[int, list[tuple[str, int]]]:
    first, *rest = re.findall(r"[-+*]?\d+", question)
    return int(first), [(part[0], int(part[1:])) for part in rest]


def _faultless(question: str, steps: Sequence[str]) -> bool:
    return list(steps) == worked(question)


KIND = Kind(
    name="sums",
    task="math",
    draw=problems,
    size=4,
    worked=((2, 1500), (3, 4000), (4, 500)),
    epochs=8,
    faultless=_faultless,
    words=(ANSWER, "\n", *"+-*", *map(str, range(MODULUS))),
    pieces=rf"{ANSWER}|\d+|[^\d]",
)
