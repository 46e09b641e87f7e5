"""Answers made of several: tuples, intervals, sets, lists and matrices, taken apart so that their parts are compared.

Comparing part by part keeps the rules for numbers in force inside of brackets, and needs no symbolic engine where all
parts are plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from restmcts.tasks.numbers import plain_signs

MAX_PARTS = 60
MAX_DEPTH = 8
"""What has more parts, or brackets deeper than that, is left to the symbolic engine as a whole."""

Equal = Callable[[str, str], bool | None]
"""whether two parts are equal; None where that cannot be told"""

_LOOKS = re.compile(
    r"\\(?:left|right|big|Big|bigl|bigr|Bigl|Bigr|displaystyle)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\$"
)
_AND = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![\\\w])(?:and|or)(?!\w)|和|或")
_WHOLE = re.compile(r"\\pm|\\mp|±|\\cup|\\cap|∪|∩|\\setminus|\\ldots|\\dots|…|[<>≤≥]|\\[lg]eq?(?![a-z])|\\in(?![a-z])")
_MATRIX = re.compile(
    r"\\begin\{((?:p|b|B|small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}(?:\s*\\cr)?", re.DOTALL
)
_NAME = re.compile(r"\s*([A-Za-z]\w{0,2}(?:_\{?\w{1,4}\}?)?)\s*(?:\([a-z]\))?\s*=(?!=)\s*([^=]+)")


@dataclass(frozen=True, slots=True)
class Collection:
    """`kind` is its brackets, "set" where the order does not matter, "matrix 2 2" for a matrix of that shape."""

    kind: str
    parts: tuple[str, ...]


def read_collection(text: str) -> Collection | None:
    """`text` as a collection; None for anything else, and for what only an engine can take apart (unions, ±, …)."""
    text = _LOOKS.sub(" ", plain_signs(text)).replace("\\{", "\x01").replace("\\}", "\x02").strip()
    if _WHOLE.search(text):
        return None
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[2])
    opening, kind = text[:1], "set"
    if opening + text[-1:] in ("\x01\x02", "{}"):
        inner = text[1:-1]
    elif opening in ("(", "[") and text[-1:] in (")", "]"):
        inner, kind = text[1:-1], opening + text[-1]
    else:
        inner = _AND.sub(",", text)
    parts = _split(inner)
    if parts is None and inner != text:  # "(1, 2), (3, 4)": the brackets at its ends are not a pair
        inner, kind = _AND.sub(",", text), "set"
        parts = _split(inner)
    if parts is not None and len(parts) == 1 and kind == "()":
        return read_collection(parts[0].replace("\x01", "\\{").replace("\x02", "\\}"))  # brackets around one thing
    if parts is None or len(parts) < (1 if opening == "\x01" else 2) or len(parts) > MAX_PARTS:
        return None
    return Collection(kind, tuple(part.replace("\x01", "\\{").replace("\x02", "\\}") for part in parts))


def _matrix(body: str) -> Collection | None:
    rows = [row.split("&") for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?|\\cr(?![a-z])", body) if row.strip()]
    if not rows or len({len(row) for row in rows}) > 1 or len(rows) * len(rows[0]) > MAX_PARTS or "\\begin" in body:
        return None
    parts = tuple(cell.strip().replace("\x01", "\\{").replace("\x02", "\\}") for row in rows for cell in row)
    return Collection(f"matrix {len(rows)} {len(rows[0])}", parts)


def _split(text: str) -> list[str] | None:
    """`text` cut at its commas and semicolons outside of brackets; None where brackets do not match.

    A semicolon parts more than a comma does: "1,5; 2" are two parts.
    """
    depth, start, cuts = 0, 0, []
    for place, sign in enumerate(text):
        if sign in "([{\x01":
            depth += 1
            if depth > MAX_DEPTH:
                return None
        elif sign in ")]}\x02":
            depth -= 1
            if depth < 0:
                return None
        elif sign in ",;" and depth == 0:
            cuts.append((place, sign))
    if depth:
        return None
    semicolons = any(sign == ";" for _, sign in cuts)
    parts = []
    for place, sign in [*cuts, (len(text), ";")]:
        if sign == "," and semicolons:
            continue
        parts.append(text[start:place].strip())
        start = place + 1
    return [part for part in parts if part]


# ---------------------------------------------------------------- compare


def same_collection(a: Collection, b: Collection, equal: Equal) -> bool | None:
    """Whether two collections are equal, as far as `equal` tells of their parts.

    None also where they are of different kinds or lengths: only as a whole can they be the same then.
    """
    if a.kind != b.kind or len(a.parts) != len(b.parts):
        return None
    names_a, names_b = _names(a.parts), _names(b.parts)
    if a.kind != "set" or (names_a is None) != (names_b is None):
        return _all(equal(_value(x), _value(y)) for x, y in zip(a.parts, b.parts, strict=True))
    if names_a is not None and names_b is not None:
        if names_a.keys() != names_b.keys():
            return None
        return _all(equal(value, names_b[name]) for name, value in names_a.items())
    return _same_set([_value(part) for part in a.parts], [_value(part) for part in b.parts], equal)


def _names(parts: Sequence[str]) -> dict[str, str] | None:
    """The values of "x = 1, y = 2" by name; None unless every part has a name of its own."""
    matches = [_NAME.fullmatch(part) for part in parts]
    named = {re.sub(r"[{}]", "", match[1]): match[2] for match in matches if match is not None}
    return named if len(named) == len(parts) else None


def _value(part: str) -> str:
    match = _NAME.fullmatch(part)
    return match[2] if match is not None else part


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is, else None if one is, else True. Stops at the first False."""
    known = True
    for verdict in verdicts:
        if verdict is False:
            return False
        known = known and verdict is not None
    return True if known else None


def _same_set(a: list[str], b: list[str], equal: Equal) -> bool | None:
    """Whether each part of `a` has a partner of its own in `b`, and each of `b` in `a`."""
    open_parts = list(b)
    lonely: list[str] = []
    for part in a:
        verdicts = []
        for index, other in enumerate(open_parts):
            verdict = equal(part, other)
            if verdict:
                del open_parts[index]
                break
            verdicts.append(verdict)
        else:
            if None not in verdicts:
                return False
            lonely.append(part)
    if any(all(equal(part, other) is False for part in lonely) for other in open_parts):
        return False
    return None if lonely else True
