"""The built-in problem sets: small arithmetic and word problems with short worked steps, made on the spot.

Questions and answers come from reasoning-gym (and, for the word problems, from `words`); what is added here is a
short question text, the worked steps, and the certainty that no question appears twice.

Item i of a reasoning-gym data set is drawn from seed + i, so neighbouring seeds share nearly all of their items.
Every stream below therefore has a seed of its own, 63 bits wide, and equal questions are dropped whatever their seed.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import cycle
from typing import Any

from restmcts.errors import TaskError
from restmcts.seeds import derive_seed
from restmcts.tasks.questions import content_id, normal_question
from restmcts.tasks.words import word_problems
from restmcts.types import Problem

PATIENCE = 3000
"""A family is used up when so many of its items in a row were refused or were known already."""


@dataclass(frozen=True, slots=True)
class GeneratedSet:
    """Three lists of problems without a common question. Only `worked` problems have a `solution`."""

    train: list[Problem]
    heldout: list[Problem]
    worked: list[Problem]


@dataclass(frozen=True, slots=True)
class Item:
    """A question, its steps without the closing answer, its answer, and what makes it the same as another.

    `known` is what an answer is checked against, where that is not the answer itself.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    key: str
    task: str = "numeric"  # a number; a sum left undone is no answer
    known: str | None = None


Writer = Callable[[Mapping[str, Any], str], Item | None]
"""(reasoning-gym metadata, answer) -> the item, or None for one that is too long or too large for a small model."""


# ---------------------------------------------------------------- step writers

_SIGNS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
}


def evaluate(expression: str) -> tuple[tuple[str, ...], int] | None:
    """The operations of an integer expression in the order they are done, one per line, and its value.

    None if it holds anything but `+ - *`, parentheses and non-negative integers.
    """
    lines: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
            sign, apply = _SIGNS[type(node.op)]
            left, right = value(node.left), value(node.right)
            result = apply(left, right)
            lines.append(f"{left} {sign} {right} = {result}")
            return result
        raise ValueError(ast.dump(node))

    try:
        result = value(ast.parse(expression, mode="eval").body)
    except (ValueError, SyntaxError):
        return None
    return tuple(lines), result


def _arithmetic(question: str, largest: int) -> Writer:
    """Expressions whose results all lie within ± `largest`."""

    def write(metadata: Mapping[str, Any], answer: str) -> Item | None:
        expression = metadata["expression"].replace("( ", "(").replace(" )", ")")
        worked = evaluate(expression)
        if worked is None or str(worked[1]) != answer:
            return None
        if any(abs(int(line.rsplit(" ", 1)[1])) > largest for line in worked[0]):
            return None
        return _item(question.format(expression), worked[0], answer)

    return write


def _product(metadata: Mapping[str, Any], answer: str) -> Item | None:
    """A two-digit number times one of 11 to 15, in parts: 34 * 12 = 34 * 10 + 34 * 2."""
    small, large = sorted(int(factor) for factor in metadata["expression"].split(" * "))
    if not 11 <= small <= 15:
        return None
    tens, ones = large * 10, large * (small - 10)
    steps = (f"{large} * 10 = {tens}", f"{large} * {small - 10} = {ones}", f"{tens} + {ones} = {tens + ones}")
    return _item(f"What is {large} * {small}?", steps, answer)


_LINEAR = re.compile(r"(?:(?P<a>\d+)\*)?[a-z](?: (?P<sign>[+-]) (?P<b>\d+))?")
_FLIPPED = re.compile(r"(?P<b>\d+) - (?:(?P<a>\d+)\*)?[a-z]")


def _equation(metadata: Mapping[str, Any], answer: str) -> Item | None:
    """a*x + b = c, a*x - b = c and b - a*x = c: undo the sum, then the product."""
    left, right = metadata["equation"].split(" = ")
    c = int(right)
    match = _LINEAR.fullmatch(left) or _FLIPPED.fullmatch(left)
    if match is None or not 0 <= c <= 99:
        return None
    groups = match.groupdict()
    a, b = int(groups["a"] or 1), int(groups["b"] or 0)
    if a > 12:
        return None
    steps = []
    if b:
        x, sign, y = (b, "-", c) if match.re is _FLIPPED else (c, "-" if groups["sign"] == "+" else "+", b)
        c = x + y if sign == "+" else x - y
        steps.append(f"{x} {sign} {y} = {c}")
    if a > 1:
        steps.append(f"{c} / {a} = {c // a}")
    if not steps:
        return None
    return _item(f"Solve for {metadata['variable']}: {left} = {right}", tuple(steps), answer)


def _gcd(metadata: Mapping[str, Any], answer: str) -> Item | None:
    """Euclid by subtraction, at most four of them."""
    large, small = sorted(metadata["numbers"], reverse=True)
    question = f"What is the greatest common divisor of {large} and {small}?"
    steps: list[str] = []
    while large != small and len(steps) < 5:
        steps.append(f"{large} - {small} = {large - small}")
        large, small = max(small, large - small), min(small, large - small)
    return _item(question, tuple(steps), answer) if 1 <= len(steps) <= 4 else None


