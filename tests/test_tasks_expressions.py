"""Countdown and the Game of 24: the expression is read safely, computed exactly and checked."""

from __future__ import annotations

import json
import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restmcts.errors import TaskError
from restmcts.tasks import get_task
from restmcts.tasks.expressions import find_expression, key, read_expression, read_game
from restmcts.tasks.load import load_problems
from restmcts.types import Tree

GOLD = "24 from all of 3 3 8 8"


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("8 / (3 - 8 / 3)", 24, "3 3 8 8"),
        ("8 ÷ (3 − 8 ÷ 3)", 24, "3 3 8 8"),
        (r"\frac{8}{3-\frac{8}{3}}", 24, "3 3 8 8"),
        (r"$\dfrac{8}{3 - \frac83}$", 24, "3 3 8 8"),
        (r"\left( 1 + 2 \right) \times 8", 24, "1 2 8"),
        (r"\(3 \cdot 8\)", 24, "3 8"),
        ("[(1 + 2) × {8}]", 24, "1 2 8"),
        ("(3)(8)", 24, "3 8"),
        ("3(7 + 1)", 24, "1 3 7"),
        ("(7 + 1)3", 24, "1 3 7"),
        ("-3 + 27", 24, "3 27"),
        ("3 * -8 + 48", 24, "3 8 48"),
        ("24", 24, "24"),
        ("1/3 + 1/3 + 1/3", 1, "1 1 1 3 3 3"),
        ("2.5 * 4", 10, "2.5 4"),
        ("2 - 3 - 4", -5, "2 3 4"),
        ("24 / 4 / 3", 2, "3 4 24"),
    ],
)
def test_expressions_are_read(text, value, numbers):
    expression = read_expression(text)
    assert expression is not None
    assert expression.value == value
    assert expression.numbers == tuple(sorted(map(Fraction, numbers.split())))


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "x", "3 8", "3 +", "* 3", "(3", "3)", "()", "3 ** 8", "3 ^ 8", "3²", "8!", "1/0", "3 / (2 - 2)"],
        *["sqrt(9)", r"\sqrt{9}", "abs(3)", "F 3 8", "3 F 8", "1e3", "3..5", "3.5.1", "1" * 16, "__import__('os')"],
        *["(" * 200 + "1" + ")" * 200, "-" * 400 + "1", r"\frac" * 90, "1+" * 5000 + "1", "\x00", "\ud800", "3 // 2"],
    ],
)
def test_what_is_no_expression(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (GOLD, "8/(3-8/3)", True),
        (GOLD, "8/(3-8/3) = 24", True),
        (GOLD, "8/(3-8/3) = 8/(1/3) = 24", True),
        (GOLD, "24 = 8/(3-8/3)", True),
        (GOLD, "8/(3-8/3) = 25", False),
        (GOLD, "24", False),
        (GOLD, "3*8", False),
        (GOLD, "3*8 + 3 - 3", False),
        (GOLD, "3*8 + (8-8)*3", False),
        (GOLD, "3 * 8 + 0 * 38", False),
        (GOLD, "", False),
        ("24 from 3 3 8 8", "3*8", True),
        ("24 from 3 3 8 8", "3*8 + 8 - 8", False),
        ("27 from 30 79 60 76", "(60+(76-30))-79", True),
        ("27 from 30 79 60 76", "(60+(76-30))-80", False),
        ("0.5 from 1 2", "1/2", True),
        ("-1 from 1 2", "1 - 2", True),
    ],
)
def test_answers_are_checked(gold, answer, right):
    for task in ("countdown", "game24"):
        assert get_task(task).compare(gold, answer) is right
        assert get_task(task).grade(gold, answer) is right


def test_a_known_answer_must_be_a_game():
    for gold in ("24", "24 from", "24 from x", "", "from 1 2", "24 from 1 2 x"):
        with pytest.raises(TaskError, match="is no target with numbers; write it as '24 from all of 1 1 4 6'"):
            read_game(gold)
    for gold in ("24 from all of 1 1 4 6", "27 from 30 79", "-2 from 1.5 3.5"):
        assert str(read_game(gold)) == gold
    assert str(read_game("24 from  1, 1,4")) == "24 from 1 1 4"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4 * 6 = 24\nAnswer: (1 - 1) + 4 * 6 = 24", "(1 - 1) + 4 * 6 = 24"),
        ("Answer: (1 - 1) + 4 * 6 = \\boxed{24}", "(1 - 1) + 4 * 6 = 24"),
        ("so \\boxed{(1 - 1) + 4 \\times 6}", "(1 - 1) + 4 \\times 6"),
        ("The answer is **(1 - 1) + 4 * 6**.", "(1 - 1) + 4 * 6"),
        ("1 - 1 = 0 (left: 0 4 6)", None),
    ],
)
def test_answers_are_found(text, answer):
    assert find_expression(text) == answer


def test_votes_go_by_value_and_numbers():
    assert key("8/(3-8/3)") == key(" 8 / ( 3 - (8/3) ) = 24") == key(r"$\frac{8}{3-\frac{8}{3}}$") == "24 from 3 3 8 8"
    assert key("3 * 8") == key("8 * 3") != key("8/(3-8/3)")
    assert key("I do not know") == "i do not know"


