"""Numbers as people and models write them, read exactly and without ever computing a large power."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_TEXT = 400
"""A longer text is not taken for a number."""
MAX_EXPONENT = 400
"""A number with a larger power of ten is not read as one."""
TOLERANCE = Fraction(1, 10**6)
"""Relative; only for numbers of which at least one is written with a decimal point or a power of ten."""

_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_FRACTION = r"\\frac(?:\{ ?(?P<p>\d+) ?\}|(?P<p1>\d))(?:\{ ?(?P<q>\d+) ?\}| ?(?P<q1>\d))"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?:"
    rf"(?P<whole>\d+)? ?{_FRACTION}"  # \frac{1}{2}, 1\frac{1}{2}
    rf"|(?P<mixed>\d+) (?P<n>\d+) ?/ ?(?P<d>\d+)"  # 1 1/2
    rf"|(?P<over>{_DIGITS}) ?/ ?(?P<under>{_DIGITS})"  # 1/2
    rf"|(?P<decimal>{_DECIMAL})"
    r"(?:[eE](?P<e>[+-]?\d+)| ?(?:\*|x|×|\\times|\\cdot) ?10(?:\^|\*\*) ?(?P<power>{?[+-]?\d+}?))?"
    r"|(?P<ten>10(?:\^|\*\*) ?(?P<tenpower>{?[+-]?\d+}?))"
    r")"
)
_VULGAR = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])")
_ANY_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_PERCENT = re.compile(r"\\?%|percent(?:age)?|pct", re.IGNORECASE)
_UNIT = re.compile(r"[^\W\d_][^\W\d_/^²³.·* -]*(?:[ /·*-]+[^\W\d_]+|[\^²³]{?-?\d?}?){0,3}|°[CF]?")
_CURRENCY = re.compile(r"(?<![\w])(?:\\?\$|€|£|¥|₹|USD |EUR )(?=[ ]?[-+]?[.\d])")
_CURRENCIES = ("$", "\\$", "€", "£", "¥", "₹")
_NOT_UNITS = frozenset(
    "and or to plus minus times by over of pi e i half quarter third dozen hundred thousand million billion trillion "
    "lakh crore squared cubed mod remainder factorial choose if when for".split()
)
_IN_WORDS = re.compile(rf"([^\d\\^=+*/<>{{}}-]*?)((?:-|\$ ?)?{_DECIMAL} ?%?)(?!\w)([^\d\\^=+*/<>{{}}]*)")
_NOT_ONE = frozenset("not no or than least most between about nearly almost half times million billion".split())
_SAME_UNIT = {
    alias: names.split()[0]
    for names in (
        "cm centimeter centimetre",
        "mm millimeter millimetre",
        "km kilometer kilometre",
        "m meter metre",
        "kg kilogram kilo",
        "g gram gramme",
        "s second sec",
        "min minute",
        "h hour hr",
        "l liter litre",
        "inch in",
        "ft foot feet",
        "degree deg °",
        "dollar usd buck",
        "cent ¢",
        "child children",
        "person people",
    )
    for alias in names.split()
}


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written: `exact` unless with a decimal point or a power of ten; `unit` is "" where there is none."""

    value: Fraction
    exact: bool = True
    percent: bool = False
    unit: str = ""


def read_number(text: str) -> Number | None:
    """The number that `text` is, or None if it is anything else (an expression, a list, words, too large a power).

    Read are integers, decimals, `1,000` and `1 000`, `1/2` and `\\frac{1}{2}`, mixed numbers, `1.5e3` and
    `1.5 \\times 10^{3}`, each with a sign, a currency sign, a percent sign or a unit of up to four words.
    """
    if len(text) > MAX_TEXT:
        return None
    text = _CURRENCY.sub("", _plain(text)).strip()
    match = _NUMBER.match(text)
    if match is None:
        return None
    rest = text[match.end() :].strip()
    percent = bool(_PERCENT.fullmatch(rest))
    unit = "" if percent else _unit(rest)
    if unit is None:
        return None
    value = _value(match)
    if value is None:
        return None
    exact = match["decimal"] is None or not ("." in match["decimal"] or match["e"] or match["power"])
    return Number(-value if match["sign"] == "-" else value, exact, percent, unit)


