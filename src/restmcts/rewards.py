"""What a verified tree says about its steps: process rewards without human labels (ReST-MCTS*, Eqs. 1 and 2).

Two sweeps over a flat tree whose parents come before their children: up, for the reasoning distance m and how many
verified leaves below are correct; down, for the weighted reward w and the quality value v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_NAN, _INF = float("nan"), float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One float64 entry per node; NaN where a node carries no label (its branch never finished, or the rule has none).

    m: least number of further steps to a correct answer, ≥ 0; inf where the tree holds no correct answer.
    r: how wrong the step is, in [0, 1]. w: weighted reward, in [−1, 1]. v: quality value, in [0, 1].
    The root is no step: w = 0 and v = 0 there.
    """

    m: Floats
    r: Floats
    w: Floats
    v: Floats


def process_rewards(
    parent: Sequence[int],
    correct: Sequence[bool | None],
    *,
    unsolved: Literal["zero", "drop"] = "zero",
    estimate: Literal["hard", "soft"] = "hard",
) -> Labels:
    """Label every node of a verified tree, in time linear in their number.

    `parent[i]` is the index of node i's parent, −1 for the root (node 0); parents come before children. `correct[i]` is
    True or False for a verified finished leaf and None elsewhere. A node with no verified leaf at or below it is
    unfinished: it gets no label and has no say.

    m is the distance to the nearest correct leaf at or below the node; where there is none, the m of its parent.
    r, with `estimate="hard"`, is 0 if a correct leaf lies at or below the node, else 1; with `"soft"` it is 1 − the
    share of the verified leaves at or below it that are correct. `m` is the same for both. Then, from the root down,

        w_k = (1 − v_{k−1}) / (m_k + 1) · (1 − 2 r_k)      (Eq. 2)
        v_k = max(v_{k−1} + w_k, 0)                        (Eq. 1), v_0 = 0.

    In a tree without a correct leaf m → ∞: with `unsolved="zero"` r = 1, w = 0 and v = 0 on the finished branches; with
    `"drop"` no node gets a label.

    Raises ValueError for an empty tree, lists of unequal length, a parent that does not come before its child, a
    verdict that is not True, False or None, and an unknown option.
    """
    above = _checked(parent, correct, unsolved, estimate)
    m, verified, right = _sweep_up(above, correct)
    labelled = (verified > 0) & (right[0] > 0 or unsolved == "zero")
    r = np.full(len(above), _NAN)
    r[labelled] = 1.0 - right[labelled] / verified[labelled] if estimate == "soft" else right[labelled] == 0
    return _sweep_down(above, m, right > 0, r, labelled)


def _sweep_up(above: Ints, correct: Sequence[bool | None]) -> tuple[Floats, Ints, Ints]:
    """Per node: steps to the nearest correct leaf at or below it (inf: none), verified leaves there, correct ones.

    Leaves, which are most of a tree, are added to their parents all at once; only inner nodes one by one.
    """
    said = np.array(correct, dtype=np.float64)  # None becomes NaN
    inner = _inner(above)
    leaf_above = np.where(inner, 0, above)
    right_leaves, verified_leaves = ~inner & (said == 1), ~inner & ~np.isnan(said)
    m = np.where(said == 1, 0.0, _INF)
    m[leaf_above[right_leaves]] = np.minimum(m[leaf_above[right_leaves]], 1.0)
    counts = [
        np.bincount(leaf_above[of_leaves], minlength=len(above)) + of_all
        for of_leaves, of_all in ((verified_leaves, ~np.isnan(said)), (right_leaves, said == 1))
    ]
    nodes = inner.nonzero()[0][:0:-1]  # children first, without the root
    steps, (verified, right) = m.tolist(), (count.tolist() for count in counts)
    for i, p in zip(nodes.tolist(), above[nodes].tolist(), strict=True):
        if verified[i]:
            verified[p] += verified[i]
            if right[i]:
                right[p] += right[i]
                if steps[i] + 1.0 < steps[p]:
                    steps[p] = steps[i] + 1.0
    return np.array(steps), np.array(verified), np.array(right)


def _sweep_down(above: Ints, m: Floats, right: Bools, r: Floats, labelled: Bools) -> Labels:
    """m, w and v of every labelled node from those of its parent, which is labelled too: inner nodes first."""
    inner, signs = _inner(above), 1.0 - 2.0 * r
    nodes = (inner & labelled).nonzero()[0][1:]
    steps, values = m.tolist(), [0.0] * len(above)
    columns = (nodes, above[nodes], right[nodes], signs[nodes])
    for i, p, good, sign in zip(*(column.tolist() for column in columns), strict=True):
        if not good:
            steps[i] = steps[p]
        before = values[p]
        after = before + (1.0 - before) / (steps[i] + 1.0) * sign
        values[i] = after if after > 0.0 else 0.0
    m, v = np.array(steps), np.array(values)
    m = np.where(labelled, np.where(inner | right, m, m[above]), _NAN)
    # In a tree without a correct leaf m is inf and w is 0; the + 0.0 makes that 0 of −0.
    w = (1.0 - v[above]) / (m + 1.0) * signs + 0.0
    w[0] = 0.0 if labelled[0] else _NAN
    v = np.where(labelled, np.where(inner, v, np.maximum(v[above] + w, 0.0)), _NAN)
    return Labels(m, r, w, v)


def _inner(above: Ints) -> Bools:
    """Whether each node has children; the root counts as one that does."""
    inner = np.zeros(len(above), dtype=bool)
    inner[0] = True
    inner[above[1:]] = True
    return inner


def _checked(parent: Sequence[int], correct: Sequence[bool | None], unsolved: str, estimate: str) -> Ints:
    """`parent` as an array, when all is well."""
    if unsolved not in ("zero", "drop"):
        raise ValueError(f"unsolved = {unsolved!r} is unknown; say 'zero' or 'drop'")
    if estimate not in ("hard", "soft"):
        raise ValueError(f"estimate = {estimate!r} is unknown; say 'hard' or 'soft'")
    if len(parent) != len(correct):
        raise ValueError(f"parent has {len(parent)} entries and correct has {len(correct)}; give one per node")
    if not len(parent):
        raise ValueError("the tree is empty; it has at least its root, with parent -1")
    indices = np.asarray(parent)
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise ValueError("parent holds something else than whole numbers; give the index of each node's parent")
    wrong = (indices < 0) | (indices >= np.arange(len(indices)))
    wrong[0] = indices[0] != -1
    if wrong.any():
        node = int(wrong.argmax())
        rule = "parents come before their children" if node else "node 0 is the root, with parent -1"
        raise ValueError(f"node {node} has parent {int(indices[node])}; {rule}")
    if not {type(verdict) for verdict in correct} <= {bool, np.bool_, type(None)}:
        node = next(i for i, verdict in enumerate(correct) if not isinstance(verdict, bool | np.bool_ | None))
        raise ValueError(
            f"node {node} is verified as {correct[node]!r}; say True, False, or None where nothing finished"
        )
    return indices.astype(np.int64)
