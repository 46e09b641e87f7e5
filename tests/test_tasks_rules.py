"""Multiple choice, SciBench and TheoremQA: their rows, and what counts as right."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.errors import TaskError
from restmcts.tasks import get_task
from restmcts.tasks.answers import equivalent
from restmcts.tasks.rules import choice_row, read_letter, scibench_row, theoremqa_tolerance

# ---------------------------------------------------------------- multiple choice


@pytest.mark.parametrize(
    "prediction",
    [
        *["B", "(B)", "b", "B.", "B. Paris", "**B**", "\\text{B}", "option B", "Option (b)", "[B]", "（B）", "B、巴黎"],
        *["Answer: B", "The answer is (B).", "The correct answer is B) Paris", "\\boxed{B}", "\\boxed{\\text{(B)}}"],
        *["A is wrong, so the correct option is B", "答案是B", "答案：B。", "因此选B。", "故选：B", "答案：选项B"],
    ],
)
def test_letters_are_read(prediction):
    assert equivalent("B", prediction, rule="choice")
    assert not equivalent("C", prediction, rule="choice")
    assert equivalent("B", prediction, rule="gpqa")


@pytest.mark.parametrize("text", ["", "Paris", "A cat", "Because", "42", "AB", "I think so", "\x00", "$"])
def test_no_letter(text):
    assert read_letter(text) is None


def test_without_letters_texts_are_compared():
    assert equivalent("Yes", "Answer: yes", rule="choice")
    assert not equivalent("Yes", "Answer: no", rule="choice")


def test_speaking_of_an_option_is_no_answer():
    find = get_task("choice").find_answer
    for text in ("Option A cannot be, because 3 > 2.", "Let us look at option (B).", "选项B不对", "可选A"):
        assert find(text) is None
    assert find("Option A is wrong.\nAnswer: C") == "C"


OPTIONS = ["Rome", "Paris", "Oslo", "Bern"]


@pytest.mark.parametrize(
    "row",
    [
        {"options": OPTIONS, "answer": "B"},
        {"choices": OPTIONS, "answer": 1},
        {"choices": OPTIONS, "answer": "Paris"},
        {"options": ["A. Rome", "B. Paris", "C. Oslo", "D. Bern"], "answer": "(B)"},
        {"choices": {"text": OPTIONS, "label": list("ABCD")}, "answer": "B"},
        {"options": dict(zip("ABCD", OPTIONS, strict=True)), "answer": "b"},
        {**dict(zip("ABCD", OPTIONS, strict=True)), "answer": "B"},
    ],
)
def test_options_are_written_under_the_question(row):
    made = choice_row({"question": "Capital of France?", **row})
    assert made["question"] == "Capital of France?\nA. Rome\nB. Paris\nC. Oslo\nD. Bern"
    assert made["answer"] == "B"


def test_options_that_the_question_has_already_are_not_written_again():
    question = "Capital?\n\nA. Rome\nB. Paris\nC. Oslo\nD. Bern"
    assert choice_row({"question": question, "options": OPTIONS, "answer": "B"})["question"] == question
    assert choice_row({"question": question, "answer": "B"}) == {"question": question, "answer": "B"}


def test_the_order_of_gpqas_options_depends_on_the_question_alone():
    letters = set()
    for n in range(40):
        row = {"question": f"Question {n}?", "answer": "right\n", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y"}
        made = choice_row(row | {"Incorrect Answer 3": "z"})
        assert made == choice_row(row | {"Incorrect Answer 3": "z"})
        assert f"{made['answer']}. right" in made["question"]
        letters.add(made["answer"])
    assert letters == set("ABCD")


def test_an_answer_that_is_no_option_is_refused():
    with pytest.raises(TaskError, match="the answer 'E' names none of the options A, B, C, D"):
        choice_row({"question": "?", "options": OPTIONS, "answer": "E"})
    assert choice_row({"question": "?", "options": OPTIONS})["answer"] is None


# ---------------------------------------------------------------- SciBench


@pytest.mark.parametrize(
    ("gold", "prediction", "right"),
    [
        ("50.7", "50.7", True),
        ("50.7 [atm]", "The answer is 50.7 atm.", True),
        ("50.7 [atm]", "\\boxed{52.0}", True),
        ("50.7 [atm]", "\\boxed{54}", False),
        ("50.7 [atm]", "\\boxed{P = 50.7 \\mathrm{~atm}}", True),
        ("50.7 [atm]", "-50.7", False),
        ("100", "94.9", False),
        ("0.1", "0.15", False),  # 0.1 absolute would let it pass
        ("0", "0.0", True),
        ("0", "0.01", False),
        ("1410 [K]", "1.41 \\times 10^3 \\mathrm{K}", True),
        ("1410 [K]", "1.41", False),
        ("4.59 [10^{17} \\mathrm{~Hz}]", "4.59", True),
        ("4.59 [10^{17} \\mathrm{~Hz}]", "4.59 \\times 10^{17} \\mathrm{~Hz}", True),
        ("4.59 [10^{17} \\mathrm{~Hz}]", "4.59e17", True),
        ("4.59 [10^{17} \\mathrm{~Hz}]", "4.59 \\times 10^{16}", False),
        ("2.25 [10^{-10} \\mathrm{~m}]", "2.25 x 10^-10 m", True),
        ("-383 [\\mathrm{kJ} \\mathrm{mol}^{-1}]", "-383 kJ mol^{-1}", True),
        ("-383 [\\mathrm{kJ} \\mathrm{mol}^{-1}]", "-383\\,\\text{kJ/mol}", True),
        ("89034.79 [\\$]", "\\$89,034.79", True),
        ("30 [^\\circ]", "30^\\circ", True),
        ("5 [%]", "5\\%", True),
        ("50.7", "50.7 [atm]", True),
        ("50.7", "fifty", False),
        ("50.7", "50.7 * 3", False),
        ("50.7", "", False),
        ("50.7", "9" * 1000, False),
    ],
)
def test_scibench(gold, prediction, right):
    assert equivalent(gold, prediction, rule="scibench") is right


def test_scibench_rows():
    row = {"question": "Find it.", "answer": "4.59", "unit": "$10^{17} \\mathrm{~Hz}$"}
    made = scibench_row(row)
    assert made["question"] == "Find it. The unit of the answer is $10^{17} \\mathrm{~Hz}$."
    assert made["answer"] == "4.59 [10^{17} \\mathrm{~Hz}]"
    assert scibench_row(made) == made
    assert scibench_row({"question": "Find it.", "answer": "3.0", "unit": ""})["answer"] == "3.0"
    assert scibench_row({"question": "Pay?", "answer": "5", "unit": "$"})["answer"] == "5 [\\$]"


@given(st.floats(1e-6, 1e6), st.floats(0.5, 1.5))
def test_scibench_is_relative(value, factor):
    other = value * factor
    if abs(abs(value - other) / max(value, other) - 0.05) > 1e-6:
        assert equivalent(repr(value), repr(other), rule="scibench") is (abs(value - other) < 0.05 * max(value, other))


# ---------------------------------------------------------------- TheoremQA


@pytest.mark.parametrize(
    ("gold", "prediction", "right"),
    [
        ("true", "Answer: True", True),
        ("true", "The answer is yes.", True),
        ("false", "Answer: no, it is not", True),
        ("false", "Answer: true", False),
        ("true", "答案：正确", True),
        ("(c)", "Answer: (c)", True),
        ("(c)", "The answer is C.", True),
        ("(c)", "Answer: (d)", False),
        ("11760", "11,760", True),
        ("12", "12.4", False),  # its authors round to 12
        ("12", "12.0", True),
        ("3.25", "3.14", False),  # its authors allow 4 %
        ("100.4", "100", False),
        ("1.42", "1.4179", True),
        ("1.42", "1.43", False),
        ("0.33", "1/3", True),
        ("0.4", "0.45", False),
        ("1.0", "1.004", False),
        ("4e-05", "0.00004", True),
        ("1.0472", "\\frac{\\pi}{3}", True),
        ("1.0472", "\\frac{\\pi}{4}", False),
        ("[1, 6]", "[6, 1]", True),
        ("[1, 6]", "1 and 6", True),
        ("[1, 6]", "(1, 6)", True),
        ("[1, 6]", "[1, 7]", False),
        ("[1, 6]", "[1, 6, 6]", False),
        ("[0.333, 0.25]", "[\\frac{1}{3}, \\frac{1}{4}]", True),
        ("[3]", "[3]", True),
        ("[3]", "{3}", True),
        ("[1, 6]", "", False),
    ],
)
def test_theoremqa(gold, prediction, right):
    assert equivalent(gold, prediction, rule="theoremqa") is right


def test_rounding_excuses_little():
    assert theoremqa_tolerance("3.14") == Fraction(5, 3140)
    assert theoremqa_tolerance("0.4") == theoremqa_tolerance("3e-36") == Fraction(1, 100)
    for exact in ("12", "1.0", "true", "[1, 2]"):
        assert theoremqa_tolerance(exact) == Fraction(1, 10**6)
