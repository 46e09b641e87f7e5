"""Trees as flat records."""

from __future__ import annotations

import json

import pytest

from restmcts.types import Problem, Step, Tree, Usage


def small_tree() -> Tree:
    """question → a → Answer: 7, and question → b."""
    tree = Tree(Problem("p", "What is 3 + 4?", "7", solution="3 + 4 = 7"), "cot", seed=2**62 + 1)
    a = tree.add(0, Step("a", (5, 6)))
    tree.add(0, Step("b"), status="dead", reason="ended")
    tree.result = tree.add(a, Step("Answer: 7"), status="finished", answer="7", origin="rollout", iteration=2)
    tree.final_answer, tree.stop = "7", "threshold"
    tree.raw_value[a] = 0.5
    tree.usage = Usage(policy_tokens=9, seconds=0.25)
    return tree


def test_paths_and_leaves():
    tree = small_tree()
    assert len(tree) == 4
    assert tree.nodes_to(0) == []
    assert tree.nodes_to(3) == [1, 3]
    assert tree.path(3) == (Step("a", (5, 6)), Step("Answer: 7"))
    assert tree.path(0) == ()
    assert tree.finished() == [3]
    assert (tree.copies, tree.visits) == ([1] * 4, [0] * 4)
    assert tree.raw_value == [None, 0.5, None, None]  # absent is None, never 0


def test_a_record_survives_json():
    tree = small_tree()
    again = Tree.from_record(json.loads(json.dumps(tree.to_record())))
    assert again == tree
    assert again.seed == 2**62 + 1
    assert again.to_record() == tree.to_record()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"visits": [0]}, "visits has 1 entries, not 4"),
        ({"parent": [-1, 0, 0, 3]}, "node 3 has parent 3"),
        ({"parent": [0, 0, 0, 1]}, "node 0 must be the root"),
    ],
)
def test_records_that_are_no_trees(change, message):
    with pytest.raises(ValueError, match=message):
        Tree.from_record(small_tree().to_record() | change)


def test_a_record_that_lacks_something():
    record = small_tree().to_record()
    del record["stop"], record["ids"]
    with pytest.raises(ValueError, match="lacks ids, stop"):
        Tree.from_record(record)


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4, 5, 0.5) + Usage(10, 20, 30, 40, 50, 0.25) == Usage(11, 22, 33, 44, 55, 0.75)
    assert sum([Usage(policy_tokens=1)] * 3, Usage()) == Usage(policy_tokens=3)