_PLURALS = dict.fromkeys(
    "chicken bird duck dog cat cow horse lion elephant giraffe tiger ant beetle bee wasp spider crab lobster".split(),
    "{}s",
) | {"deer": "{}", "sheep": "{}"}
_LEGS = {"chicken": 2, "bird": 2, "duck": 2, "spider": 8, "crab": 10, "lobster": 10} | dict.fromkeys(
    ("ant", "beetle", "bee", "wasp"), 6
)


def _legs(metadata: Mapping[str, Any], answer: str) -> Item | None:
    """Legs of common animals, kind by kind."""
    animals = metadata["animals"]
    if not all(animal in _PLURALS for animal in animals):
        return None
    names = [f"{n} {_PLURALS[animal].format(animal)}" for animal, n in animals.items()]
    total: int | None = None
    steps = []
    for animal, n in animals.items():
        legs = _LEGS.get(animal, 4)
        steps.append(f"{n} * {legs} = {n * legs}")
        if total is not None:
            steps.append(f"{total} + {n * legs} = {total + n * legs}")
        total = (total or 0) + n * legs
    return _item(f"How many legs do {' and '.join(names)} have?", tuple(steps), answer)


def _triangle(metadata: Mapping[str, Any], answer: str) -> Item | None:
    a, b = (int(angle) for angle in metadata["known_angles"])
    steps = (f"{a} + {b} = {a + b}", f"180 - {a + b} = {180 - a - b}")
    return _item(f"Two angles of a triangle are {a} and {b} degrees. What is the third angle?", steps, answer)


def _countdown(metadata: Mapping[str, Any], answer: str) -> Item | None:
    """Three small numbers and a target: the operations in order, then the whole expression as the answer."""
    expression = re.sub(r"\s*([-+*])\s*", r" \1 ", answer)
    worked = evaluate(expression)
    if worked is None or worked[1] != metadata["target"]:
        return None
    numbers = metadata["numbers"]
    if sorted(map(int, re.findall(r"\d+", expression))) != sorted(numbers):
        return None
    question = f"Make {worked[1]} from {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}."
    # The same numbers in another order are the same question.
    listed = " ".join(map(str, sorted(numbers)))
    known = f"{worked[1]} from all of {listed}"
    return Item(question, worked[0], expression, f"countdown {known}", "countdown", known)


def _item(question: str, steps: tuple[str, ...], answer: str) -> Item | None:
    """The item, or None where the steps do not arrive at reasoning-gym's answer."""
    return Item(question, steps, answer, normal_question(question)) if steps[-1].endswith(f" {answer}") else None


# ---------------------------------------------------------------- families


@dataclass(frozen=True, slots=True)
class Level:
    """One difficulty of a family: a reasoning-gym data set and its options, or word problems of so many steps."""

    name: str
    source: str
    options: Mapping[str, Any]
    write: Writer | None = None

    def items(self, seed: int) -> Iterator[Item | None]:
        """Endless items; None for a refused one, repetitions possible."""
        if self.write is None:
            for problem in word_problems(self.options["steps"], seed):
                yield Item(problem.question, problem.lines, problem.answer, problem.key)
            return
        dataset = _reasoning_gym().create_dataset(self.source, seed=seed, size=2**40, **self.options)
        index = 0
        while True:
            entry = dataset[index]
            yield self.write(entry["metadata"], entry["answer"])
            index += 1


def _reasoning_gym() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise TaskError("the built-in sets need reasoning-gym; run: pip install 'restmcts[demo]'") from None
    return reasoning_gym


_SUM = _arithmetic("What is {}?", 200)
_CALCULATE = _arithmetic("Calculate {}.", 99)

FAMILIES: dict[str, tuple[Level, ...]] = {
    "chain_sum": (Level("3-5 terms, 1 digit", "chain_sum", {"min_terms": 3, "max_terms": 5, "max_digits": 1}, _SUM),),
    "long_sum": (Level("2-3 terms, 2 digits", "chain_sum", {"max_terms": 3, "min_digits": 2, "max_digits": 2}, _SUM),),
    # Without parentheses allowed, reasoning-gym works from left to right and so contradicts the usual precedence.
    "basic_arithmetic": (
        Level(
            "3-4 terms, 1 digit",
            "basic_arithmetic",
            {"min_terms": 3, "max_terms": 4, "max_digits": 1, "operators": ["+", "-", "*"], "allow_negation": False},
            _CALCULATE,
        ),
    ),
    "simple_equations": (Level("2 terms, up to 10", "simple_equations", {"max_terms": 2, "max_value": 10}, _equation),),
    "gcd": (Level("up to 99", "gcd", {"min_value": 2, "max_value": 99}, _gcd),),
    "products": (Level("2-3 terms, 1 digit", "products", {"max_terms": 3, "max_digits": 1}, _SUM),),
    "long_product": (Level("2 terms, 2 digits", "products", {"min_digits": 2, "max_digits": 2}, _product),),
    "leg_counting": (
        Level(
            "2 animals",
            "leg_counting",
            {"min_animals": 2, "max_animals": 2, "min_instances": 2, "max_instances": 9},
            _legs,
        ),
    ),
    "simple_geometry": (Level("triangle", "simple_geometry", {"max_sides": 3, "max_angle": 85}, _triangle),),
    # Checking is easier here than finding: what a search is good for.
    "countdown": (
        Level(
            "3 numbers, 1 digit",
            "countdown",
            {
                "min_numbers": 3,
                "max_numbers": 3,
                "max_value": 9,
                "min_target": 5,
                "max_target": 60,
                "operators": ("+", "-", "*"),
            },
            _countdown,
        ),
    ),
    "word": tuple(Level(f"{n} step" + "s" * (n > 1), "word", {"steps": n}) for n in (1, 2, 3)),
}

