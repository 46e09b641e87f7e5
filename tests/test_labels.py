"""Labelling rules: each on a tree worked out by hand, what they have in common, and what they cannot label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.datasets import label_trees, value_rows
from restmcts.errors import ConfigError
from restmcts.labels import RULES, get_rule, orm
from restmcts.rewards import process_rewards
from restmcts.search.completions import COMPLETED, completions_of, drawn, own_chains
from restmcts.search.nodes import COMPLETION
from restmcts.types import Problem, Step, Tree
from tests.playing import ANY

NAN = math.nan
Verdicts = list[bool | None]


def grow(*nodes: tuple[int, str, int], method: str = "mcts_star", **completed: Any) -> tuple[Tree, Verdicts]:
    """A tree of (parent, fate, copies), its nodes counted from 1, and what its leaves are.

    Fates: "step", "right", "wrong", "dead"; with a + before it, it belongs to a completion.
    """
    tree = Tree(Problem("p", "q?", "7"), method, 0)
    if completed:
        tree.settings[COMPLETED] = {"samples": 2, "own": False, **completed}
    correct: Verdicts = [None]
    for number, (parent, fate, copies) in enumerate(nodes, start=1):
        kind = fate.removeprefix("+")
        answer = {"right": "7", "wrong": "8"}.get(kind)
        status: Any = "finished" if answer else "dead" if kind == "dead" else "open"
        origin = COMPLETION if fate[0] == "+" else "sample" if method == "sample" else "expand"
        tree.add(parent, Step(f"s{number}"), status=status, answer=answer, origin=origin)
        tree.copies[-1] = copies
        correct.append(None if answer is None else answer == "7")
    tree.check()
    return tree, correct


def values(rule: str, tree: Tree, correct: Verdicts, estimate: Any = "hard") -> list[float]:
    labels = RULES[rule](tree, correct, estimate)
    if rule != "rest-mcts":
        np.testing.assert_array_equal(labels.r, 1 - labels.v)
        assert np.isnan([labels.m, labels.w]).all()
    assert len(labels.v) == len(tree)
    return labels.v.tolist()


# ---------------------------------------------------------------- outcome


def test_the_outcome_is_a_label_of_the_last_step_alone():
    tree, correct = grow((0, "step", 1), (1, "right", 3), (1, "step", 1), (3, "wrong", 1), (0, "dead", 1))
    expected = [NAN, NAN, 1, NAN, 0, NAN]
    for estimate in ("hard", "soft"):
        np.testing.assert_array_equal(values("orm", tree, correct, estimate), expected)
    (labels,) = label_trees([tree], [correct], rule="orm")
    assert labels.v == [None, None, 1.0, None, 0.0, None]
    assert labels.r == [None, None, 0.0, None, 1.0, None]
    rows = value_rows([tree], [labels])
    assert [(row.steps, row.labels) for row in rows] == [
        (["s1", "s2"], [None, 1.0]),
        (["s1", "s3", "s4"], [None, None, 0.0]),
    ]


# ---------------------------------------------------------------- Math-Shepherd

#   1 a ─┬─ 2 b ── 3 wrong          the trace 1 2 3
#        └─ completions: 4 → right (1), dead 5 (1)
#            2 has 6 → wrong (2)
COMPLETED_TRACE = (
    (0, "step", 1),
    (1, "step", 1),
    (2, "wrong", 1),
    (1, "+right", 1),
    (1, "+dead", 1),
    (2, "+step", 2),
    (6, "+wrong", 2),
)


def test_math_shepherd_counts_the_completions_of_each_step():
    tree, correct = grow(*COMPLETED_TRACE, leaves=[3])
    assert [drawn(tree, n) for n in (1, 2)] == [2, 2]
    np.testing.assert_array_equal(values("math-shepherd", tree, correct), [NAN, 1, 0, 0, *[NAN] * 4])
    np.testing.assert_array_equal(values("math-shepherd", tree, correct, "soft"), [NAN, 0.5, 0, 0, *[NAN] * 4])


def test_math_shepherd_counts_a_step_s_own_completions_only():
    """A right completion of the second step proves nothing about the first here: Math-Shepherd asks each by itself."""
    tree, correct = grow(
        (0, "step", 1), (1, "step", 1), (2, "wrong", 1), (1, "+wrong", 2), (2, "+right", 2), leaves=[3]
    )
    np.testing.assert_array_equal(values("math-shepherd", tree, correct), [NAN, 0, 1, 0, NAN, NAN])


def test_only_the_traces_that_were_completed_are_labelled():
    nodes = ((0, "step", 1), (1, "wrong", 1), (0, "step", 1), (3, "right", 1), (1, "+wrong", 2))
    tree, correct = grow(*nodes, leaves=[2])
    np.testing.assert_array_equal(values("math-shepherd", tree, correct), [NAN, 0, 0, NAN, NAN, NAN])
    np.testing.assert_array_equal(values("omega-prm", tree, correct), [NAN, 0, 0, NAN, NAN, NAN])


def test_a_step_whose_completions_were_cut_short_has_no_label():
    for cut in ((1, "+right", 1), (1, "+step", 2)):  # one of two; two that never ended
        tree, correct = grow((0, "step", 1), (1, "wrong", 1), cut, leaves=[2])
        np.testing.assert_array_equal(values("math-shepherd", tree, correct), [NAN, NAN, 0, NAN])


def test_chains_through_a_step_are_completions_where_they_are_independent_samples():
    #  1 a (4 chains) ─┬─ 2 right (2)            5 b (1 chain) ── 6 right
    #                  ├─ 3 wrong (1)
    #                  └─ 4 dead (1)
    nodes = ((0, "step", 4), (1, "right", 2), (1, "wrong", 1), (1, "dead", 1), (0, "step", 1), (5, "right", 1))
    tree, correct = grow(*nodes, method="sample")
    assert own_chains(tree)
    assert sorted(completions_of(tree, 1)) == [2, 3, 4]
    np.testing.assert_array_equal(values("math-shepherd", tree, correct, "soft"), [NAN, 0.5, 1, 0, NAN, 1, 1])
    np.testing.assert_array_equal(values("math-shepherd", tree, correct), [NAN, 1, 1, 0, NAN, 1, 1])


def test_chains_of_completed_trees_count_if_they_were_drawn_alike():
    nodes = ((0, "step", 2), (1, "wrong", 1), (1, "+right", 1), (1, "wrong", 1))
    mixed, correct = grow(*nodes, method="sample", samples=3, own=True, leaves=[2])
    assert values("math-shepherd", mixed, correct, "soft")[1] == pytest.approx(1 / 3)
    apart, correct = grow(*nodes, method="sample", samples=1, own=False, leaves=[2])
    assert values("math-shepherd", apart, correct, "soft")[1] == 1


@pytest.mark.parametrize(("method", "stop"), [("mcts_star", "done"), ("cot", "done"), ("sample", "decided")])
def test_chains_that_are_no_independent_samples_do_not_count(method, stop):
    tree, correct = grow((0, "step", 1), (1, "right", 1), method=method)
    tree.stop = stop
    with pytest.raises(ConfigError, match=r"labels.rule = 'math-shepherd'.*'p'.*no independent samples.*--policy"):
        RULES["math-shepherd"](tree, correct, "hard")


# ---------------------------------------------------------------- OmegaPRM


def chain(*looks: str, last: str = "wrong") -> tuple[Tree, Verdicts]:
    """A trace with a look at each step but the last: "right", "wrong" (two completions) or "" (none)."""
    nodes = [(i, "step", 1) for i in range(len(looks))]
    nodes += [(len(looks), last, 1)]
    nodes += [(i, f"+{look}", 2) for i, look in enumerate(looks, start=1) if look]
    return grow(*nodes, leaves=[len(looks) + 1])


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (chain("", "right", "wrong", ""), [1, 1, 0, 0, 0]),
        (chain("wrong", ""), [0, 0, 0]),
        (chain("", "right"), [1, 1, 0]),
        (chain("right", "", ""), [1, NAN, NAN, 0]),  # cut off: what lies between is not known
        (chain("", "", last="right"), [1, 1, 1]),
        (chain("wrong", "right"), [1, 1, 0]),  # a right answer further down proves the step above right
    ],
)
def test_omega_prm_labels_up_to_the_first_wrong_step(trace, expected):
    tree, correct = trace
    np.testing.assert_array_equal(values("omega-prm", tree, correct)[1 : len(expected) + 1], expected)


def test_omega_prm_soft_labels_what_was_looked_at():
    tree, correct = chain("", "right", "wrong", "")
    np.testing.assert_array_equal(values("omega-prm", tree, correct, "soft")[1:6], [NAN, 1, 0, NAN, 0])


def test_omega_prm_needs_a_tree_that_was_completed():
    tree, correct = grow((0, "right", 1), method="sample")
    with pytest.raises(ConfigError, match="'omega-prm' needs completions.*holds no completions"):
        RULES["omega-prm"](tree, correct, "hard")


# ---------------------------------------------------------------- in common


def test_names_of_rules():
    assert get_rule("orm") is orm
    with pytest.raises(ConfigError, match="unknown labelling rule 'math_shepherd'; did you mean 'math-shepherd'"):
        get_rule("math_shepherd")
    with pytest.raises(ConfigError, match="there are: rest-mcts, orm"):
        get_rule("x")


def test_trees_without_a_right_leaf_may_be_left_out():
    tree, correct = grow((0, "step", 1), (1, "wrong", 1))
    for rule in ("orm", "rest-mcts"):
        (kept,) = label_trees([tree], [correct], rule=rule)
        assert kept.v[2] == 0
        (dropped,) = label_trees([tree], [correct], rule=rule, unsolved="drop")
        assert [dropped.m, dropped.r, dropped.w, dropped.v] == [[None] * 3] * 4
        assert dropped.correct == correct
    solved, correct = grow((0, "right", 1))
    assert label_trees([solved], [correct], rule="orm", unsolved="drop")[0].v == [None, 1.0]


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, Verdicts]:
    """Trees of any shape: steps of a search with leaves of any fate, and completions of any of them."""
    nodes: list[tuple[int, str, int]] = []
    fates = st.sampled_from(["step", "right", "wrong", "dead"])
    for number in range(draw(st.integers(1, 14))):
        open_nodes = [0, *(n for n, (_, fate, _) in enumerate(nodes, start=1) if fate == "step")]
        nodes.append((draw(st.sampled_from(open_nodes[-4:])), draw(fates), draw(st.integers(1, 3))))
        assert number + 1 == len(nodes)
    finished = [n for n, (_, fate, _) in enumerate(nodes, start=1) if fate in ("right", "wrong")]
    steps = [n for n, (_, fate, _) in enumerate(nodes, start=1) if fate == "step"]
    leaves = draw(st.lists(st.sampled_from(finished), unique=True)) if finished else []
    for _ in range(draw(st.integers(0, 14)) if steps else 0):
        going = [n for n, (_, fate, _) in enumerate(nodes, start=1) if fate == "+step"]
        nodes.append((draw(st.sampled_from(steps + going)), "+" + draw(fates), draw(st.integers(1, 3))))
    method = draw(st.sampled_from(["sample", "mcts_star"]))
    own = method == "sample" and draw(st.booleans())
    return grow(*nodes, method=method, samples=draw(st.integers(1, 3)), own=own, leaves=leaves)


@ANY
@given(trees(), st.sampled_from(list(RULES)), st.sampled_from(["hard", "soft"]))
def test_values_are_shares_and_leaves_are_what_they_are(grown, rule, estimate):
    tree, correct = grown
    v = values(rule, tree, correct, estimate)
    chosen = {n for leaf in tree.settings[COMPLETED]["leaves"] for n in tree.nodes_to(leaf)}
    for node, value in enumerate(v):
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12
        if rule in ("math-shepherd", "omega-prm"):
            assert math.isnan(value) or node in chosen
            if node in chosen and correct[node] is not None:
                assert value == correct[node]
        if rule not in ("rest-mcts",) and estimate == "hard":
            assert math.isnan(value) or value in (0, 1)


@ANY
@given(trees())
def test_shepherd_by_definition(grown):
    tree, correct = grown
    soft, hard = (values("math-shepherd", tree, correct, estimate) for estimate in ("soft", "hard"))
    own = tree.settings[COMPLETED]["own"]
    for node in {n for leaf in tree.settings[COMPLETED]["leaves"] for n in tree.nodes_to(leaf)}:
        if correct[node] is not None:
            continue
        right = ended = 0
        for leaf in range(node + 1, len(tree)):
            way = tree.nodes_to(leaf)
            if tree.status[leaf] == "open" or node not in way:
                continue
            below = [tree.origin[n] == COMPLETION for n in way[way.index(node) + 1 :]]
            if all(below) or (own and not any(below)):
                ended += tree.copies[leaf]
                right += tree.copies[leaf] * bool(correct[leaf])
        if ended < tree.settings[COMPLETED]["samples"]:
            assert math.isnan(soft[node])
            assert math.isnan(hard[node])
        else:
            assert soft[node] == pytest.approx(right / ended)
            assert hard[node] == (right > 0)


@ANY
@given(trees())
def test_omega_prm_is_never_right_again_after_a_wrong_step(grown):
    tree, correct = grown
    v = values("omega-prm", tree, correct)
    for node in range(1, len(tree)):
        above = v[tree.parent[node]]
        if v[node] == 1 and tree.parent[node]:
            assert above == 1
        if above == 0:
            assert v[node] == 0 or math.isnan(v[node])
            if tree.origin[node] != COMPLETION and any(
                node in tree.nodes_to(leaf) for leaf in tree.settings[COMPLETED]["leaves"]
            ):
                assert v[node] == 0


@ANY
@given(trees(), st.sampled_from(["hard", "soft"]))
def test_the_tree_s_own_rule_is_unchanged(grown, estimate):
    tree, correct = grown
    (record,) = label_trees([tree], [correct], estimate=estimate)
    expected = process_rewards(tree.parent, correct, estimate=estimate)
    np.testing.assert_array_equal([NAN if x is None else x for x in record.v], expected.v)
    for unsolved in ("zero", "drop"):
        (record,) = label_trees([tree], [correct], estimate=estimate, unsolved=unsolved)
        of_old = process_rewards(tree.parent, correct, estimate=estimate, unsolved=unsolved)
        for name in ("m", "r", "w", "v"):
            array = getattr(of_old, name)
            assert getattr(record, name) == [float(x) if math.isfinite(x) else None for x in array]
