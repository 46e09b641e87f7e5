"""Worked solutions as training rows: D_S0 and D_V0."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.datasets import worked_policy_rows, worked_value_rows
from restmcts.errors import TaskError
from restmcts.types import Problem
from restmcts.worked import perturb, worked_steps, wrong_step_value, wrong_values

SOLUTION = "Step 1: 12 + 3 = 15\n\nStep 2: 15 * 2 = 30\nAnswer: 30\n"
PROBLEM = Problem("p", "What is (12 + 3) * 2?", "30", SOLUTION)
STEPS = ["Step 1: 12 + 3 = 15", "Step 2: 15 * 2 = 30", "Answer: 30"]


def find_answer(text: str) -> str | None:
    return text.removeprefix("Answer: ") if text.startswith("Answer: ") else None


def test_steps_are_the_lines_of_the_solution() -> None:
    assert worked_steps(PROBLEM) == STEPS


def test_a_solution_without_an_answer_line_gets_one() -> None:
    short = Problem("p", "?", "30", "15 * 2 = 30")
    assert worked_steps(short, find_answer) == ["15 * 2 = 30", "Answer: 30"]
    assert worked_steps(PROBLEM, find_answer) == STEPS


@pytest.mark.parametrize("solution", [None, "", " \n "])
def test_a_problem_without_a_solution_is_refused(solution: str | None) -> None:
    with pytest.raises(TaskError, match="'p' has no worked solution"):
        worked_policy_rows([Problem("p", "?", "30", solution)])


def test_a_solution_that_cannot_be_closed_is_refused() -> None:
    with pytest.raises(TaskError, match="states no answer"):
        worked_steps(Problem("p", "?", None, "15 * 2 = 30"), find_answer)


def test_policy_rows_hold_the_steps_as_text() -> None:
    [row] = worked_policy_rows([PROBLEM])
    assert (row.steps, row.step_ids, row.tokenizer, row.value, row.round) == (STEPS, [None] * 3, None, None, 0)


# ---------------------------------------------------------------- values


@given(st.integers(1, 40).flatmap(lambda total: st.tuples(st.integers(0, total - 1), st.just(total))))
def test_a_wrong_step_has_the_value_of_equations_1_and_2(case: tuple[int, int]) -> None:
    k, total = case
    v, m = k / total, total - k  # after k right steps; rule 5: a wrong step keeps its parent's distance
    expected = max(v + (1 - v) / (m + 1) * (1 - 2 * 1), 0)
    assert wrong_step_value(k, total) == pytest.approx(expected, abs=1e-12)
    values = wrong_values(k, total, 6)
    assert all(b is not None and a is not None and 0 <= b <= a < 1 for a, b in pairwise(values))


def test_values_by_hand() -> None:
    # K = 4, two right steps, then wrong: w = -(2) / (3 * 4) = -1/6, v = 1/2 - 1/6; again: w = -(2/3) / 3
    assert wrong_values(2, 4, 2) == [pytest.approx(1 / 3), pytest.approx(1 / 3 - 2 / 9)]
    assert wrong_values(0, 1, 1) == [0.0]


def test_the_true_solution_climbs_to_one() -> None:
    first = worked_value_rows([PROBLEM], corruptions=0)[0]
    assert first.steps == STEPS
    assert first.labels == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert first.r == [0.0, 0.0, 0.0]


def test_wrong_turns_share_the_prefix_unlabelled_and_are_wrong_after_it() -> None:
    rows = worked_value_rows([PROBLEM], corruptions=6, seed=1)
    assert len(rows) > 4
    assert len({tuple(row.steps) for row in rows}) == len(rows)
    for row in rows[1:]:
        k = row.labels.count(None)
        assert row.steps[:k] == STEPS[:k]
        assert row.steps[k] != STEPS[k]
        assert row.labels[:k] == row.r[:k] == [None] * k
        assert row.labels[k:] == wrong_values(k, 3, len(row.steps) - k)
        assert set(row.r[k:]) == {1.0}
        assert row.steps[k].startswith(STEPS[k].split(":")[0] + ":")  # the step's name is not one of its numbers
        if len(row.steps) > k + 1:
            assert row.steps[-1] != "Answer: 30"  # what goes on goes wrong


def test_a_slip_that_does_not_reach_the_answer_ends_the_row() -> None:
    rows = worked_value_rows([Problem("p", "?", "9", "2 + 3 = 5\n4 + 5 = 9\nAnswer: 9")], corruptions=30)
    assert any(len(row.steps) == 1 for row in rows)
    assert all(row.steps[-1] != "Answer: 9" for row in rows[1:])


def test_steps_without_numbers_are_replaced_by_another_problems() -> None:
    words = [
        Problem("a", "?", "yes", "All cats purr.\nAnswer: yes"),
        Problem("b", "?", "no", "No dog does.\nAnswer: no"),
    ]
    rows = worked_value_rows(words, corruptions=4)
    wrong = [row for row in rows if 1.0 in row.r]
    assert wrong
    foreign = {"a": {"No dog does.", "Answer: no"}, "b": {"All cats purr.", "Answer: yes"}}
    assert all(row.steps[-1] in foreign[row.problem_id] for row in wrong)
    assert len(worked_value_rows(words[:1])) == 1


def test_rows_depend_on_seed_and_problem_alone() -> None:
    other = Problem("o", "?", "4", "2 + 2 = 4\nAnswer: 4")
    alone = worked_value_rows([PROBLEM], seed=5)
    assert [row for row in worked_value_rows([other, PROBLEM], seed=5) if row.problem_id == "p"] == alone
    assert any(worked_value_rows([PROBLEM], seed=seed) != alone for seed in range(6, 10))


@given(st.from_regex(r"(0|[1-9]\d{0,5}|[1-9]\d{0,2}(,\d{3}){1,2})(\.\d{1,3})?", fullmatch=True), st.integers(0, 10**6))
def test_perturbed_numbers_are_other_numbers_of_the_same_form(number: str, seed: int) -> None:
    changed = perturb(number, random.Random(seed))
    assert float(changed.replace(",", "")) != float(number.replace(",", ""))
    assert not (len(changed) > 1 and changed[0] == "0" and changed[1].isdigit())
    assert len(changed.partition(".")[2]) == len(number.partition(".")[2])
    assert not changed.startswith(("-", ","))
