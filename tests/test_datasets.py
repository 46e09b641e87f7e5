"""Trees, verified and labelled, become rows: nothing twice, nothing lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.datasets import (
    PolicyRow,
    TreeLabels,
    ValueRow,
    label_trees,
    policy_rows,
    read_rows,
    value_rows,
    verify,
    write_rows,
)
from restmcts.errors import StoreError, TaskError
from restmcts.types import Problem, Step, Tree


class CountingGrader:
    """Right is what equals the oracle; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def grade_many(self, pairs: list[tuple[Problem, str]]) -> list[bool]:
        self.asked += [(problem.id, answer) for problem, answer in pairs]
        return [problem.answer == answer for problem, answer in pairs]


def small_tree(problem_id: str = "p", answer: str | None = "7") -> Tree:
    """root ── 1 "a" ─┬─ 2 "x" (7, right)          root ── 5 "b" ── 6 "z" (8, wrong)
    ................. ├─ 3 "y" (8, wrong)
    ................. └─ 4 "w" (open)"""
    tree = Tree(Problem(problem_id, "q?", answer), "mcts_star", 0, models={"tokenizer": "t"})
    a = tree.add(0, Step("a", (1, 2)))
    for text, found in (("x", "7"), ("y", "8")):
        tree.add(a, Step(text, (3,)), status="finished", answer=found)
    tree.add(a, Step("w"))
    b = tree.add(0, Step("b"))
    tree.add(b, Step("z"), status="finished", answer="8")
    tree.raw_value[2] = 0.6
    return tree


def labels_of(tree: Tree, correct: list[bool | None]) -> TreeLabels:
    """Labels on every node above or at a verified leaf; v tells the nodes apart."""
    labelled = {node for leaf, c in enumerate(correct) if c is not None for node in [0, *tree.nodes_to(leaf)]}
    v = [n / len(tree) if n in labelled else None for n in range(len(tree))]
    r = [0.0 if n in labelled else None for n in range(len(tree))]
    return TreeLabels(tree.problem.id, correct, list(v), r, list(v), v)


# ---------------------------------------------------------------- verify, label


def test_verify_marks_finished_leaves_only() -> None:
    assert verify([small_tree()], CountingGrader()) == [[None, None, True, False, None, None, False]]


def test_verify_grades_each_answer_once_per_problem() -> None:
    grader = CountingGrader()
    verify([small_tree("p"), small_tree("p"), small_tree("q")], grader)
    assert sorted(grader.asked) == [("p", "7"), ("p", "8"), ("q", "7"), ("q", "8")]


def test_verify_needs_the_answer() -> None:
    with pytest.raises(TaskError, match="'p' has no answer"):
        verify([small_tree(answer=None)], CountingGrader())


def test_labels_of_an_unsolved_tree_are_valid_json(tmp_path: Path) -> None:
    tree = small_tree(answer="9")
    records = label_trees([tree], verify([tree], CountingGrader()))
    write_rows(tmp_path / "labels.jsonl", records)  # m is infinite there, which JSON cannot say
    assert "Infinity" not in (tmp_path / "labels.jsonl").read_text()
    [record] = read_rows(tmp_path / "labels.jsonl", TreeLabels)
    assert record.m[1] is None
    assert record.r[1] == 1.0


def test_label_trees_makes_plain_records() -> None:
    pytest.importorskip("restmcts.rewards")
    tree = small_tree()
    [record] = label_trees([tree], verify([tree], CountingGrader()))
    assert record.v == [0.0, 0.5, 1.0, pytest.approx(0.25), None, 0.0, 0.0]
    assert record.v[4] is record.m[4] is record.r[4] is record.w[4] is None
    assert TreeLabels.from_record(record.to_record()) == record


# ---------------------------------------------------------------- policy rows


def test_policy_rows_are_the_correct_traces() -> None:
    tree = small_tree()
    rows = policy_rows([tree], [labels_of(tree, [None, None, True, False, None, None, False])], round=3)
    expected = PolicyRow("p", "q?", ["a", "x"], [[1, 2], [3]], "t", value=0.6, round=3)
    assert rows == [expected]


def many(values: list[float | None], steps: list[list[str]] | None = None) -> tuple[list[Tree], list[TreeLabels]]:
    """One tree of one problem with a right leaf per value."""
    tree = Tree(Problem("p", "q?", "7"), "sample", 0)
    for i, value in enumerate(values):
        node = 0
        texts = steps[i] if steps else [f"s{i}"]
        for text in texts:
            node = tree.add(node, Step(text))
        tree.status[node], tree.answer[node], tree.raw_value[node] = "finished", "7", value
    correct = [True if status == "finished" else None for status in tree.status]
    return [tree], [labels_of(tree, correct)]


def test_policy_rows_drop_duplicates() -> None:
    rows = policy_rows(*many([0.1, 0.9, 0.5], [["a", "b"], ["a ", " b"], ["a", "c"]]))
    assert [row.steps for row in rows] == [["a", "c"], ["a", "b"]]


def test_policy_rows_keep_the_highest_valued_and_the_shorter_among_equals() -> None:
    trees, labels = many([0.2, None, 0.8, 0.8, 0.9], [["a"], ["b"], ["c", "d"], ["e"], ["f"]])
    rows = policy_rows(trees, labels, traces_per_question=4)
    assert [row.steps[0] for row in rows] == ["f", "e", "c", "a"]


