"""Find the final answer in a text, bring it into a canonical form, and compare it with the known one.

Only what is marked as the answer counts as one: a sentence such as "Answer: 42", "The answer is 42." or "答案是 42",
a `\\boxed{…}`, or GSM8K's "#### 42". Everything here works on text in bounded time; what only a symbolic engine can
decide is left to `grade`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from restmcts.tasks.numbers import TOLERANCE, Number, only_number, plain_signs, read_number, same_number
from restmcts.tasks.structure import Equal, read_collection, same_collection

MAX_TEXT = 100_000
"""Of a longer text, the last so many characters are searched for an answer."""
MAX_ANSWER = 2_000
"""A longer answer is no answer."""
MAX_WRAPPERS = 8
"""So many layers of math marks, quotes, boxes, … are taken off an answer."""
MAX_MARKS = 50
"""So many answer sentences and boxes from the end are looked at."""

MAX_BETWEEN = 80
"""Boxes further apart than that are two answers."""

MAX_NESTING = 30
"""Brackets nested deeper are not looked into."""

PROSE = 3
"""So many words make a sentence."""

MAX_DIGITS = 400
"""A longer row of digits is not turned into a number."""

# ---------------------------------------------------------------- find the answer

_SENTENCE = re.compile(
    r"\banswer(?:s)?\b['\"”]?"
    r"(?: (?:to|for|of) [^.:=\n]{1,80}?)?"  # the answer to the question
    r"[ \t]*[*_]{0,3}[ \t]*"
    r"(?::|=|：|(?:is|are|equals)\b(?:[ \t]+(?:therefore|thus|then|simply|just|equal to))?[ \t]*:?)"
    r"|答案(?:应该|应)?[*_]{0,3}[ \t]*(?:是|为|：|:)[ \t]*[:：]?",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*+(?=[-+$€£\\]{0,2}[ ]?[.\d])(?!\d+[.)][ \t]+\D)", re.MULTILINE)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_BRACE = re.compile(r"(?<!\\)[{}]")
_DISPLAYED = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(
    r"(?:\.|(?<=[^\W\d_]{2})[!！])(?=[\s*_]+(?:[A-Z(\[]|\\?\(|$)|\s*$)|。"
    r"|[,;]?\s(?:because|since|which|as (?:required|desired|shown))\b"
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;.$&]|\\quad|\\qquad|\\[,;: ()\[\]]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b|和|或)*"
    r"(?:(?<![A-Za-z])[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"  # \boxed{1} and y = \boxed{2}
    r"|\s*[A-Za-z]+\s+and\s+"  # \boxed{1} apple and \boxed{2} pears
)
_BETWEEN_IN_FORMULA = re.compile(r"(?:(?!\\[()\[\]]|\n\s*\n)[^$=]){0,80}")
_FORMULA_MARK = re.compile(r"(?<!\\)\$\$?|\\[()\[\]]")
_BROKEN = re.compile(r"(?<![$\\])\$[ \t]*\n[^$\n]{0,200}\n[ \t]*\$(?!\$)|\\\([ \t]*\n[^\n]{0,200}\n[ \t]*\\\)")
"""An inline formula stands on one line; one that is broken over lines states nothing."""


def find_answer(text: str) -> str | None:
    """The last final answer marked as such in `text`, cleaned (see `clean`); None if there is none.

    A mark with nothing after it marks no answer, and a sentence without a number ("the answer is correct") does not go
    before a box.
    """
    text = text[-MAX_TEXT:]
    boxed = _last_boxed(text)
    found: list[tuple[int, str]] = []
    if boxed is not None and (content := clean(boxed[1])):
        found.append((boxed[0], content))
    for pattern in (_SENTENCE, _HASHES):
        for mark in deque(pattern.finditer(text), maxlen=MAX_MARKS):
            content = clean(_sentence(text, mark.end()))
            if content and not (boxed is not None and _wordy(content)):
                found.append((mark.start(), content))
    if not found:
        return None
    answer = max(found)[1]
    return answer if len(answer) <= MAX_ANSWER else None


def answer_in(text: str, find: Callable[[str], str | None] = find_answer, *, last_number: bool = False) -> str:
    """The answer that `text` marks, as `find` finds it, else all of `text`: a bare answer has no mark.

    With `last_number`, that of a sentence without a mark counts ("so the number is 10 which is 1,000.99€").
    """
    text = _BROKEN.sub(" ", text[-MAX_TEXT:])
    found = find(text)
    if found is not None:
        return found
    words = len(_WORD.findall(text[-MAX_ANSWER:])) if last_number and not re.search(r"[\\$]", text) else 0
    stated = _NUMBERS.findall(text[-MAX_ANSWER:]) if words >= PROSE else []
    return str(stated[-1]) if stated else text


def equivalent(gold: str, prediction: str, rule: str = "math") -> bool:
    """Whether `prediction`, an answer or a whole solution text, states the answer `gold` by the named rule.

    Rules are the tasks of `restmcts.tasks.TASKS` and the names of question sets (`restmcts.tasks.sets.SETS`). Where
    the prediction marks no answer, all of it is taken for one, and of a sentence the last number ("math" and
    "numeric"). What a symbolic engine has to decide takes at most five
    seconds, and is no where it takes longer. The rule "math" is symmetric; "numeric" is not: a computation left undone
    ("7 + 5") is no answer. Raises TaskError for an unknown rule.
    """
    from restmcts.tasks import get_task
    from restmcts.tasks.grade import default_grader

    task = get_task(rule)
    numbers = task.name in ("math", "numeric")
    known, given = (answer_in(text, task.find_answer, last_number=numbers) for text in (gold, prediction))
    return default_grader().judge(task, known, given)


def _sentence(text: str, start: int) -> str:
    """What a mark that ends at `start` points at: the rest of its sentence, or the next line if that is empty."""
    line, _, rest = text[start : start + 4 * MAX_ANSWER].partition("\n")
    if not line.strip(" \t*_:：$"):
        following = (line.strip(" \t*_:：") + rest.lstrip())[: 2 * MAX_ANSWER]
        displayed = _DISPLAYED.match(following)
        line = displayed[1] or displayed[2] if displayed else following.partition("\n")[0]
    boxed = _last_boxed(line)
    if boxed is not None:
        return boxed[1]
    end = _SENTENCE_END.search(line)
    return line[: end.start()] if end else line


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Place and content of the last balanced `\\boxed{…}`; neighbours joined by "," or "and" are one answer."""
    boxes: list[tuple[int, int, str]] = []
    for match in deque(_BOXED.finditer(text), maxlen=MAX_MARKS):
        if boxes and match.start() < boxes[-1][1]:
            continue
        end = _closing(text, match.end())
        if end is not None:
            boxes.append((match.start(), end + 1, text[match.end() : end]))
    if not boxes:
        return None
    start, _, content = boxes.pop()
    while boxes and _one_answer(text, boxes[-1][1], start):
        start, _, before = boxes.pop()
        content = f"{before}, {content}"
    return start, content


