"""Rules of their own: multiple choice, SciBench, TheoremQA. Each reads its rows and compares its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from restmcts.errors import TaskError
from restmcts.seeds import derive_seed
from restmcts.tasks import answers
from restmcts.tasks.numbers import TOLERANCE, Number, only_number, read_number
from restmcts.tasks.structure import read_collection, same_collection

# ---------------------------------------------------------------- multiple choice

LETTERS = "ABCDEFGHIJ"
_OPTION = rf"[\[(（]?\s*([{LETTERS}{LETTERS.lower()}])\s*(?:[\])）.:：、,]|$)"
_CHOSEN = re.compile(rf"(?:(?:the )?(?:option|choice|answer)\s*(?:is\s*)?|选项?\s*)?[:：]?\s*{_OPTION}", re.IGNORECASE)
_CONCLUDED = re.compile(
    r"(?:\b(?:correct|right|best) (?:option|choice) is|(?<!可)选(?:择)?(?:是|为)?)"
    rf"\s*[:：]?\s*[\[(（]?([{LETTERS}])(?![A-Za-z])"
)
_OPTIONS = ("options", "choices")


def read_letter(answer: str) -> str | None:
    """The letter of the option that an answer names: "B", "(b)", "B. Paris", "option B", "选B"; None for none."""
    text = answers.text_key(answer)[:200] if len(answer) < 40 else answers.clean(answer)[:200]
    match = _CHOSEN.match(text)
    return match[1].upper() if match is not None else None


def compare_choice(gold: str, answer: str) -> bool:
    """Whether both name the same option. Without a letter, the texts must be equal."""
    known, given = read_letter(gold), read_letter(answer)
    return answers.compare_exact(gold, answer) if known is None else known == given


def choice_key(answer: str) -> str:
    """For votes: the letter, or the text where there is none."""
    return read_letter(answer) or answers.text_key(answer)


def find_choice(text: str) -> str | None:
    """The answer marked as such, or the option of the last conclusion ("the correct option is C", "故选C")."""
    found = answers.find_answer(text)
    if found is not None and read_letter(found) is not None:
        return found
    concluded = [match[1] for match in _CONCLUDED.finditer(text[-answers.MAX_TEXT :])]
    return concluded[-1] if concluded else found


def choice_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with its options written under the question as "A. …", and the letter of the right one as its answer.

    Options come from a list in `options` or `choices`, from the columns A, B, C, D, or, as in GPQA, from
    `Correct Answer` and `Incorrect Answer 1` to `3`, which are put in an order that depends on the question alone.
    Raises TaskError where the answer names none of the options.
    """
    question = str(row.get("question") or "")
    right: Any = row.get("answer")
    if row.get("Incorrect Answer 1") is not None:
        options, right = _gpqa(row, question)
    else:
        options = _options(row)
    if not options:
        return row
    letters = LETTERS[: len(options)]
    letter = _right_letter(right, options, letters)
    listed = "\n".join(f"{name}. {option}" for name, option in zip(letters, options, strict=True))
    shown = question if all(option in question for option in options) else f"{question.rstrip()}\n{listed}"
    return {**row, "question": shown, "answer": letter}


def _gpqa(row: Mapping[str, Any], question: str) -> tuple[list[str], str]:
    right = str(row["answer"] if row.get("answer") is not None else row["Correct Answer"]).strip()
    wrong = [str(row[name]).strip() for n in range(1, 10) if row.get(name := f"Incorrect Answer {n}") is not None]
    options = sorted([right, *wrong], key=lambda option: derive_seed(0, question, option))
    return options, right


def _options(row: Mapping[str, Any]) -> list[str]:
    listed = next((row[name] for name in _OPTIONS if row.get(name) is not None), None)
    if isinstance(listed, Mapping):  # {"text": [...], "label": [...]}, as ARC has it, or {"A": ..., "B": ...}
        texts = listed.get("text")
        listed = texts if isinstance(texts, list) else [listed[name] for name in LETTERS if name in listed]
    if isinstance(listed, list):
        return [re.sub(rf"^\(?([{LETTERS}])[.):、]\s*", "", str(option).strip()) for option in listed]
    return [str(row[name]).strip() for name in LETTERS if row.get(name) is not None]


def _right_letter(right: Any, options: Sequence[str], letters: str) -> str | None:
    if right is None or not str(right).strip():
        return None
    if isinstance(right, list) and len(right) == 1:
        right = right[0]
    text = str(right).strip()
    if text in options:
        return letters[list(options).index(text)]
    if isinstance(right, int) and 0 <= right < len(letters):
        return letters[right]
    letter = read_letter(text)
    if letter is None or letter not in letters:
        raise TaskError(f"the answer {text[:80]!r} names none of the options {', '.join(letters)}")
    return letter


# ---------------------------------------------------------------- SciBench

