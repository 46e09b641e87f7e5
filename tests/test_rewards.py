"""Process rewards: the paper's worked example, trees worked out by hand, Theorem 1, bad input."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from restmcts.rewards import Labels, process_rewards
from tests.playing import ANY

NAN, INF = math.nan, math.inf

# The paper's Fig. 3 (two dice, the chance that they sum to 4): parent, verdict, and m, w, v.
FIGURE_3 = {
    "root": (None, None, 3, 0, 0),
    "A": ("root", None, 2, 1 / 3, 1 / 3),
    "B": ("root", False, 3, -1 / 4, 0),
    "C": ("root", None, 3, -1 / 4, 0),
    "C1": ("C", False, 3, -1 / 4, 0),
    "A1": ("A", None, 1, 1 / 3, 2 / 3),
    "A1c": ("A1", True, 0, 1 / 3, 1),
    "A1w": ("A1", False, 1, -1 / 6, 1 / 2),
    "A2": ("A", None, 2, 2 / 9, 5 / 9),
    "A2a": ("A2", None, 1, 2 / 9, 7 / 9),
    "A2b": ("A2a", True, 0, 2 / 9, 1),
}


def same(labels: Labels, **expected: list[float]) -> None:
    for name, column in expected.items():
        np.testing.assert_allclose(getattr(labels, name), column, rtol=0, atol=1e-12, err_msg=name)


def test_the_papers_worked_example():
    number = {name: i for i, name in enumerate(FIGURE_3)}
    parents, correct, m, w, v = zip(*FIGURE_3.values(), strict=True)
    labels = process_rewards([-1 if p is None else number[p] for p in parents], correct)
    same(labels, m=m, w=w, v=v, r=[float(name[0] in "BC" or name == "A1w") for name in number])
    assert {column.dtype for column in (labels.m, labels.r, labels.w, labels.v)} == {np.dtype("float64")}


def test_the_stored_worked_example(shared_data):
    import json

    facts = json.loads((shared_data / "value_inference_fig3.json").read_text())
    number = {name: i for i, name in enumerate(facts["parent"])}
    parent = [-1 if p is None else number[p] for p in facts["parent"].values()]
    labels = process_rewards(parent, [facts["finished_leaves_correct"].get(name) for name in number])
    for column in ("m", "w", "v"):
        for name, expected in facts[column].items():
            assert abs(getattr(labels, column)[number[name]] - expected) <= 1e-12


def test_a_clean_trace_rises_evenly():
    for steps in (1, 2, 7):
        labels = process_rewards(range(-1, steps), [*[None] * steps, True])
        same(labels, w=[0, *[1 / steps] * steps], v=np.arange(steps + 1) / steps, m=np.arange(steps, -1, -1))
        assert not labels.r.any()


def test_a_wrong_step_after_right_ones():
    """Eqs. 21 and 22, with k counting the steps up to and with the wrong one: K = 4, the third is wrong."""
    labels = process_rewards([-1, 0, 1, 2, 3, 2], [None, None, None, None, True, False])
    before, m = 2 / 4, 2
    same(labels, w=[0, 1 / 4, 1 / 4, 1 / 4, 1 / 4, -(1 - before) / (m + 1)])
    assert labels.v[5] == pytest.approx(before - before / 3)
    assert labels.m[5] == m


def test_unfinished_branches_carry_no_label_and_have_no_say():
    #        root  a     b     unfinished: below a, of its own
    parent = [-1, 0, 1, 1, 0]
    labels = process_rewards(parent, [None, None, True, None, None])
    same(labels, m=[2, 1, 0, NAN, NAN], r=[0, 0, 0, NAN, NAN], w=[0, 0.5, 0.5, NAN, NAN], v=[0, 0.5, 1, NAN, NAN])
    for column in ("m", "r", "w", "v"):
        assert np.isnan(getattr(process_rewards(parent, [None] * 5), column)).all()


def test_unsolved_trees():
    #  root → wrong, root → unfinished
    parent, correct = [-1, 0, 0], [None, False, None]
    zero = process_rewards(parent, correct)
    same(zero, r=[1, 1, NAN], w=[0, 0, NAN], v=[0, 0, NAN], m=[INF, INF, NAN])
    assert not np.signbit(zero.w[:2]).any()
    drop = process_rewards(parent, correct, unsolved="drop")
    same(drop, m=[NAN] * 3, r=[NAN] * 3, w=[NAN] * 3, v=[NAN] * 3)
    solved = process_rewards([-1, 0], [None, True], unsolved="drop")
    same(solved, v=[0, 1])


def test_soft_estimates():
    #  root → a → {right, wrong, wrong}, root → b → right
    parent, correct = [-1, 0, 1, 1, 1, 0, 5], [None, None, True, False, False, None, True]
    labels = process_rewards(parent, correct, estimate="soft")
    r = [0.5, 2 / 3, 0, 1, 1, 0, 0]
    m = [2, 1, 0, 1, 1, 1, 0]
    w_a = 1 / 2 * (1 - 2 * 2 / 3)  # negative: most of what follows a is wrong
    same(labels, r=r, m=m, w=[0, w_a, 1, -1 / 2, -1 / 2, 1 / 2, 1 / 2], v=[0, 0, 1, 0, 0, 0.5, 1])
    same(process_rewards(parent, correct), m=m)  # the distance is the same for both


def test_the_answer_in_one_step_and_a_root_that_is_verified():
    same(process_rewards([-1, 0], [None, True]), m=[1, 0], w=[0, 1], v=[0, 1], r=[0, 0])
    same(process_rewards([-1], [True]), m=[0], w=[0], v=[0], r=[0])


def test_numpy_input():
    labels = process_rewards(np.array([-1, 0, 0]), [None, np.True_, np.False_])
    same(labels, v=[0, 1, 0])


@pytest.mark.parametrize(
    ("parent", "correct", "options", "message"),
    [
        ([-1, 0], [None], {}, "parent has 2 entries and correct has 1"),
        ([], [], {}, "the tree is empty"),
        ([0], [True], {}, "node 0 has parent 0"),
        ([-1, -1], [None, True], {}, "node 1 has parent -1"),
        ([-1, 2, 0], [None, True, None], {}, "node 1 has parent 2; parents come before"),
        ([-1, 0, 2], [None, True, None], {}, "node 2 has parent 2"),
        ([-1, 0.5], [None, True], {}, "whole numbers"),
        ([-1, 0], [None, 1], {}, "node 1 is verified as 1"),
        ([-1, 0], [None, "right"], {}, "node 1 is verified as 'right'"),
        ([-1, 0], [None, True], {"unsolved": "skip"}, "unsolved = 'skip'"),
        ([-1, 0], [None, True], {"estimate": "Hard"}, "estimate = 'Hard'"),
    ],
)
def test_bad_input(parent, correct, options, message):
    with pytest.raises(ValueError, match=message) as error:
        process_rewards(parent, correct, **options)
    assert "\n" not in str(error.value)


def test_a_million_nodes():
    count = 10**6
    parent = [-1, *(np.random.default_rng(0).random(count - 1) * np.arange(1, count)).astype(int).tolist()]
    inner = set(parent)
    correct = [None if i in inner else i % 3 == 0 for i in range(count)]
    correct[-1] = True
    begin = time.process_time()
    labels = process_rewards(parent, correct)
    assert time.process_time() - begin < 8  # 1.5 s on an idle core
    assert labels.v[-1] == pytest.approx(1)


def test_a_path_of_any_length():
    labels = process_rewards(range(-1, 99_999), [*[None] * 99_999, True])
    assert labels.v[-1] == pytest.approx(1)
    assert labels.m[0] == 99_999


# ---------------------------------------------------------------- properties


@st.composite
def verified_trees(draw: st.DrawFn) -> tuple[list[int], list[bool | None]]:
    parent = [-1, *(draw(st.integers(0, i)) for i in range(draw(st.integers(1, 30))))]
    inner = set(parent)
    return parent, [None if i in inner else draw(st.sampled_from([True, False, None])) for i in range(len(parent))]


def by_definition(parent: list[int], correct: list[bool | None]) -> tuple[list[float], list[float], list[float]]:
    """m of the right nodes, the hard r, and the share of correct leaves below, each from its definition."""
    n = len(parent)
    below: list[list[tuple[int, bool]]] = [[] for _ in range(n)]  # (distance, correct) of every verified leaf
    for leaf, verdict in enumerate(correct):
        node, distance = leaf, 0
        while verdict is not None and node >= 0:
            below[node].append((distance, verdict))
            node, distance = parent[node], distance + 1
    m = [min((d for d, ok in leaves if ok), default=INF) for leaves in below]
    r = [float(not any(ok for _, ok in leaves)) if leaves else NAN for leaves in below]
    share = [sum(ok for _, ok in leaves) / len(leaves) if leaves else NAN for leaves in below]
    return m, r, share


@ANY
@given(verified_trees())
def test_m_and_r_are_what_they_are_defined_to_be(tree):
    parent, correct = tree
    m, r, share = by_definition(parent, correct)
    hard, soft = process_rewards(parent, correct), process_rewards(parent, correct, estimate="soft")
    same(hard, r=r)
    same(soft, r=[1 - s for s in share])
    np.testing.assert_array_equal(hard.m, soft.m)
    for i in range(len(parent)):
        if r[i] == 0:
            assert hard.m[i] == m[i]
        elif r[i] == 1 and i:
            assert hard.m[i] == hard.m[parent[i]]
        assert np.isnan([hard.m[i], hard.w[i], hard.v[i]]).all() == np.isnan(r[i])


@ANY
@given(verified_trees(), st.sampled_from(["hard", "soft"]))
def test_theorem_1(tree, estimate):
    parent, correct = tree
    assume(True in correct)
    labels = process_rewards(parent, correct, estimate=estimate)
    for i, p in enumerate(parent):
        if i == 0 or np.isnan(labels.v[i]):
            continue
        m, r, w, v = (float(column[i]) for column in (labels.m, labels.r, labels.w, labels.v))
        before = float(labels.v[p])
        assert w == pytest.approx((1 - before) / (m + 1) * (1 - 2 * r), abs=1e-12)
        assert w <= 1 - before + 1e-12
        assert v == pytest.approx(max(before + w, 0), abs=1e-12)
        assert 0 <= v <= 1 + 1e-12
        if r == 0 and m == 0:
            assert v == pytest.approx(1)
        elif before < 1 - 1e-9:
            assert v < 1


@ANY
@given(st.integers(0, 50), st.integers(1, 50))
def test_a_step_further_from_the_answer_earns_less(m, further):
    """Theorem 1: of two first steps, the one with the shorter way to the answer."""
    near, far = (process_rewards(range(-1, 1 + n), [*[None] * (n + 1), True]).w[1] for n in (m, m + further))
    assert near > far > 0


@ANY
@given(verified_trees())
def test_order_of_siblings_does_not_matter(tree):
    """Relabelling the nodes in another order that keeps parents first gives the same labels."""
    parent, correct = tree
    n = len(parent)
    depth = [0] * n
    for i in range(1, n):
        depth[i] = depth[parent[i]] + 1
    order = sorted(range(n), key=lambda i: (depth[i], -i))
    place = {old: new for new, old in enumerate(order)}
    again = process_rewards([-1 if not i else place[parent[i]] for i in order], [correct[i] for i in order])
    labels = process_rewards(parent, correct)
    for column in ("m", "r", "w", "v"):
        np.testing.assert_array_equal(getattr(again, column), getattr(labels, column)[order])