def _one_answer(text: str, end: int, start: int) -> bool:
    """Whether boxes that end and start there are parts of one answer: joined by words for it, or in one formula."""
    if start - end > MAX_BETWEEN:
        return False
    if _BETWEEN_BOXES.fullmatch(text, end, start):
        return True
    if not _BETWEEN_IN_FORMULA.fullmatch(text, end, start):
        return False
    marks = [mark[0] for mark in _FORMULA_MARK.finditer(text, 0, end)]
    return bool(marks) and (marks[-1] in ("\\(", "\\[") or ("$" in marks[-1] and marks.count(marks[-1]) % 2 == 1))


def _closing(text: str, start: int) -> int | None:
    """Index of the brace that closes the one opened just before `start`."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + 2 * MAX_ANSWER):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return None


_BEFORE = " \t\r\n:：=*_"
_AFTER = " \t\r\n.,;:。，；*_"
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202c\u2060\u2066-\u2069\ufeff]")
"""Signs that show nothing: soft hyphens, marks of writing direction, byte order marks."""
_EXCLAIMED = re.compile(r"(?<=[^\W\d_]{2})[!！]+$|(?<!\\)\\$")
"""An exclamation mark after a word (after a number it is a factorial), and a backslash that has lost its sign."""
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.*)\$\$",
        r"\$([^$]*)\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"`+([^`]*)`+",
        r"\\f?boxed\s*\{(.*)\}",
        r"\\(?:text|textbf|mathbf|mathrm|mbox|displaystyle)\s*\{([^{}]*)\}",
        r"\\displaystyle\b(.*)",
        r"\\?\"([^\"]*?)\\?\"",
        r"“([^”]*)”",
        r"'([^']*)'",
    )
)


def clean(answer: str) -> str:
    """`answer` without what surrounds it: spaces, math and bold marks, quotes, a box, closing punctuation."""
    text = _INVISIBLE.sub("", answer).strip()
    if len(text) > MAX_ANSWER:
        return text
    for _ in range(MAX_WRAPPERS):
        before = text
        text = _EXCLAIMED.sub("", text.lstrip(_BEFORE).rstrip(_AFTER))
        for wrapper in _WRAPPERS:
            match = wrapper.fullmatch(text)
            if match is not None and _balanced(match[1]):
                text = match[1].strip()
        if text == before:
            break
    return text


def _balanced(text: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += 1 if brace[0] == "{" else -1
        if depth < 0:
            return False
    return depth == 0


# ---------------------------------------------------------------- canonical form

_SPACING = re.compile(r"\\(?:left|right|big|Big|bigl|bigr|displaystyle)(?![a-zA-Z])|\\[,;:! ]|\\q?quad|~|\$")
_ANY_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|textnormal|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_ASSIGNED = re.compile(r"\A[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?\s*(?:=|\\approx)\s*(?=[^=]+$)")
_NUMBERS = re.compile(r"[-+$€£]{0,2}\d[\d,]*(?:\.\d+)?(?: ?/ ?\d+)? ?(?:%|°|[^\W\d_]{1,3}[²³]?|[€£$])?(?!\w)")
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")


def key(answer: str) -> str:
    """A canonical form for votes: equal keys mean equal answers; equal answers mostly have equal keys.

    Numbers become exact ("12.0", "12 apples" and "$12$" give "12", "0.5" gives "1/2"), LaTeX loses what only changes
    its looks, and words lose their case.
    """
    text = _ASSIGNED.sub("", clean(answer), count=1)
    number = read_number(text)
    if number is not None:
        return f"{number.value}%" if number.percent else str(number.value)
    return text_key(text)


def text_key(answer: str) -> str:
    """`key` for answers that are not numbers: spacing, LaTeX looks and the case of words left out."""
    text = _TEXT.sub(r" \1 ", _ANY_FRAC.sub(r"\\frac", plain_signs(clean(answer))[: 2 * MAX_ANSWER]))
    text = _SPACING.sub(" ", text).strip()
    letter = re.fullmatch(r"\(?([A-Za-z])[).]?", text)
    if letter is not None:
        return letter[1]
    if _WORD.search(text):
        return " ".join(text.casefold().split())
    return "".join(text.split())


# ---------------------------------------------------------------- compare without a symbolic engine


def compare_exact(gold: str, answer: str) -> bool:
    """Equal as text, but for case and spacing."""
    return bool(gold.strip()) and text_key(gold).casefold() == text_key(answer).casefold()


def compare_numeric(gold: str, answer: str, tolerance: Fraction = TOLERANCE) -> bool:
    """Equal as numbers. A computation left undone ("7 + 5") is no number; of "7 + 5 = 12" the last part is taken.

    A gold answer that is no number must be equal as text.
    """
    if gold.isdecimal() and answer.isdecimal() and len(answer) <= MAX_DIGITS:
        return int(gold) == int(answer)
    known = read_number(clean(gold))
    if known is None:
        return compare_exact(gold, answer)
    stated = clean(answer.rsplit("=", 1)[-1])
    given = read_number(stated) or only_number(stated)
    return given is not None and same_number(known, given, tolerance)


def compare_math(gold: str, answer: str, tolerance: Fraction = TOLERANCE) -> bool | None:
    """Equal as mathematics, as far as text and numbers tell; None where a symbolic engine has to look.

    Decimals may differ by `tolerance` of the larger one; what is written exactly must be equal.
    """
    if gold.isdecimal() and answer.isdecimal() and len(answer) <= MAX_DIGITS:
        return int(gold) == int(answer)
    if max(len(gold), len(answer)) > MAX_ANSWER or not clean(gold) or not clean(answer):
        return False
    a, b = _number(gold), _number(answer)
    if a is not None and b is not None:
        return same_number(a, b, tolerance)
    if text_key(gold) == text_key(answer):
        return True
    if (a is not None and not _may_be_number(answer)) or (b is not None and not _may_be_number(gold)):
        return False
    if _hopeless(gold) or _hopeless(answer):
        return False
    return compare_parts(gold, answer, partial(compare_math, tolerance=tolerance))


def compare_parts(gold: str, answer: str, equal: Equal) -> bool | None:
    """Two tuples, sets, matrices, … compared part by part; None where they are not of one kind and length."""
    known, given = read_collection(clean(gold)), read_collection(clean(answer))
    return None if known is None or given is None else same_collection(known, given, equal)


def _number(text: str) -> Number | None:
    text = _ASSIGNED.sub("", clean(text), count=1)
    return read_number(text) or only_number(text)


_BRACKET = re.compile(r"[()\[\]{}]")
_HOPELESS = re.compile(
    r"(?:\d\s*(?:\^|\*\*)[\s{(]*){3}|\d\d\s*(?:\^|\*\*)[\s{(]*\d\d+\s*(?:\^|\*\*)"  # towers of powers
    r"|!!|\d\s*\)\s*!"  # factorials of formulas
)


def _hopeless(text: str) -> bool:
    """Whether no engine would come to an end with `text`, which nobody would answer."""
    depth = deepest = 0
    for sign in _BRACKET.findall(text):
        depth = max(0, depth + (1 if sign in "([{" else -1))
        deepest = max(deepest, depth)
    return deepest > MAX_NESTING or bool(_HOPELESS.search(text))


def _may_be_number(text: str) -> bool:
    """Whether an engine could find a number in `text`: not in words alone, nor in a sentence with several numbers."""
    return not _wordy(text) and not _prose(text)


def _prose(text: str) -> bool:
    """Whether `text` is words with something in between, and no formula."""
    return not re.search(r"[\\$^_{}=<>]", text) and len(_WORD.findall(text[:MAX_ANSWER])) >= PROSE


def _wordy(text: str) -> bool:
    """Whether `text` holds nothing a number could be made of."""
    return not re.search(r"[\d\\]", text)
