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
_NAN, _INF = float("nan"), float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One float64 entry per node; NaN where a node carries no label (its branch never finished).

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
    if right[0] == 0 and unsolved == "drop":
        verified = [0] * len(above)
    return Labels(*(np.array(column) for column in _sweep_down(above, m, verified, right, soft=estimate == "soft")))


def _sweep_up(above: list[int], correct: Sequence[bool | None]) -> tuple[list[float], list[int], list[int]]:
    """Per node: steps to the nearest correct leaf at or below it (inf: none), verified leaves there, correct ones."""
    m = [0.0 if verdict else _INF for verdict in correct]
    verified = [int(verdict is not None) for verdict in correct]
    right = [1 if verdict else 0 for verdict in correct]
    for i in range(len(above) - 1, 0, -1):
        if verified[i]:
            p = above[i]
            verified[p] += verified[i]
            if right[i]:
                right[p] += right[i]
                if m[i] + 1 < m[p]:
                    m[p] = m[i] + 1
    return m, verified, right


def _sweep_down(
    above: list[int], m: list[float], verified: list[int], right: list[int], *, soft: bool
) -> tuple[list[float], list[float], list[float], list[float]]:
    """m, r, w, v of every node from those of its parent."""
    count = len(above)
    r, w, v = [_NAN] * count, [_NAN] * count, [_NAN] * count
    for i, p in enumerate(above):
        if not verified[i]:
            m[i] = _NAN
            continue
        wrong = 1.0 - right[i] / verified[i] if soft else float(not right[i])
        r[i] = wrong
        if not i:
            w[i] = v[i] = 0.0
            continue
        if not right[i]:
            m[i] = m[p]
        # In a tree without a correct leaf m is inf and w is 0; the + 0.0 makes that 0 of −0.
        w[i] = reward = (1.0 - v[p]) / (m[i] + 1.0) * (1.0 - 2.0 * wrong) + 0.0
        v[i] = max(v[p] + reward, 0.0)
    return m, r, w, v


def _checked(parent: Sequence[int], correct: Sequence[bool | None], unsolved: str, estimate: str) -> list[int]:
    """`parent` as a list of int, when all is well."""
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
    above: list[int] = indices.tolist()
    return above