def test_random_pick_depends_on_seed_and_question_alone() -> None:
    trees, labels = many([0.5] * 20)
    other = small_tree("other")
    picks = {seed: policy_rows(trees, labels, traces_per_question=3, pick="random", seed=seed) for seed in range(6)}
    assert all(len(rows) == 3 for rows in picks.values())
    assert len({tuple(row.steps[0] for row in rows) for rows in picks.values()}) > 1
    with_other = policy_rows(
        [other, *trees], [labels_of(other, [None] * 7), *labels], traces_per_question=3, pick="random", seed=2
    )
    assert with_other == picks[2]


def test_labels_must_fit_their_trees() -> None:
    tree = small_tree()
    labels = labels_of(tree, [None] * 7)
    with pytest.raises(StoreError, match="1 label records for 2 trees"):
        policy_rows([tree, tree], [labels])
    with pytest.raises(StoreError, match="do not fit the tree of 'q'"):
        value_rows([small_tree("q")], [labels])


# ---------------------------------------------------------------- value rows


@st.composite
def verified_trees(draw: st.DrawFn) -> tuple[Tree, TreeLabels]:
    size = draw(st.integers(1, 30))
    tree = Tree(Problem(draw(st.sampled_from("pq")), "q?", "7"), "mcts_star", 0)
    for node in range(1, size):
        tree.add(draw(st.integers(0, node - 1)), Step(f"n{node}"))
    inner = set(tree.parent)
    leaves = [n for n in range(1, size) if n not in inner]
    correct: list[bool | None] = [None] * size
    for leaf in leaves:
        correct[leaf] = draw(st.sampled_from([True, False, None]))
    return tree, labels_of(tree, correct)


@given(st.lists(verified_trees(), max_size=4))
def test_every_labelled_node_is_trained_exactly_once(pairs: list[tuple[Tree, TreeLabels]]) -> None:
    trees, labels = [t for t, _ in pairs], [x for _, x in pairs]
    wanted = sorted(
        (tree.problem.id, tree.text[n], v)
        for tree, record in pairs
        for n, v in enumerate(record.v)
        if n > 0 and v is not None
    )
    rows = value_rows(trees, labels)
    trained = sorted(
        (row.problem_id, text, label)
        for row in rows
        for text, label in zip(row.steps, row.labels, strict=True)
        if label is not None
    )
    assert trained == wanted
    assert len(rows) == sum(c is not None for record in labels for c in record.correct)
    assert all((r is None) == (v is None) for row in rows for r, v in zip(row.r, row.labels, strict=True))


@given(st.lists(verified_trees(), max_size=3), st.integers(1, 4), st.integers(0, 3))
def test_a_cap_is_kept_and_trains_nothing_twice(pairs: list[tuple[Tree, TreeLabels]], cap: int, seed: int) -> None:
    trees, labels = [t for t, _ in pairs], [x for _, x in pairs]
    rows = value_rows(trees, labels, traces_per_question=cap, seed=seed)
    everything = value_rows(trees, labels)
    for problem_id in "pq":
        ours = [row for row in rows if row.problem_id == problem_id]
        assert len(ours) == min(cap, sum(row.problem_id == problem_id for row in everything))
    for row in rows:
        assert row.labels[-1] is not None
    assert rows == value_rows(trees, labels, traces_per_question=cap, seed=seed)


def test_a_cap_keeps_right_and_wrong_leaves_in_balance() -> None:
    tree = Tree(Problem("p", "q?", "7"), "sample", 0)
    for i in range(20):
        tree.add(0, Step(f"s{i}"), status="finished", answer="7" if i in (3, 11) else "8")
    record = labels_of(tree, [None] + [i in (3, 11) for i in range(20)])
    for seed in range(5):
        rows = value_rows([tree], [record], traces_per_question=6, seed=seed)
        texts = {row.steps[0] for row in rows}
        assert len(texts) == 6
        assert texts >= {"s3", "s11"}


# ---------------------------------------------------------------- rows as records


def test_rows_round_trip_through_json_lines(tmp_path: Path) -> None:
    rows = [
        ValueRow("p", "q ü\u2028?", ["a", "b"], [[1, 2], None], "t", labels=[None, 0.1 + 0.2], r=[None, 1.0]),
        ValueRow("q", "?", [], [], None, labels=[], r=[]),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", ValueRow) == rows


@pytest.mark.parametrize("line", ["{", "[]", '{"problem_id": "p"}', "3"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = PolicyRow("p", "?", ["a"], [None], None)
    write_rows(path, [good])
    path.write_text(path.read_text(encoding="utf-8") + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(StoreError, match=r"rows\.jsonl, line 3: "):
        read_rows(path, PolicyRow)


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        read_rows(tmp_path / "none.jsonl", PolicyRow)


def test_token_ids_of_another_vocabulary_are_left_out() -> None:
    row = PolicyRow("p", "?", ["a", "b"], [[1], None], "t")
    assert row.path("t") == (Step("a", (1,)), Step("b"))
    assert row.path("u") == row.path(None) == (Step("a"), Step("b"))
    assert PolicyRow("p", "?", ["a"], [[1]], None).path(None) == (Step("a"),)


def test_labels_of_a_large_forest_are_quick() -> None:
    rng = random.Random(0)
    tree = Tree(Problem("p", "q?", "7"), "mcts_star", 0)
    for node in range(1, 20_000):
        tree.add(rng.randrange(max(0, node - 50), node), Step("s"))
    inner = set(tree.parent)
    record = labels_of(tree, [None if n in inner else True for n in range(len(tree))])
    assert value_rows([tree], [record], traces_per_question=16)