SCIBENCH_TOLERANCE = Fraction(1, 20)
"""Relative, as its authors compare."""
_WITH_UNIT = re.compile(r"(.+?)\s*\[([^\[\]]*)\]\s*", re.DOTALL)
_POWER = re.compile(r"10\s*\^\s*\{?\s*(-?\d{1,3})\s*\}?")
_LEADING = re.compile(
    r"\s*(?:[A-Za-z\\]\w{0,10}(?:_\{?\w+\}?)?\s*(?:=|≈|\\approx|\\simeq)\s*)?(?:≈|~|\\approx\s*|\\sim\s*)?"
    r"((?:\\\$|[$€£])?[-+−]?\s*\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?"
    r"(?:\s*(?:\\times|\\cdot|[×x*·])\s*10\s*\^\s*(?:\{\s*[-+−]?\d+\s*\}|[-+−]?\d+))?|[-+−]?\.\d+)"
    r"(?![\d.]|\s*[-+*/^=]|\s*\\(?:times|cdot|div|frac|sqrt|pi)(?![a-z]))"
)


def compare_scibench(gold: str, answer: str) -> bool:
    """Whether the number of `answer` is within 5 % of the known one ("4.59 [10^{17} Hz]"), whatever unit it names.

    A unit with a power of ten is stated in the question, so the answer may be in that unit (4.59) or in full
    (4.59 × 10^17). Zero is only equal to zero.
    """
    number, _, power = _measure(gold)
    known, given = _stated(number), _stated(_measure(answer)[0])
    if known is None or given is None:
        return False
    wanted = [known.value] if power is None else [known.value, known.value * Fraction(10) ** power]
    return any(abs(given.value - w) <= SCIBENCH_TOLERANCE * max(abs(given.value), abs(w)) for w in wanted)


def _measure(text: str) -> tuple[str, str, int | None]:
    """Number, unit, and the power of ten in the unit, of a known answer such as "4.59 [10^{17} Hz]"."""
    match = _WITH_UNIT.fullmatch(text)
    if match is None:
        return text, "", None
    power = _POWER.search(match[2])
    return match[1], match[2], int(power[1]) if power else None


def _stated(text: str) -> Number | None:
    """The number an answer begins with: "50.7", "50.7 J mol^{-1} K^{-1}", "P = 50.7 atm", "≈ 4.6 × 10^{17} Hz"."""
    text = answers.clean(text[: answers.MAX_ANSWER].rpartition("=")[2])
    number = read_number(text)
    if number is None and (leading := _LEADING.match(text)):
        number = read_number(re.sub(r"[×x*·]|\\cdot", r"\\times ", leading[1]))
    return number or only_number(text)


def scibench_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of SciBench with the unit in the question, and beside the number in the answer: "50.7 [atm]"."""
    question = str(row.get("question") or "").strip()
    number = str(row.get("answer") or "").strip()
    unit = _unit_text(str(row.get("unit") or ""))
    if not unit or _WITH_UNIT.fullmatch(number):
        return {**row, "question": question, "answer": number or None}
    if "unit of the answer" not in question:
        question = f"{question} The unit of the answer is ${unit}$."
    return {**row, "question": question, "answer": f"{number} [{unit}]"}


def _unit_text(unit: str) -> str:
    """A unit without math marks; a lone "$" is one of money, and "{\\circ}" an angle."""
    unit = " ".join(unit.split())
    if unit in ("$", "$\\$$"):
        return "\\$"
    return unit.replace("$", "").replace("[", "(").replace("]", ")").strip(" ;")


# ---------------------------------------------------------------- TheoremQA

THEOREMQA_LIMIT = Fraction(1, 100)
"""No rounding of the known answer excuses more than that."""
_TRUE = frozenset("true yes correct right 对 是 正确".split())
_FALSE = frozenset("false no incorrect wrong 错 否 错误".split())
_DECIMAL = re.compile(r"-?(\d+)\.(\d+)(?:[eE]([-+]?\d{1,3}))?|-?(\d+)[eE]([-+]?\d{1,3})")


def compare_theoremqa(gold: str, answer: str) -> bool | None:
    """Truth values as truth values, options as letters, lists part by part in any order, and numbers as rounded.

    Integers must be equal. A known decimal stands for all that rounds to it, but for no more than 1 % (its authors
    allow 4 %, which calls 3.14 and 3.25 equal). None where a symbolic engine has to work out the number.
    """
    gold, answer = answers.clean(gold), answers.clean(answer)
    word = gold.casefold()
    if word in ("true", "false"):
        first = re.split(r"[\s,.;:，。]", answers.text_key(answer).casefold(), maxsplit=1)[0]
        return first in (_TRUE if word == "true" else _FALSE)
    if re.fullmatch(r"\(?[a-fA-F]\)?", gold):
        return compare_choice(gold, answer)
    known = read_collection(gold if not gold.startswith("[") else f"\\{{{gold[1:-1]}\\}}")
    if known is not None:
        given = read_collection(re.sub(r"^\\?[\[({](.*?)\\?[\])}]$", r"\\{\1\\}", answer, flags=re.DOTALL))
        return False if given is None else same_collection(known, given, compare_theoremqa)
    return answers.compare_math(gold, answer, theoremqa_tolerance(gold))


def theoremqa_tolerance(gold: str) -> Fraction:
    """Half a unit of the last digit of a decimal, relative to it; for "1.0", which is an integer, the usual one."""
    match = _DECIMAL.fullmatch(gold.strip())
    number = read_number(gold) if match is not None else None
    if match is None or number is None or not number.value or (match[2] and not match[2].strip("0")):
        return TOLERANCE
    place = int(match[3] or match[5] or 0) - len(match[2] or "")
    return max(TOLERANCE, min(THEOREMQA_LIMIT, Fraction(10) ** place / 2 / abs(number.value)))
