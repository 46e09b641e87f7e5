"""Pairs of steps and of solutions, verdicts without known answers, and the judge's points: on trees small enough to do
by hand."""

from __future__ import annotations

import pytest

from restmcts.datasets import label_trees
from restmcts.pairs import solution_pairs, step_pairs
from restmcts.pseudo import by_judge, by_majority, one_for_each_answer, quality
from restmcts.rows import PreferenceRow
from restmcts.tasks import get_task
from restmcts.tasks.judge import RUBRIC, judge_problem, mean_score
from restmcts.types import Problem, Step, Tree


def tree_of(problem_id: str = "p") -> Tree:
    """root ─┬─ 1 "a" ─┬─ 2 "Answer: 7" (V 0.9, twice)
    ........ │         └─ 3 "Answer: 8" (V 0.3)
    ........ ├─ 4 "b" ─── 5 "Answer: 8" (V 0.6)
    ........ └─ 6 "c" (open, V 0.8)"""
    tree = Tree(Problem(problem_id, "What is 3 + 4?", "7"), "mcts_star", 0, models={"tokenizer": "t"})
    a = tree.add(0, Step("a", (1,)))
    tree.add(a, Step("Answer: 7", (2,)), status="finished", answer="7")
    tree.add(a, Step("Answer: 8", (3,)), status="finished", answer="8")
    b = tree.add(0, Step("b", (4,)))
    tree.add(b, Step("Answer: 8", (3,)), status="finished", answer="8")
    tree.add(0, Step("c", (5,)))
    tree.raw_value = [None, 0.7, 0.9, 0.3, 0.4, 0.6, 0.8]
    tree.copies[2] = 2
    return tree


def test_siblings_make_pairs_by_their_inferred_value():
    tree = tree_of()
    labels = label_trees([tree], [[None, None, True, False, None, False, None]])
    assert labels[0].v == [0.0, 0.5, 1.0, 0.25, 0.0, 0.0, None]
    pairs = step_pairs([tree], labels, margin=0.1, round=3)
    assert [(pair.steps, pair.chosen, pair.rejected) for pair in pairs] == [
        ([], ["a"], ["b"]),  # "c" never finished: there is nothing to say of it
        (["a"], ["Answer: 7"], ["Answer: 8"]),
    ]
    first, second = pairs
    assert (first.chosen_ends, first.rejected_ends, second.chosen_ends, second.rejected_ends) == (
        False,
        False,
        True,
        True,
    )
    assert (second.step_ids, second.chosen_ids, second.rejected_ids) == ([[1]], [[2]], [[3]])
    assert (second.chosen_value, second.rejected_value, second.round) == (1.0, 0.25, 3)
    assert [len(step_pairs([tree], labels, margin=margin)) for margin in (0.5, 0.6, 0.8)] == [2, 1, 0]
    other = tree_of("q")
    both = labels + label_trees([other], [labels[0].correct])
    capped = step_pairs([tree, other], both, margin=0.1, pairs_per_question=1)
    assert [pair.problem_id for pair in capped] == ["p", "q"]


def test_the_most_tempting_of_the_worse_siblings_is_rejected():
    tree = Tree(Problem("p", "?", "1"), "mcts_star", 0)
    for answer, value in (("1", 0.5), ("2", 0.1), ("3", 0.9), ("4", None)):
        node = tree.add(0, Step(f"Answer: {answer}"), status="finished", answer=answer)
        tree.raw_value[node] = value
    [pair] = step_pairs([tree], label_trees([tree], [[None, True, False, False, False]]), margin=0.1)
    assert (pair.chosen, pair.rejected) == (["Answer: 1"], ["Answer: 3"])


def test_solutions_make_pairs_best_before_worst():
    tree = tree_of()
    scores = {("p", 2): 1.0, ("p", 3): 0.4, ("p", 5): 0.6, ("q", 5): 0.0}
    [pair] = solution_pairs([tree], scores, margin=0.1)
    assert (pair.steps, pair.chosen, pair.rejected) == ([], ["a", "Answer: 7"], ["a", "Answer: 8"])
    assert (pair.chosen_value, pair.rejected_value) == (1.0, 0.4)
    assert pair.path("t") == ()
    assert pair.sides("t")[0] == (Step("a", (1,)), Step("Answer: 7", (2,)))
    assert pair.sides("another vocabulary")[0] == (Step("a"), Step("Answer: 7"))
    assert PreferenceRow.from_record(pair.to_record()) == pair
    assert solution_pairs([tree], {("p", 2): 0.6, ("p", 3): 0.6}, margin=0.0) == []
    assert solution_pairs([tree], {("p", 2): 0.6, ("p", 3): 0.55}, margin=0.1) == []
    assert solution_pairs([tree], {("p", 2): 0.6}, margin=0.0) == []


# ---------------------------------------------------------------- without known answers


def test_the_majority_is_weighed_by_value():
    tree = tree_of()  # "7": 2 × 0.9; "8": 0.3 + 0.6
    right = [None, None, True, False, None, False, None]
    assert by_majority(tree, 0.5) == right
    assert by_majority(tree, 1.8 / 2.7 - 1e-9) == right
    assert by_majority(tree, 0.67) == [None] * 7
    tree.raw_value[2] = 0.2
    assert by_majority(tree, 0.5) == [None, None, False, True, None, True, None]
    assert by_majority(Tree(Problem("p", "?"), "cot", 0), 0.0) == [None]


def test_a_judge_decides_answer_by_answer():
    tree = tree_of()
    assert one_for_each_answer(tree) == [2, 5]
    assert by_judge(tree, {("p", 2): 0.4, ("p", 5): 0.8}, 0.6) == [None, None, False, True, None, True, None]
    assert by_judge(tree, {("p", 5): 0.2}, 0.6) == [None, None, None, False, None, False, None]


def test_how_good_verdicts_are():
    true = [[None, True, False], [None, True, False], [None, None, False], [None]]
    made: list[list[bool | None]] = [[None, True, True], [None, False, None], [None, None, None], [None]]
    assert quality(made, true) == {
        "leaves": 3,
        "covered": 2 / 3,
        "precision": 1 / 2,
        "recall": 1 / 2,
        "agreement": 1 / 3,
        "questions": 1.0,
    }
    assert quality([], [])["precision"] is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 4", "4"),
        ("**Score: 0**", "0"),
        (" score = 5/5.", "5"),
        ("Score: 6", None),
        ("Score: 10", None),
        ("Score: 4.5", None),
        ("Score: four", None),
        ("The score: 4", None),
        ("Score: 4 because it is right", None),
        ("4", None),
    ],
)
def test_only_a_score_is_a_score(text: str, score: str | None):
    assert get_task("judge").find_answer(text) == score


def test_the_votes_of_a_judge_are_averaged():
    problem = judge_problem(Problem("p", "What is 3 + 4?", "7"), ["3 + 4 = 7", "Answer: 7"], "5")
    assert (problem.id, problem.answer, problem.instruction) == ("p#5", None, RUBRIC)
    assert "What is 3 + 4?" in problem.question
    assert "3 + 4 = 7\nAnswer: 7" in problem.question
    tree = Tree(problem, "sample", 0)
    assert mean_score(tree) is None
    tree.add(0, Step("hm"), status="dead", reason="ended")
    assert mean_score(tree) is None
    tree.copies[tree.add(0, Step("Score: 5"), status="finished", answer="5")] = 2
    tree.add(0, Step("Score: 2"), status="finished", answer="2")
    assert mean_score(tree) == pytest.approx((5 + 5 + 2) / 15)
