"""Countdown and the Game of 24: the answer is an expression, and it is checked, not compared.

The known answer of such a problem is one line of text that holds everything a check needs:

    27 from 30 79 60 76          each number at most once (Countdown)
    24 from all of 1 1 4 6       each number exactly once (Game of 24)

Expressions are read by a parser of their own, bounded in length and depth, and computed in exact fractions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from restmcts.errors import TaskError
from restmcts.tasks import answers
from restmcts.tasks.numbers import plain_signs

MAX_EXPRESSION = 500
"""A longer text is no expression."""
MAX_DEPTH = 50
"""Brackets and signs may be nested so deep."""

# ---------------------------------------------------------------- the known answer

_TARGET = r"-?\d{1,15}(?:\.\d{1,15})?"
_GAME = re.compile(rf"\s*({_TARGET})\s+from\s+(all\s+of\s+)?((?:{_TARGET}(?:\s*,\s*|\s+|\s*$))+)\s*")
_NUMBERS = re.compile(rf"[\s\[(]*{_TARGET}(?:[\s,;]+(?:and\s+)?{_TARGET})*[\s\])]*")
_LISTED = re.compile(rf"\[\s*{_TARGET}(?:\s*,\s*{_TARGET})*\s*\]")
_EVERY = re.compile(
    r"\bexactly once\b|\b(?:all|every one) (?:of )?(?:the|these|four|given)? ?(?:given )?numbers\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Game:
    """A number to reach from given ones: each of them at most once or, with `every`, exactly once."""

    target: Fraction
    numbers: tuple[Fraction, ...]
    every: bool = False

    def __str__(self) -> str:
        return f"{_plain(self.target)} from {'all of ' if self.every else ''}{' '.join(map(_plain, self.numbers))}"

    def allows(self, used: Sequence[Fraction]) -> bool:
        """Whether an expression may be made of the numbers `used`."""
        return Counter(used) == Counter(self.numbers) if self.every else Counter(used) <= Counter(self.numbers)


def read_game(gold: str) -> Game:
    """The game that a known answer describes. Raises TaskError for any other text."""
    match = _GAME.fullmatch(gold)
    if match is None:
        raise TaskError(
            f"the known answer {gold[:80]!r} is no target with numbers; write it as '24 from all of 1 1 4 6' "
            "(each number exactly once) or '24 from 1 1 4 6' (each at most once)"
        )
    return Game(Fraction(match[1]), _fractions(match[3]), bool(match[2]))


def _fractions(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(number) for number in re.findall(_TARGET, text))


def _plain(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else str(float(number))


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True)
class Expression:
    """What an expression is worth, and the numbers it is made of, sorted."""

    value: Fraction
    numbers: tuple[Fraction, ...]


_LOOKS = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|mathrm|text)(?![a-zA-Z])|\\[,;:! ]|\\q?quad|~|\$|\\[()\[\]]"
)
_SIGNS = (
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·⋅∗✕✖]"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|[÷∕]"), "/"),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\?\{|\["), "("),
    (re.compile(r"\\?\}|\]"), ")"),
)
_FRAC = "\\frac"
_SHORT_FRAC = re.compile(r"(\\[dtc]?frac)\s*(\d)\s*(\d)(?!\d)")
_TOKEN = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?(?![\d.])|[-+*/()]|\\frac(?![a-zA-Z]))")


def read_expression(text: str) -> Expression | None:
    """The expression that `text` is; None for anything else, for a division by zero, and beyond the limits.

    Read are numbers with + − × ÷ and brackets, in plain signs or LaTeX (`\\times`, `\\frac{a}{b}`, `\\left(`), with the
    multiplication sign left out only before or after a bracket.
    """
    if len(text) > MAX_EXPRESSION:
        return None
    text = _SHORT_FRAC.sub(r"\1{\2}{\3}", plain_signs(text))
    text = _LOOKS.sub(" ", text)
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    tokens, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(match[1])
        place = match.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ValueError, ZeroDivisionError):
        return None
    return Expression(value, tuple(sorted(parser.numbers))) if parser.at_end() else None


class _Parser:
    """Recursive descent over tokens; raises ValueError where they are no expression."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens, self._next, self._depth = tokens, 0, 0
        self.numbers: list[Fraction] = []

    def at_end(self) -> bool:
        return self._next == len(self._tokens)

    def sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+-"):
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            if sign := self._take("*/"):
                other = self._signed()
                value = value * other if sign == "*" else value / other
            elif self._bracketed():
                value *= self._signed()
            else:
                return value

    def _bracketed(self) -> bool:
        """Whether what follows is multiplied without a sign, as in 3(4 + 1) and (4 + 1)3."""
        here = self._tokens[self._next : self._next + 1]
        return here in (["("], [_FRAC]) or (bool(here) and here[0][0].isdigit() and self._tokens[self._next - 1] == ")")

    def _signed(self) -> Fraction:
        sign = self._take("+-")
        if not sign:
            return self._atom()
        self._deeper()
        value = self._signed()
        self._depth -= 1
        return -value if sign == "-" else value

    def _atom(self) -> Fraction:
        if self._take(_FRAC):
            self._deeper()
            above, below = self._atom(), self._atom()
            self._depth -= 1
            return above / below
        if self._take("("):
            self._deeper()
            value = self.sum()
            self._depth -= 1
            if not self._take(")"):
                raise ValueError
            return value
        if self.at_end() or not self._tokens[self._next][0].isdigit():
            raise ValueError
        number = Fraction(self._tokens[self._next])
        self._next += 1
        self.numbers.append(number)
        return number

    def _take(self, kinds: str) -> str:
        if self.at_end() or self._tokens[self._next] not in kinds:
            return ""
        self._next += 1
        return self._tokens[self._next - 1]

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError


