"""Trees become pairs to compare: of sibling steps by their inferred value, or of whole solutions by their score."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from restmcts.rows import PreferenceRow, TreeLabels
from restmcts.seeds import derive_seed
from restmcts.types import Tree


def step_pairs(
    trees: Sequence[Tree],
    labels: Sequence[TreeLabels],
    *,
    margin: float,
    pairs_per_question: int | None = None,
    seed: int = 0,
    round: int = 0,
) -> list[PreferenceRow]:
    """Of the children of each node, the one with the highest inferred v before the most tempting of the worse ones.

    Worse is what lies at least `margin` below in v; the most tempting of these is the one that the value model valued
    highest. Where a question has more pairs than `pairs_per_question`, a seeded draw that depends on it alone.
    """
    found: dict[str, list[PreferenceRow]] = {}
    for tree, record in zip(trees, labels, strict=True):
        pairs = found.setdefault(tree.problem.id, [])
        for parent in range(len(tree)):
            values = {n: v for n in tree.children(parent) if (v := record.v[n]) is not None}
            if len(values) < 2:
                continue
            best = max(values, key=values.__getitem__)
            worse = [n for n, v in values.items() if v < values[best] and v <= values[best] - margin]
            if worse:
                tempting = max(worse, key=lambda n: _said(tree, n))
                side = {"chosen_value": values[best], "rejected_value": values[tempting]}
                pairs.append(_pair(tree, parent, [best], [tempting], round=round, **side))
    return [pair for name, pairs in found.items() for pair in _drawn(pairs, pairs_per_question, seed, name)]


def solution_pairs(
    trees: Sequence[Tree],
    scores: Mapping[tuple[str, int], float],
    *,
    margin: float,
    pairs_per_question: int | None = None,
    round: int = 0,
) -> list[PreferenceRow]:
    """The best solution of each question before the worst, the second best before the second worst, and so on.

    `scores` in [0, 1] of (problem id, leaf) say which are better; solutions without a score are left out. A pair whose
    scores differ by less than `margin`, or not at all, says nothing and is none.
    """
    rows: list[PreferenceRow] = []
    for tree in trees:
        scored = [(scores[tree.problem.id, n], n) for n in tree.finished() if (tree.problem.id, n) in scores]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        for i in range(min(len(scored) // 2, pairs_per_question or len(scored))):
            (high, best), (low, worst) = scored[i], scored[-1 - i]
            if high > low and high - low >= margin:
                nodes = tree.nodes_to(best), tree.nodes_to(worst)
                rows.append(_pair(tree, 0, *nodes, chosen_value=high, rejected_value=low, round=round))
    return rows


def _said(tree: Tree, node: int) -> float:
    value = tree.raw_value[node]
    return -1.0 if value is None else value


def _drawn(pairs: list[PreferenceRow], most: int | None, seed: int, name: str) -> list[PreferenceRow]:
    if most is None or len(pairs) <= most:
        return pairs
    kept = random.Random(derive_seed(seed, "pairs", name)).sample(range(len(pairs)), most)
    return [pairs[i] for i in sorted(kept)]


def _pair(tree: Tree, parent: int, better: Sequence[int], worse: Sequence[int], **facts: Any) -> PreferenceRow:
    shared = tree.nodes_to(parent)
    return PreferenceRow(
        problem_id=tree.problem.id,
        question=tree.problem.question,
        steps=[tree.text[n] for n in shared],
        step_ids=[tree.ids[n] for n in shared],
        tokenizer=tree.models.get("tokenizer"),
        chosen=[tree.text[n] for n in better],
        chosen_ids=[tree.ids[n] for n in better],
        rejected=[tree.text[n] for n in worse],
        rejected_ids=[tree.ids[n] for n in worse],
        chosen_ends=tree.status[better[-1]] == "finished",
        rejected_ends=tree.status[worse[-1]] == "finished",
        **facts,
    )