SETS: dict[str, tuple[str, ...]] = {
    "demo": (
        *"chain_sum countdown word products countdown basic_arithmetic word gcd countdown simple_equations".split(),
    ),
    "mixed": tuple(FAMILIES),
    "arithmetic": tuple(family for family in FAMILIES if family != "word"),
    **{family: (family,) for family in FAMILIES},
}
"""The sets by name: the families they take their questions from in turn. A family named twice counts twice."""


# ---------------------------------------------------------------- generate


def generate(name: str = "demo", *, train: int, heldout: int, worked: int, seed: int) -> GeneratedSet:
    """Make a built-in set: `train`, `heldout` and `worked` problems, balanced over families and their difficulties.

    The same arguments give the same problems on every machine. The held-out problems of a seed do not depend on the
    other two sizes, and a larger set holds the smaller ones. Raises TaskError for an unknown name, a negative size,
    and when there are not enough different questions.
    """
    if name not in SETS:
        near = get_close_matches(name, SETS, n=1, cutoff=0.0)
        raise TaskError(f"no built-in set is called {name!r}; nearest is {near[0]!r} (known: {', '.join(SETS)})")
    for part, size in (("train", train), ("heldout", heldout), ("worked", worked)):
        if size < 0:
            raise TaskError(f"{part}={size} is negative; give the number of {part} problems to make")
    stream = _mixture(name, seed)
    held = _take(stream, heldout, name)
    shown = _take(stream, worked, name)
    known = _take(stream, train, name)
    parts = {
        "heldout": [_problem(family, level, item) for family, level, item in held],
        "worked": [_problem(family, level, item, solution=True) for family, level, item in shown],
        "train": [_problem(family, level, item) for family, level, item in known],
    }
    for part, problems in parts.items():
        random.Random(derive_seed(seed, name, part)).shuffle(problems)
    return GeneratedSet(**parts)


Entry = tuple[str, str, Item]
"""family, difficulty, item"""


def _mixture(name: str, seed: int) -> Iterator[Entry]:
    """Different items, families in turn; a family that is used up leaves its turn to the others."""
    seen: set[str] = set()
    streams = {family: _family(family, derive_seed(seed, name, family), seen) for family in SETS[name]}
    order = list(SETS[name])
    while order:
        for family in tuple(order):
            if family not in streams:
                continue
            entry = next(streams[family], None)
            if entry is None:
                del streams[family]
                order = [other for other in order if other != family]
            else:
                yield entry


def _family(family: str, seed: int, seen: set[str]) -> Iterator[Entry]:
    """Different items of a family, its difficulties in turn, until all of them are used up."""
    streams = {level.name: level.items(derive_seed(seed, level.name)) for level in FAMILIES[family]}
    for name in cycle([level.name for level in FAMILIES[family]]):
        if not streams:
            return
        if name in streams:
            item = _fresh(streams[name], seen)
            if item is None:
                del streams[name]
            else:
                yield family, name, item


def _fresh(items: Iterator[Item | None], seen: set[str]) -> Item | None:
    """The next item that was not seen yet; None after `PATIENCE` others."""
    for _ in range(PATIENCE):
        item = next(items)
        if item is not None and item.key not in seen:
            question = normal_question(item.question)
            if question not in seen:
                seen.update((item.key, question))
                return item
    return None


def _take(stream: Iterator[Entry], count: int, name: str) -> list[Entry]:
    taken = [entry for _, entry in zip(range(count), stream, strict=False)]
    if len(taken) < count:
        raise TaskError(f"the built-in set {name!r} has not enough different questions; ask for fewer, or for 'demo'")
    return taken


def _problem(family: str, level: str, item: Item, *, solution: bool = False) -> Problem:
    return Problem(
        id=f"{family}-{content_id(item.question)}",
        question=item.question,
        answer=item.known or item.answer,
        solution="\n".join((*item.steps, f"Answer: {item.answer}")) if solution else None,
        task=item.task,
        extra={"family": family, "difficulty": level},
    )