# ---------------------------------------------------------------- the task

_EQUALS = re.compile(r"=|\\equiv(?![a-zA-Z])|＝")
_BOXED_VALUE = re.compile(r"(=\s*\$?\s*)\\boxed\s*\{\s*(-?[\d.]{1,20})\s*\}")


def compare_expression(gold: str, answer: str) -> bool:
    """Whether `answer` reaches the target of `gold` from its numbers ("27 from 30 79 60 76").

    What stands beside "=" must be equal too: "(1-1)+4*6 = 24" is right, "(1-1)+4*6 = 25" is not.
    Raises TaskError for a `gold` that is no game.
    """
    game = read_game(gold)
    sides = _sides(answer)
    return (
        bool(sides)
        and all(side is not None and side.value == game.target for side in sides)
        and any(side is not None and game.allows(side.numbers) for side in sides)
    )


def key(answer: str) -> str:
    """For votes: the value reached and the numbers used, e.g. "24 from 1 1 4 6".

    All ways to write, order or bracket the same numbers to the same value vote together. What differs in the value, or
    in the numbers used, is another answer, so that a right expression never lends its weight to a wrong one.
    """
    for side in _sides(answer):
        if side is not None:
            return f"{side.value} from {' '.join(map(str, side.numbers))}"
    return answers.text_key(answer)


def _sides(answer: str) -> list[Expression | None]:
    """What stands between the equals signs of an answer."""
    text = answers.clean(answer)
    return [read_expression(side) for side in _EQUALS.split(text)] if len(text) <= MAX_EXPRESSION else []


def find_expression(text: str) -> str | None:
    """The last answer marked as such; of "Answer: 4 * 6 = \\boxed{24}" the whole line, not its box."""
    return answers.find_answer(_BOXED_VALUE.sub(r"\1\2", text[-answers.MAX_TEXT :]))


# ---------------------------------------------------------------- rows of question sets


def countdown_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with the whole game as its answer.

    Target and numbers come from the columns `target` (or the answer) and `numbers`, `nums` or `Puzzles`, or from a
    list in the question. Each number may be used at most once, unless the question says "exactly once" or "all the
    numbers".
    Raises TaskError where there is no target or no numbers.
    """
    return _game_row(row, target=None, every=None)


def game24_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """As `countdown_row`, for the Game of 24: the target is 24 where none is given; all numbers must be used."""
    return _game_row(row, target="24", every=True)


def _game_row(row: Mapping[str, Any], target: str | None, every: bool | None) -> Mapping[str, Any]:
    question, answer = str(row.get("question") or ""), str(row.get("answer") or row.get("target") or target or "")
    if _GAME.fullmatch(answer):
        game = read_game(answer)
    elif re.fullmatch(_TARGET, answer.strip()):
        needs_all = bool(_EVERY.search(question)) if every is None else every
        game = Game(Fraction(answer.strip()), _given_numbers(row, question), needs_all)
    elif not answer:
        raise TaskError("no target; give one in the column `target` or `answer`")
    else:
        raise TaskError(f"the target is {answer[:80]!r}; give a number")
    written = {"answer": str(game)}
    if not re.search(r"[^\W\d_]", question):
        written["question"] = _question(game)
    solution = row.get("solution")
    if isinstance(solution, str) and find_expression(solution) is None and compare_expression(str(game), solution):
        written["solution"] = f"Answer: {solution}"
    return {**row, **written}


def _given_numbers(row: Mapping[str, Any], question: str) -> tuple[Fraction, ...]:
    given = next((row[column] for column in ("numbers", "nums", "Puzzles") if row.get(column) is not None), None)
    listed = _LISTED.search(question)
    text = str(given) if given is not None else listed[0] if listed else question
    if not _NUMBERS.fullmatch(text):
        raise TaskError("no numbers; give them in the column `numbers`, or as a list such as [3, 5, 8] in the question")
    return _fractions(text)


def _question(game: Game) -> str:
    *numbers, last = map(_plain, game.numbers)
    listed = f"{', '.join(numbers)} and {last}" if numbers else last
    how = "exactly" if game.every else "at most"
    return f"Use the numbers {listed}, each {how} once, with + - * / and brackets to make {_plain(game.target)}."
