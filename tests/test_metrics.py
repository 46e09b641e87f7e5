"""Intervals, differences, agreement and calibration: textbook numbers, brute force, and degenerate input."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restmcts import metrics
from restmcts.metrics import ValuePoints


def test_wilson_matches_the_textbook():
    low, high = metrics.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)  # Newcombe 1998, table I
    assert metrics.wilson(0, 0) is None
    assert metrics.wilson(0, 10).low == 0.0
    assert metrics.wilson(10, 10).high == 1.0
    with pytest.raises(ValueError, match="between 0 and n"):
        metrics.wilson(3, 2)


@pytest.mark.parametrize(("wins", "losses"), [(0, 5), (3, 9), (7, 7), (1, 0), (20, 4)])
def test_sign_test_is_the_two_sided_binomial_tail(wins, losses):
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert metrics.sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert metrics.sign_test(wins, losses) == metrics.sign_test(losses, wins)


def test_sign_test_without_discordant_pairs_is_absent():
    assert metrics.sign_test(0, 0) is None
    assert metrics.sign_test(3000, 2000) < 1e-40


def test_bootstrap_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(1)
    values = (rng.random(400) < 0.3).astype(float)
    low, high = metrics.bootstrap_mean(values, range(400))
    half = 1.96 * math.sqrt(values.var() / 400)
    assert low == pytest.approx(values.mean() - half, abs=0.006)
    assert high == pytest.approx(values.mean() + half, abs=0.006)


def test_clusters_widen_the_interval_and_the_seed_fixes_it():
    rng = np.random.default_rng(2)
    values = np.repeat((rng.random(100) < 0.5).astype(float), 3)  # three seeds that always agree
    question = np.repeat(np.arange(100), 3).tolist()
    clustered, naive = metrics.bootstrap_mean(values, question), metrics.bootstrap_mean(values, range(300))
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)
    assert clustered == metrics.bootstrap_mean(values, question)
    once = metrics.bootstrap_mean(values[::3], range(100))
    assert clustered.low == pytest.approx(once.low)  # three copies of a question say no more than one


def test_bootstrap_needs_two_clusters():
    assert metrics.bootstrap_mean([], []) is None
    assert metrics.bootstrap_mean([1.0, 0.0], ["q", "q"]) is None


def test_paired_difference_counts_questions():
    before = [False, False, True, True, False, False]
    after = [True, True, True, False, False, True]
    found = metrics.paired_difference(before, after, ["a", "a", "b", "c", "d", "e"])
    assert found.mean == pytest.approx(2 / 6)
    assert (found.wins, found.losses, found.n) == (2, 1, 6)
    assert found.p == metrics.sign_test(2, 1)
    assert not found.certain
    assert metrics.paired_difference([], [], []) is None
    sure = metrics.paired_difference([False] * 50, [True] * 50, range(50))
    assert sure.certain
    assert sure.interval == (1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=25))
def test_auc_equals_counting_pairs(items):
    right = [s for s, r in items if r]
    wrong = [s for s, r in items if not r]
    found = metrics.auc([s for s, _ in items], [r for _, r in items])
    if not right or not wrong:
        assert found is None
    else:
        won = sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(right, wrong))
        assert found == pytest.approx(won / (len(right) * len(wrong)))


def test_auc_within_groups_weighs_groups_alike():
    score = [0.9, 0.1, 0.1, 0.1, 0.9, 0.5]
    right = [True, False, False, True, False, True]
    assert metrics.auc_within(score, right, ["a", "a", "a", "b", "b", "c"]) == (0.5, 2)
    assert metrics.auc_within([], [], []) == (None, 0)


def test_correlations():
    x = [1.0, 2.0, 3.0, 4.0]
    assert metrics.pearson(x, [2.0, 4.0, 6.0, 8.0]) == pytest.approx(1.0)
    assert metrics.spearman(x, [1.0, 10.0, 100.0, 1e6]) == pytest.approx(1.0)
    assert metrics.spearman(x, [4.0, 3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert metrics.ranks([5.0, 1.0, 5.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert metrics.pearson(x, [1.0] * 4) is None
    assert metrics.pearson([], []) is None
    assert metrics.spearman([1.0], [1.0]) is None


def test_calibration_by_hand():
    bins = metrics.reliability([0.05, 0.15, 0.12, 1.0], [0.0, 1.0, 0.0, 1.0])
    assert [(b.low, b.n) for b in bins] == [(0.0, 1), (0.1, 2), (0.9, 1)]
    assert metrics.calibration_error(bins) == pytest.approx((0.05 + 2 * abs(0.135 - 0.5)) / 4)
    assert metrics.calibration_error([]) is None
    assert metrics.reliability([float("nan")], [1.0]) == []


def points(seed: int, n: int, noise: float) -> ValuePoints:
    rng, found = random.Random(seed), ValuePoints.empty()
    for i in range(n):
        right = rng.random() < 0.5
        value = rng.random() if right else 0.0
        found.predicted.append(min(1.0, max(0.0, value + rng.gauss(0, noise))))
        found.value.append(value)
        found.right.append(right)
        found.correct.append(right if i % 3 == 0 else None)
        found.depth.append(i % 4 + 1)
        found.tree.append(i // 10)
        found.parent.append(i % 2)
    return found


def test_value_quality_orders_a_good_and_a_bad_model():
    good, bad = metrics.value_quality(points(0, 200, 0.02)), metrics.value_quality(points(0, 200, 0.8))
    for name in ("within_0.1", "pearson", "spearman", "auc", "auc_in_tree", "auc_siblings"):
        assert good[name] > bad[name], name
    for name in ("mae", "rmse"):
        assert good[name] < bad[name], name
    assert good["nodes"] == 200
    assert sum(d["n"] for d in good["by_depth"]) == good["leaves"] == 67


def test_value_quality_of_nothing_is_absent():
    found = metrics.value_quality(ValuePoints.empty())
    assert found["nodes"] == found["leaves"] == 0
    assert all(found[k] is None for k in ("mae", "rmse", "within_0.1", "pearson", "spearman", "auc", "ece"))
    constant = ValuePoints([0.5, 0.5], [0.1, 0.1], [True, True], [None, None], [1, 1], [0, 0], [0, 0])
    quality = metrics.value_quality(constant)
    assert quality["pearson"] is None
    assert quality["auc"] is None
    assert quality["mae"] == pytest.approx(0.4)


def test_the_share_within_a_tenth_counts_the_border():
    border = ValuePoints([0.3, 0.31], [0.2, 0.2], [None, None], [None, None], [1, 1], [0, 0], [0, 0])
    assert metrics.value_quality(border)["within_0.1"] == 0.5
