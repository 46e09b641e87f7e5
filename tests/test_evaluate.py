"""Scored rows, resumed evaluations, and what the value model is measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from restmcts.account import Account
from restmcts.engines import Engines
from restmcts.errors import StoreError
from restmcts.evaluate import ROWS, TREES, Evaluation, evaluate, read_rows, spent_on, value_points
from restmcts.livegrader import LiveGrader
from restmcts.search import SearchSettings
from restmcts.store import read_jsonl
from restmcts.tasks.grade import Grader
from restmcts.types import Budget, Problem, Step, Tree
from tests.adder import Adder, problem

PROBLEMS = [problem(i) for i in range(8)]
SETTINGS = SearchSettings(method="mcts_star", iterations=8, branch=3, widening=0, rollout_steps=0)


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


def adder(skill: float = 0.6) -> Engines:
    engine = Adder(skill)
    return Engines(engine, engine)


def test_rows_say_what_happened(grader: Grader):
    seen = []
    result = evaluate(
        PROBLEMS, "mcts_star", SETTINGS, adder(), grader=grader, on_tree=lambda tree, right: seen.append((tree, right))
    )
    assert [row.id for row in result.rows] == [p.id for p in PROBLEMS]
    for row, p in zip(result.rows, PROBLEMS, strict=True):
        assert row.correct == (row.answer == p.answer)
        assert row.policy_tokens > 0
        assert row.nodes > 1
        assert row.finished >= (row.answer is not None)
    assert result.accuracy == sum(row.correct for row in result.rows) / 8
    assert result.interval.low < result.accuracy < result.interval.high or result.accuracy in (0, 1)
    assert {tree.problem.id: right for tree, right in seen} == {row.id: row.correct for row in result.rows}
    summary = result.summary()
    assert summary["usage"]["policy_tokens"] == sum(row.policy_tokens for row in result.rows)
    assert summary["quality"]["nodes"] > 8
    assert summary["quality"]["auc"] > 0.9  # the adder scores right steps above wrong ones


def test_a_skilled_policy_scores_higher(grader: Grader):
    greedy = SETTINGS.model_copy(update={"method": "cot", "temperature": 0.0})
    low, high = (evaluate(PROBLEMS, "cot", greedy, adder(s), grader=grader).accuracy for s in (0.3, 1.0))
    assert high == 1.0
    assert low < 1.0
    result = evaluate(PROBLEMS, "cot", greedy, Engines(Adder(1.0)), grader=grader)
    assert result.quality is None
    assert evaluate([], "cot", greedy, adder(), grader=grader).accuracy is None


def test_a_problem_that_is_done_is_not_searched_again(grader: Grader, tmp_path: Path):
    straight = evaluate(PROBLEMS, "mcts_star", SETTINGS, adder(), grader=grader, folder=tmp_path / "a", concurrency=1)
    cut = Adder(0.6, interrupt_after=12)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            PROBLEMS, "mcts_star", SETTINGS, Engines(cut, cut), grader=grader, folder=tmp_path / "b", concurrency=1
        )
    done = len(list(read_jsonl(tmp_path / "b" / TREES)))
    assert 0 < done < 8
    with (tmp_path / "b" / TREES).open("a", encoding="utf-8") as file:
        file.write('{"schema": 1, "id": "sum-')  # torn by a crash
    resumed = evaluate(PROBLEMS, "mcts_star", SETTINGS, adder(), grader=grader, folder=tmp_path / "b", concurrency=1)
    for old, new in zip(straight.rows, resumed.rows, strict=True):
        assert old.__replace__(seconds=0) == new.__replace__(seconds=0) if hasattr(old, "__replace__") else True
        assert (old.id, old.answer, old.correct, old.nodes) == (new.id, new.answer, new.correct, new.nodes)
    assert len(list(read_jsonl(tmp_path / "b" / TREES))) == 8
    assert read_rows(tmp_path / "b" / ROWS) == resumed.rows
    nobody = Adder(0.6, interrupt_after=0)
    again = evaluate(PROBLEMS, "mcts_star", SETTINGS, Engines(nobody, nobody), grader=grader, folder=tmp_path / "b")
    assert again.rows == resumed.rows


def test_a_stage_cut_short_goes_on_when_its_budget_is_raised(grader: Grader, tmp_path: Path):
    """In the end everything is as if the larger budget had been there from the start."""

    def measure(folder: Path, tokens: int | None) -> tuple[Evaluation, Account]:
        account = Account(Budget(policy_tokens=tokens), earlier=spent_on(folder / TREES))
        found = evaluate(
            PROBLEMS, "mcts_star", SETTINGS, adder(), grader=grader, folder=folder, concurrency=3, account=account
        )
        return found, account

    whole, _ = measure(tmp_path / "a", None)
    half, account = measure(tmp_path / "b", whole.usage.policy_tokens // 2)
    assert 0 < half.n < 8
    assert half.owed == half.summary()["owed"] > 8 - half.n
    assert any(row.stop == "stage_budget" for row in half.rows)
    again, _ = measure(tmp_path / "b", whole.usage.policy_tokens // 2)  # not raised: nothing is asked or lost
    assert again.rows == half.rows
    result, more = measure(tmp_path / "b", 10**6)
    assert (result.owed, "owed" in result.summary()) == (0, False)
    assert [dataclasses.replace(row, seconds=0) for row in result.rows] == [
        dataclasses.replace(row, seconds=0) for row in whole.rows
    ]
    # What was spent on trees that were cut off is not forgotten.
    spent = spent_on(tmp_path / "b" / TREES).policy_tokens
    assert spent == account.count.policy_tokens + more.count.policy_tokens > whole.usage.policy_tokens


def test_trees_of_other_questions_are_refused(grader: Grader, tmp_path: Path):
    evaluate(PROBLEMS[:1], "mcts_star", SETTINGS, adder(), grader=grader, folder=tmp_path)
    other = Problem("sum-0", "What is 1 + 1 + 1?", "3")
    with pytest.raises(StoreError, match="another question"):
        evaluate([other], "mcts_star", SETTINGS, adder(), grader=grader, folder=tmp_path)
    (tmp_path / TREES).write_text('{"schema": 7}\n', encoding="utf-8")
    with pytest.raises(StoreError, match="schema 7"):
        evaluate(PROBLEMS[:1], "mcts_star", SETTINGS, adder(), grader=grader, folder=tmp_path)


def test_value_points_leave_out_what_is_not_known():
    tree = Tree(Problem("p", "q", "1"), "mcts_star", 0)
    good = tree.add(0, Step("a"))
    bad = tree.add(0, Step("b"), status="finished", answer="2")
    leaf = tree.add(good, Step("c"), status="finished", answer="1")
    tree.add(good, Step("open"))
    unscored = tree.add(good, Step("d"), status="finished", answer="1")
    for node, value in ((good, 0.7), (bad, 0.4), (leaf, 0.9), (4, 0.5)):
        tree.raw_value[node] = value
    flags = [None, None, False, True, None, True]
    points = value_points([tree], [flags])
    assert unscored == 5
    assert points.predicted == [0.7, 0.4, 0.9]
    assert points.right == [True, False, True]
    assert points.correct == [None, False, True]
    assert points.depth == [1, 1, 2]
    assert points.value == pytest.approx([0.5, 0.0, 1.0])


def test_an_error_of_the_grader_is_not_swallowed():
    class Broken:
        def grade_many(self, pairs):
            raise StoreError("no worker")

    tree = Tree(Problem("p", "q", "1"), "cot", 0, final_answer="1")
    with pytest.raises(StoreError, match="no worker"), LiveGrader(Broken(), lambda *_: None) as live:
        live.add(tree)
    with pytest.raises(ValueError, match="first"), LiveGrader(Broken(), lambda *_: None):
        raise ValueError("first")


def test_rows_of_something_else_are_refused(tmp_path: Path):
    path = tmp_path / ROWS
    path.write_text('{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(StoreError, match="no evaluation rows"):
        read_rows(path)
