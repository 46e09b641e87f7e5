"""Word problems of one to three steps: templates as data, filled with names, things and small numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = tuple(
    "Ana Ben Chloe Daniel Emma Felix Grace Hugo Iris Jack Kira Leo Maya Noah Olga Paul Rosa Sam Tara Victor".split()
)
THINGS = tuple("apples balloons books cards coins marbles pencils shells stamps stickers".split())


@dataclass(frozen=True, slots=True)
class Template:
    """A word problem. `ranges` has inclusive bounds of the numbers a, b, …; `steps` name earlier results p, q."""

    text: str
    ranges: dict[str, tuple[int, int]]
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A filled template. `key` is the same for problems that differ only in names and things."""

    key: str
    question: str
    lines: tuple[str, ...]
    answer: str


def _template(text: str, ranges: str, *steps: str) -> Template:
    bounds = {}
    for part in ranges.split():
        letter, low, high = part.replace(":", "-").split("-")
        bounds[letter] = (int(low), int(high))
    return Template(text, bounds, steps)


ONE_STEP = (
    _template("{A} has {a} {x}. {B} gives {A} {b} more. How many {x} does {A} have now?", "a:2-30 b:2-12", "a + b"),
    _template("{A} had {a} {x} and lost {b} of them. How many {x} are left?", "a:5-40 b:2-12", "a - b"),
    _template("{A} buys {a} boxes with {b} {x} in each. How many {x} is that?", "a:2-9 b:2-12", "a * b"),
    _template("{A} shares {a} {x} equally among {b} friends. How many does each get?", "a:6-60 b:2-9", "a / b"),
    _template("{A} is {a} years old. {B} is {b} years older. How old is {B}?", "a:4-50 b:2-15", "a + b"),
    _template("A book has {a} pages. {A} has read {b} pages. How many are left to read?", "a:20-80 b:5-60", "a - b"),
    _template("{A} reads {a} pages a day. How many pages does {A} read in {b} days?", "a:3-20 b:2-9", "a * b"),
    _template("{A} has {a} {x} and {B} has {b} {x}. How many do they have together?", "a:3-40 b:3-40", "a + b"),
    _template("A rope {a} meters long is cut into {b} equal pieces. How long is each?", "a:8-72 b:2-9", "a / b"),
    _template("A ticket costs {a} dollars. How much do {b} tickets cost?", "a:3-20 b:2-9", "a * b"),
)

TWO_STEPS = (
    _template(
        "{A} has {a} {x}, finds {b} more and gives away {c}. How many {x} does {A} have now?",
        "a:3-20 b:2-12 c:2-12",
        "a + b",
        "p - c",
    ),
    _template(
        "{A} buys {a} bags with {b} {x} each and already had {c}. How many {x} does {A} have now?",
        "a:2-6 b:2-9 c:2-15",
        "a * b",
        "p + c",
    ),
    _template(
        "{A} had {a} {x}. {A} gave {b} to each of {c} friends. How many {x} are left?",
        "a:15-50 b:2-6 c:2-6",
        "b * c",
        "a - p",
    ),
    _template(
        "{A} has {a} {x}. {B} has {b} times as many. How many do they have together?",
        "a:2-12 b:2-5",
        "a * b",
        "a + p",
    ),
    _template(
        "{A} has {a} red and {b} blue {x} and puts them equally in {c} boxes. How many {x} go in each box?",
        "a:4-20 b:4-20 c:2-6",
        "a + b",
        "p / c",
    ),
    _template(
        "{A} pays for {a} pens at {b} dollars each with {c} dollars. How much change does {A} get?",
        "a:2-6 b:2-6 c:20-50",
        "a * b",
        "c - p",
    ),
    _template(
        "A bus has {a} people. {b} get off and {c} get on. How many people are on the bus?",
        "a:10-40 b:2-9 c:2-12",
        "a - b",
        "p + c",
    ),
    _template(
        "{A} is {a} years old. {B} is {b} years younger. How old will {B} be in {c} years?",
        "a:12-40 b:2-9 c:2-12",
        "a - b",
        "p + c",
    ),
    _template(
        "A farm has {a} rows of {b} trees. {c} trees fall in a storm. How many trees still stand?",
        "a:2-8 b:3-9 c:2-12",
        "a * b",
        "p - c",
    ),
    _template(
        "{A} earns {a} dollars an hour for {b} hours and spends {c} dollars. How much is left?",
        "a:3-12 b:2-8 c:3-15",
        "a * b",
        "p - c",
    ),
    _template(
        "{A} eats {a} grapes and {B} eats {b}. The bowl had {c} grapes. How many are left?",
        "a:3-15 b:3-15 c:30-60",
        "a + b",
        "c - p",
    ),
    _template(
        "{A} splits {a} {x} equally among {b} bags and takes {c} out of one bag. How many stay in that bag?",
        "a:12-60 b:2-6 c:1-6",
        "a / b",
        "p - c",
    ),
    _template(
        "A class has {a} girls and {b} fewer boys. How many children are in the class?",
        "a:8-20 b:2-7",
        "a - b",
        "a + p",
    ),
    _template(
        "A room is {a} meters long and {b} meters wide. How long is the way once around it in meters?",
        "a:3-15 b:2-12",
        "a + b",
        "2 * p",
    ),
)

