"""Nothing that a model writes breaks the grader. The full run: `python -m tests.junk 100000`."""

from __future__ import annotations

import time

import pytest

from restmcts.tasks.answers import answer_in, compare_math, equivalent
from tests.junk import GOLDS, NASTY, PIECES, grade_junk


@pytest.mark.slow
def test_junk_breaks_nothing_by_any_rule():
    found = grade_junk(1500)
    assert found["right"] < 60  # damaged right answers may still be right
    assert found["crashes"] == 0
    assert found["slowest"] < 8  # the engine's five seconds, and a busy machine


@pytest.mark.parametrize("rule", [rule for rule in GOLDS if rule not in ("math", "theoremqa")])
def test_nasty_texts_are_wrong_at_once_where_no_engine_is_needed(rule):
    began = time.perf_counter()
    for gold in GOLDS[rule]:
        for text in NASTY:
            seen = "42" if text in ("\ufeff42", "\u200f42", "٤٢") else text  # marks that show nothing, Arabic digits
            assert equivalent(gold, text, rule=rule) is (seen == gold), text[:50]
    assert time.perf_counter() - began < 10


def test_texts_alone_take_no_time():
    """Regular expressions that back-track without end would take seconds here."""
    pieces = [*PIECES, "\\{", "\\frac{", "(", "{^4", "\n5\\{", "1,", "and ", "\\text{", "answer is ", "$ "]
    for piece in pieces:
        for text in (piece * 40, piece * 150, "x" + piece * 60 + "1"):
            began = time.perf_counter()
            for known in ("42", "x^2 + 3", "(1, 2)", text):
                compare_math(known, answer_in(text, last_number=True))
            assert time.perf_counter() - began < 1, text[:50]