NUMBERS = st.lists(st.integers(1, 100), min_size=1, max_size=6)


@given(NUMBERS, st.integers(0, 2**32))
def test_any_expression_of_the_numbers_is_right_for_its_value(numbers, seed):
    """Built at random, with its value computed beside it."""
    rng = random.Random(seed)
    parts = [(str(n), Fraction(n)) for n in numbers]
    while len(parts) > 1:
        (a, x), (b, y) = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        sign = rng.choice("+-*/" if y else "+-*")
        value = {"+": x + y, "-": x - y, "*": x * y}[sign] if sign != "/" else x / y
        parts.append((f"({a} {sign} {b})", value))
    text, value = parts[0]
    assert read_expression(text).value == value
    if value.denominator == 1:
        given_numbers = " ".join(map(str, numbers))
        assert get_task("game24").compare(f"{value} from all of {given_numbers}", text)
        assert get_task("countdown").compare(f"{value} from {given_numbers} 7", text)
        assert not get_task("game24").compare(f"{value} from all of {given_numbers} 7", text)
        assert not get_task("game24").compare(f"{value + 1} from all of {given_numbers}", text)


PIECES = [*"0123456789+-*/()[]{}= .x\\$F\x00\ud800×÷", "\\frac", "\\boxed{", "**"]


@given(st.lists(st.sampled_from(PIECES), max_size=80).map("".join))
@settings(max_examples=400, deadline=1000)
def test_no_text_breaks_the_check(text):
    assert get_task("countdown").compare("77777 from 3 5 8", text) is False
    assert isinstance(key(text), str)
    find_expression(text)


def test_long_texts_take_bounded_time():
    began = time.perf_counter()
    for piece in ("(", "1+", "-", "1 ", "\\frac", "=", "{", "=\\boxed{1", "9"):
        text = piece * (1_000_000 // len(piece))
        assert get_task("countdown").compare("24 from 3 8", text) is False
        key(text)
        find_expression(text)
    assert time.perf_counter() - began < 5


# ---------------------------------------------------------------- question sets


def load(tmp_path, rows, task):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path, task=task)


def test_rows_become_games(tmp_path):
    rows = [
        {"question": "1 1 4 6"},
        {"question": "Make 24 of [1, 2, 12, 1].", "answer": "24"},
        {"numbers": [5, 5, 5, 1], "solution": "5*(5-1/5)"},
        {"question": "Which?", "answer": "10 from all of 1 2 3 4"},
    ]
    first, second, third, fourth = load(tmp_path, rows, "game24")
    assert first.answer == "24 from all of 1 1 4 6"
    assert first.question == "Use the numbers 1, 1, 4 and 6, each exactly once, with + - * / and brackets to make 24."
    assert (second.question, second.answer) == (rows[1]["question"], "24 from all of 1 2 12 1")
    assert (third.answer, third.solution) == ("24 from all of 5 5 5 1", "Answer: 5*(5-1/5)")
    assert fourth.answer == rows[3]["answer"]
    (fifth,) = load(tmp_path, [{"nums": [44, 19, 35], "target": 98}], "countdown")
    assert fifth.question == "Use the numbers 44, 19 and 35, each at most once, with + - * / and brackets to make 98."
    assert (fifth.answer, fifth.task, fifth.extra) == ("98 from 44 19 35", "countdown", {"nums": [44, 19, 35]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Reach it.", "answer": "7"}, r"set\.jsonl:1: no numbers; give them in the column `numbers`"),
        ({"question": "Use [1, 2]."}, r"set\.jsonl:1: no target; give one"),
        ({"question": "Use [1, 2].", "answer": "x"}, r"set\.jsonl:1: the target is 'x'; give a number"),
        ({"numbers": "one two", "target": 3}, r"set\.jsonl:1: no numbers"),
    ],
)
def test_rows_without_a_game_are_refused(tmp_path, row, message):
    with pytest.raises(TaskError, match=message):
        load(tmp_path, [row], "countdown")


def test_a_stored_tree_can_be_graded_again(tmp_path):
    (problem,) = load(tmp_path, [{"nums": [3, 5, 8], "target": 9}], "countdown")
    stored = Tree.from_record(json.loads(json.dumps(Tree(problem, "cot", 0).to_record()))).problem
    assert get_task(stored.task).grade(stored.answer, "3 * (8 - 5)")
    assert not get_task(stored.task).grade(stored.answer, "3 * 3")


@pytest.mark.parametrize(("name", "count"), [("countdown", 1500), ("game24", 1362)])
def test_public_games(shared_data, name, count):
    problems = load_problems(shared_data / f"{name}.jsonl", task=name)
    task = get_task(name)
    assert len(problems) == count
    for problem in problems:
        assert " from all of " in problem.answer
        stated = task.find_answer(problem.solution)
        assert task.compare(problem.answer, stated)
        assert not task.compare(problem.answer, stated + " + 1 - 1")
        assert not task.compare(problem.answer, stated + " + 1")
