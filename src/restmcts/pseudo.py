"""Verdicts without known answers: by the consensus of a tree's own answers, or by a judge; and how good they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from restmcts.search.nodes import COMPLETION, leaf_weights
from restmcts.tasks import get_task
from restmcts.types import Tree

Verdicts = list[bool | None]
"""one entry per node of a tree: True or False for a leaf that is judged, None for all other nodes"""


def by_majority(tree: Tree, confidence: float) -> Verdicts:
    """Right is the answer that has most of the votes, if it has at least the share `confidence` of them.

    A finished leaf votes with how often it was sampled times its value (self-consistency weighted by a process reward
    model); equal answers, by the task's `key`, add up. Without a winner that is sure enough nothing is judged.
    """
    verdicts: Verdicts = [None] * len(tree)
    votes = answer_votes(tree, searched_leaves(tree))
    total = sum(votes.values())
    if not total:
        return verdicts
    winner = max(votes, key=votes.__getitem__)
    if votes[winner] >= confidence * total:
        for node in tree.finished():
            verdicts[node] = answer_key(tree, node) == winner
    return verdicts


def by_judge(tree: Tree, scores: Mapping[tuple[str, int], float], confidence: float) -> Verdicts:
    """Right is an answer to which a solution was judged to be worth at least `confidence`.

    `scores` in [0, 1] belong to (problem id, leaf); all leaves with one answer share the best verdict on any of them,
    and an answer that was not judged has none.
    """
    best: dict[str, float] = {}
    for node in tree.finished():
        score = scores.get((tree.problem.id, node))
        if score is not None:
            key = answer_key(tree, node)
            best[key] = max(score, best.get(key, 0.0))
    verdicts: Verdicts = [None] * len(tree)
    for node in tree.finished():
        score = best.get(answer_key(tree, node))
        verdicts[node] = None if score is None else score >= confidence
    return verdicts


def one_for_each_answer(tree: Tree) -> list[int]:
    """The leaf to show a judge for each answer: the highest-valued one, the earlier among equals."""
    chosen: dict[str, int] = {}
    for node in searched_leaves(tree):
        key = answer_key(tree, node)
        if key not in chosen or _said(tree, node) > _said(tree, chosen[key]):
            chosen[key] = node
    return sorted(chosen.values())


def quality(made: Sequence[Verdicts], true: Sequence[Sequence[bool | None]]) -> dict[str, Any]:
    """How good verdicts are, against those of the oracle on the same trees.

    `covered`: the share of the trees with a finished leaf that got a verdict. Of the judged leaves: `precision`, the
    share of right ones among those called right; `recall`, the share of the right ones that were called right;
    `agreement`, the share judged as the oracle does. `questions`: the share of the trees with a leaf called right in
    which one of these is right. None where there is nothing to divide by.
    """
    pairs = [
        (m, t)
        for ours, theirs in zip(made, true, strict=True)
        for m, t in zip(ours, theirs, strict=True)
        if m is not None
    ]
    finished = [any(t is not None for t in theirs) for theirs in true]
    judged = [any(m is not None for m in ours) for ours in made]
    called = [(ours, theirs) for ours, theirs in zip(made, true, strict=True) if any(ours)]
    hit = sum(any(m and t for m, t in zip(ours, theirs, strict=True)) for ours, theirs in called)
    right_called = sum(bool(m and t) for m, t in pairs)
    return {
        "leaves": len(pairs),
        "covered": _share(sum(judged), sum(finished)),
        "precision": _share(right_called, sum(bool(m) for m, _ in pairs)),
        "recall": _share(right_called, sum(bool(t) for theirs in true for t in theirs)),
        "agreement": _share(sum(m == bool(t) for m, t in pairs), len(pairs)),
        "questions": _share(hit, len(called)),
    }


def searched_leaves(tree: Tree) -> list[int]:
    """The finished leaves that the search found, without completions that a labelling rule asked for."""
    return [node for node in tree.finished() if tree.origin[node] != COMPLETION]


def answer_votes(tree: Tree, finished: Sequence[int]) -> dict[str, float]:
    """How much each answer weighs: copies times value, over all leaves that give it."""
    weights = leaf_weights(tree, {n: tree.raw_value[n] for n in finished}, "weighted")
    votes: dict[str, float] = {}
    for node in finished:
        key = answer_key(tree, node)
        votes[key] = votes.get(key, 0.0) + weights[node]
    return votes


def answer_key(tree: Tree, node: int) -> str:
    return get_task(tree.problem.task).key(tree.answer[node] or "")


def _said(tree: Tree, node: int) -> float:
    value = tree.raw_value[node]
    return -1.0 if value is None else value


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
