"""What a verified tree says about its steps: process rewards without human labels (ReST-MCTS*, Eqs. 1–2).

Two sweeps over a flat tree, parents before children: up for the reasoning distance m and correctness r, down for the
weighted reward w and the quality value v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One entry per node, float64; NaN where a node carries no label (its branch never finished).

    m: least number of further steps to a correct answer, ≥ 0 (inf: none is known anywhere in the tree).
    r: how wrong the step is, in [0, 1]. w: weighted reward, in [−1, 1]. v: quality value, in [0, 1].
    The root, which is no step, has w = 0 and v = 0.
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
    """Label every node of a verified tree.

    `parent[i]` is the index of node i's parent, −1 for the root (node 0), parents before children. `correct[i]` is
    True or False for a verified finished leaf and None elsewhere; a node with no verified leaf below it is unfinished
    and unlabelled. With `estimate="hard"`, r = 0 if a correct leaf lies at or below the node, else 1; with "soft",
    r = 1 − (share of the verified leaves at or below it that are correct). A node without a correct leaf below it takes
    m from its parent. Then

        w_k = (1 − v_{k−1}) / (m_k + 1) · (1 − 2 r_k)      (Eq. 2)
        v_k = max(v_{k−1} + w_k, 0)                        (Eq. 1), v = 0 at the root.

    A tree without any correct leaf is the limit m → ∞ with `unsolved="zero"`: r = 1, w = 0, v = 0 on finished
    branches; with "drop" it gets no labels. Linear in the number of nodes. Raises ValueError for lists of unequal
    length, a parent that does not come before its child, or an unknown option.
    """
    _check(parent, correct, unsolved, estimate)
    n = len(parent)
    above = list(parent)
    verified, right, m = [0] * n, [0] * n, [float("inf")] * n
    for i in range(n - 1, -1, -1):  # children to parents
        if correct[i] is not None:
            verified[i] += 1
            if correct[i]:
                right[i] += 1
                m[i] = 0.0
        p = above[i]
        if p >= 0:
            verified[p] += verified[i]
            right[p] += right[i]
            if m[i] + 1 < m[p]:
                m[p] = m[i] + 1
    nan = float("nan")
    solved = bool(n) and right[0] > 0
    r, w, v = [nan] * n, [nan] * n, [nan] * n
    for i in range(n):  # parents to children
        if not verified[i] or (not solved and unsolved == "drop"):
            m[i] = nan
            continue
        p = above[i]
        r[i] = 1.0 - right[i] / verified[i] if estimate == "soft" else float(right[i] == 0)
        if p < 0:
            w[i] = v[i] = 0.0
            continue
        if not right[i]:
            m[i] = m[p]
        w[i] = (1.0 - v[p]) / (m[i] + 1.0) * (1.0 - 2.0 * r[i]) if solved else 0.0
        v[i] = max(v[p] + w[i], 0.0)
    return Labels(*(np.array(column, dtype=np.float64) for column in (m, r, w, v)))


def _check(parent: Sequence[int], correct: Sequence[bool | None], unsolved: str, estimate: str) -> None:
    if len(parent) != len(correct):
        raise ValueError(f"parent has {len(parent)} entries and correct has {len(correct)}; give one per node")
    if unsolved not in ("zero", "drop"):
        raise ValueError(f"unsolved={unsolved!r} is neither 'zero' nor 'drop'")
    if estimate not in ("hard", "soft"):
        raise ValueError(f"estimate={estimate!r} is neither 'hard' nor 'soft'")
    for i, p in enumerate(parent):
        if not (p == -1 if i == 0 else 0 <= p < i):
            raise ValueError(f"node {i} has parent {p}; node 0 is the root (-1), and parents come before children")