def only_number(text: str) -> Number | None:
    """The one number that a sentence of at least three words holds ("Jane started 3 hours ago"); None if it is not so.

    Signs of a computation or a bound ("at least 3", "not 3", "3 or more") make it another answer.
    """
    if len(text) > MAX_TEXT:
        return None
    match = _IN_WORDS.fullmatch(_plain(text))
    if match is None:
        return None
    words = re.findall(r"[^\W\d_]{2,}", match[1] + " " + match[3])
    if len(words) < 3 or any(word.casefold() in _NOT_ONE for word in words):
        return None
    return read_number(match[2])


def same_number(a: Number, b: Number, tolerance: Fraction = TOLERANCE) -> bool:
    """Whether two numbers are the same answer.

    Numbers written exactly must be equal; otherwise they may differ by `tolerance` of the larger one. A percentage
    equals both the number before its sign and its hundredth; two different units are never the same.
    """
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if a.percent == b.percent:
        return _close(a.value, b.value, a.exact and b.exact, tolerance)
    percentage, other = (a, b) if a.percent else (b, a)
    exact = a.exact and b.exact
    return any(_close(value, other.value, exact, tolerance) for value in (percentage.value, percentage.value / 100))


def _close(x: Fraction, y: Fraction, exact: bool, tolerance: Fraction) -> bool:
    return x == y or (not exact and abs(x - y) <= tolerance * max(abs(x), abs(y)))


def _value(match: re.Match[str]) -> Fraction | None:
    """The magnitude of a match of `_NUMBER`; None for a zero denominator or too large an exponent."""

    def integer(text: str | None) -> int:
        return int(re.sub(r"[, ]", "", text or "0"))

    if match["decimal"] is not None:
        power = int((match["e"] or match["power"] or "0").strip("{}"))
        if abs(power) > MAX_EXPONENT:
            return None
        return Fraction(re.sub(r"[, ]", "", match["decimal"])) * Fraction(10) ** power
    if match["ten"] is not None:
        power = int(match["tenpower"].strip("{}"))
        return None if abs(power) > MAX_EXPONENT else Fraction(10) ** power
    whole = integer(match["whole"] or match["mixed"])
    numerator = integer(match["p"] or match["p1"] or match["n"] or match["over"])
    denominator = integer(match["q"] or match["q1"] or match["d"] or match["under"])
    return whole + Fraction(numerator, denominator) if denominator else None


def plain_signs(text: str) -> str:
    """Typographic signs as plain ones: "−" as "-", "x²" as "x^2", "1½" as "1 1/2", full-width and the like."""
    text = _VULGAR.sub(" ", text.replace("²", "^2").replace("³", "^3"))
    return unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-").replace("⁄", "/")


def _plain(text: str) -> str:
    """LaTeX that only changes the looks of a number removed, signs and spaces made uniform."""
    text = _ANY_FRAC.sub(r"\\frac", plain_signs(text))
    text = re.sub(r"\\(?:text|textbf|textnormal|mathrm|mbox|operatorname)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "°", text)
    text = re.sub(r",\\!\s*", ",", text)
    return re.sub(r"(?:\\[,;:! ]|~|\s)+", " ", text).strip()


def _unit(rest: str) -> str | None:
    """The unit that `rest` names, in a common form; "" if there is none, None if `rest` is no unit."""
    if not rest or rest in _CURRENCIES:
        return ""
    if not _UNIT.fullmatch(rest):
        return None
    words = re.findall(r"[^\W\d_]+|[°/^\d]+", rest.casefold())
    if any(word in _NOT_UNITS for word in words) or (len(rest) == 1 and rest not in "mgshlLNJWKCFVAT°"):
        return None
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if word not in _SAME_UNIT and len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return _SAME_UNIT.get(word, word)