THREE_STEPS = (
    _template(
        "{A} buys {a} pens at {b} dollars and {c} books at {d} dollars. What is the total price in dollars?",
        "a:2-6 b:2-5 c:2-5 d:3-9",
        "a * b",
        "c * d",
        "p + q",
    ),
    _template(
        "{A} has {a} {x}, buys {b} packs of {c} and gives {d} to {B}. How many {x} does {A} have now?",
        "a:3-15 b:2-5 c:2-6 d:2-9",
        "b * c",
        "a + p",
        "q - d",
    ),
    _template(
        "{A} has {a} {x}. {B} has {b} more than {A}. They share all of them equally. How many does each get?",
        "a:3-15 b:2-10",
        "a + b",
        "a + p",
        "q / 2",
    ),
    _template(
        "A shop has {a} boxes of {b} {x}. It sells {c} {x} and then {d} more. How many are left?",
        "a:3-8 b:4-9 c:2-9 d:2-9",
        "a * b",
        "p - c",
        "q - d",
    ),
    _template(
        "{A} scores {a}, {b} and {c} points in three games. What is the average score?",
        "a:2-20 b:2-20 c:2-20",
        "a + b",
        "p + c",
        "q / 3",
    ),
    _template(
        "{A} saves {a} dollars a week for {b} weeks, then buys {c} toys at {d} dollars. How much is left?",
        "a:4-10 b:3-8 c:2-4 d:2-6",
        "a * b",
        "c * d",
        "p - q",
    ),
    _template(
        "{A} picks {a} {x} on Monday and twice as many on Tuesday, then loses {b}. How many are left?",
        "a:3-15 b:2-9",
        "2 * a",
        "a + p",
        "q - b",
    ),
    _template(
        "{A} bakes {a} trays of {b} cookies, eats {c} and packs the rest in {d} bags. How many are in each bag?",
        "a:2-6 b:3-9 c:2-6 d:2-6",
        "a * b",
        "p - c",
        "q / d",
    ),
)

TEMPLATES = {1: ONE_STEP, 2: TWO_STEPS, 3: THREE_STEPS}


def word_problems(steps: int, seed: int) -> Iterator[WordProblem]:
    """Endless word problems of `steps` steps (1 to 3), templates in turn; problems can repeat."""
    rng = random.Random(seed)
    templates = TEMPLATES[steps]
    while True:
        for template in rng.sample(templates, len(templates)):
            problem = None
            while problem is None:
                problem = _fill(template, rng)
            yield problem


def _fill(template: Template, rng: random.Random) -> WordProblem | None:
    """One problem from `template`; None when the numbers drawn give a result that is not a positive integer."""
    values = {letter: rng.randint(low, high) for letter, (low, high) in template.ranges.items()}
    known = dict(values)
    lines = []
    for name, step in zip("pqr", template.steps, strict=False):
        left, sign, right = step.split()
        x, y = (known[side] if side in known else int(side) for side in (left, right))
        if sign == "/" and x % y:
            return None
        known[name] = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[sign]
        if known[name] <= 0:
            return None
        lines.append(f"{x} {sign} {y} = {known[name]}")
    first, second = rng.sample(NAMES, 2)
    question = template.text.format(A=first, B=second, x=rng.choice(THINGS), **values)
    return WordProblem(f"{template.text} {values}", question, tuple(lines), str(known["pqr"[len(lines) - 1]]))
