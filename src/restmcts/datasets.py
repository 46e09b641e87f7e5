"""Trees and their labels become rows to train on.

    trees ── verify ──► correct ── label_trees ──► labels ──┬─ policy_rows ──► what π imitates: correct traces
                                                            ├─ step_pairs ───► what π is to prefer to what
                                                            └─ value_rows ───► what V learns: every labelled node, once

`worked_policy_rows` and `worked_value_rows` make the same rows from worked solutions, for the warm start (D_S0, D_V0).
Everything here is plain Python over plain data: no tokenizer, no tensor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

from restmcts.errors import StoreError, TaskError
from restmcts.pairs import solution_pairs, step_pairs
from restmcts.rows import PolicyRow, PreferenceRow, TreeLabels, ValueRow, read_rows, write_rows
from restmcts.seeds import derive_seed
from restmcts.types import Problem, Tree
from restmcts.worked import worked_policy_rows, worked_value_rows

__all__ = [
    "PolicyRow",
    "PreferenceRow",
    "TreeLabels",
    "ValueRow",
    "label_trees",
    "policy_rows",
    "read_rows",
    "solution_pairs",
    "step_pairs",
    "value_rows",
    "verify",
    "worked_policy_rows",
    "worked_value_rows",
    "write_rows",
]

Pick = Literal["value", "random"]
At = tuple[int, int]
"""the number of a tree, and a node in it"""


# ---------------------------------------------------------------- trees to labels


class Grader(Protocol):
    """The part of `tasks.grade.Grader` that verifying needs."""

    def grade_many(self, pairs: list[tuple[Problem, str]]) -> list[bool]: ...


def verify(trees: Sequence[Tree], grader: Grader) -> list[list[bool | None]]:
    """Compare every finished leaf with the oracle: per tree and node True or False, None for all other nodes.

    Equal answers to the same problem are graded once. Raises TaskError for a tree whose problem has no answer.
    """
    wanted: dict[tuple[str, str, str], tuple[Problem, str]] = {}
    for tree in trees:
        for node in tree.finished():
            answer = tree.answer[node]
            if answer is not None:
                wanted.setdefault(_answer_key(tree.problem, answer), (tree.problem, answer))
    grades = dict(zip(wanted, grader.grade_many(list(wanted.values())), strict=True))
    verified: list[list[bool | None]] = []
    for tree in trees:
        correct: list[bool | None] = [None] * len(tree)
        for node in tree.finished():
            answer = tree.answer[node]
            if answer is not None:
                correct[node] = grades[_answer_key(tree.problem, answer)]
        verified.append(correct)
    return verified


def _answer_key(problem: Problem, answer: str) -> tuple[str, str, str]:
    if problem.answer is None:
        raise TaskError(f"problem {problem.id!r} has no answer, so its traces cannot be verified: give it one")
    return problem.id, problem.answer, answer


def label_trees(
    trees: Sequence[Tree],
    correct: Sequence[Sequence[bool | None]],
    *,
    rule: str = "rest-mcts",
    unsolved: Literal["zero", "drop"] = "zero",
    estimate: Literal["hard", "soft"] = "hard",
) -> list[TreeLabels]:
    """What verified trees say about their steps by one of `labels.RULES`, one record per tree.

    With `unsolved="drop"` a tree without a right leaf gets no labels. Raises ConfigError for an unknown rule, and for a
    tree that lacks what the rule needs.
    """
    from restmcts.labels import get_rule

    label, columns = get_rule(rule), list[list[float | None]]()
    records = []
    for tree, verdicts in zip(trees, correct, strict=True):
        if unsolved == "drop" and not any(verdicts):
            columns = [[None] * len(tree)] * 4
        else:
            labels = label(tree, verdicts, estimate)
            columns = [[_absent_unless_finite(x) for x in array] for array in (labels.m, labels.r, labels.w, labels.v)]
        records.append(TreeLabels(tree.problem.id, list(verdicts), *columns))
    return records


def _absent_unless_finite(x: Any) -> float | None:
    return float(x) if math.isfinite(x) else None


# ---------------------------------------------------------------- labels to rows


def policy_rows(
    trees: Sequence[Tree],
    labels: Sequence[TreeLabels],
    *,
    traces_per_question: int | None = None,
    pick: Pick = "value",
    seed: int = 0,
    round: int = 0,
) -> list[PolicyRow]:
    """The correct traces of each question, without duplicates, at most `traces_per_question` of them.

    Which ones: `pick="value"` the highest by the value model (shorter first among equals, unscored last), `"random"` a
    seeded draw that depends on the question alone. Rows come question by question, in order of first appearance.
    """
    found: dict[str, dict[tuple[str, ...], PolicyRow]] = {}
    for tree, record in _paired(trees, labels):
        rows = found.setdefault(tree.problem.id, {})
        for leaf, correct in enumerate(record.correct):
            if correct:
                nodes = tree.nodes_to(leaf)
                row = PolicyRow(**_trace(tree, nodes), value=tree.raw_value[leaf], round=round)
                rows.setdefault(tuple(text.strip() for text in row.steps), row)
    kept: list[PolicyRow] = []
    for problem_id, traces in found.items():
        candidates = list(traces.values())
        if pick == "value":
            candidates.sort(key=lambda row: (math.inf if row.value is None else -row.value, len(row.steps)))
        else:
            random.Random(derive_seed(seed, "policy_rows", problem_id)).shuffle(candidates)
        kept += candidates[:traces_per_question]
    return kept


def value_rows(
    trees: Sequence[Tree],
    labels: Sequence[TreeLabels],
    *,
    traces_per_question: int | None = None,
    hard_negatives: bool = False,
    seed: int = 0,
) -> list[ValueRow]:
    """One row per leaf of the labelled part of each tree; every labelled node is trained in exactly one of them.

    A prefix shared by several leaves carries its labels in the first row and None in the later ones. With
    `traces_per_question`, a seeded choice among a question's leaves, half right and half wrong where there are enough
    of both, so that a large tree does not outweigh the others; nodes only below leaves not chosen are then left out.
    With `hard_negatives` the wrong ones are not drawn: those come first that the value model took to be best.
    """
    leaves: dict[str, list[At]] = {}
    for index, (tree, record) in enumerate(_paired(trees, labels)):
        inner = {tree.parent[node] for node, v in enumerate(record.v) if v is not None}
        ends = [(index, node) for node, v in enumerate(record.v) if v is not None and node and node not in inner]
        leaves.setdefault(tree.problem.id, []).extend(ends)
    rows: list[ValueRow] = []
    for problem_id, candidates in leaves.items():
        tempting = (lambda at: trees[at[0]].raw_value[at[1]]) if hard_negatives else None
        trained: set[At] = set()
        for index, leaf in _half_and_half(
            candidates, lambda at: labels[at[0]].correct[at[1]], traces_per_question, seed, problem_id, tempting
        ):
            rows.append(_value_row(trees[index], labels[index], leaf, index, trained))
    return rows


def _value_row(tree: Tree, record: TreeLabels, leaf: int, index: int, trained: set[tuple[int, int]]) -> ValueRow:
    """The row of one leaf; marks its nodes in `trained`, whose members get no label."""
    nodes = tree.nodes_to(leaf)
    fresh = [(index, node) not in trained for node in nodes]
    trained.update((index, node) for node in nodes)
    return ValueRow(
        **_trace(tree, nodes),
        labels=[record.v[node] if new else None for node, new in zip(nodes, fresh, strict=True)],
        r=[record.r[node] if new else None for node, new in zip(nodes, fresh, strict=True)],
    )


def chosen_traces(tree: Tree, correct: Sequence[bool | None], *, count: int | None, seed: int) -> list[int]:
    """The finished leaves of `tree` that `value_rows` would choose, had the question this tree alone."""
    finished = [(0, node) for node, verdict in enumerate(correct) if verdict is not None]
    return [node for _, node in _half_and_half(finished, lambda at: correct[at[1]], count, seed, tree.problem.id)]


def _half_and_half(
    items: list[At],
    right: Callable[[At], bool | None],
    count: int | None,
    seed: int,
    problem_id: str,
    tempting: Callable[[At], float | None] | None = None,
) -> list[At]:
    """`count` of `items` drawn at random, as evenly as possible from right and wrong ones, in their given order.

    With `tempting`, of the wrong ones those of which it says most; those of which it says nothing come last.
    """
    if count is None or len(items) <= count:
        return items
    rng = random.Random(derive_seed(seed, "value_rows", problem_id))
    drawn = rng.sample(items, len(items))
    good = [item for item in drawn if right(item)]
    bad = [item for item in drawn if not right(item)]
    if tempting is not None:
        bad.sort(key=lambda at: -1.0 if (said := tempting(at)) is None else said, reverse=True)
    n_good = min(len(good), max(count - count // 2, count - len(bad)))
    return sorted(good[:n_good] + bad[: count - n_good])


def _paired(trees: Sequence[Tree], labels: Sequence[TreeLabels]) -> Iterable[tuple[Tree, TreeLabels]]:
    if len(trees) != len(labels):
        raise StoreError(f"{len(labels)} label records for {len(trees)} trees: label the trees again")
    for tree, record in zip(trees, labels, strict=True):
        if record.id != tree.problem.id or len(record.v) != len(tree):
            raise StoreError(f"labels of {record.id!r} do not fit the tree of {tree.problem.id!r}: label it again")
        yield tree, record


def _trace(tree: Tree, nodes: Sequence[int]) -> dict[str, Any]:
    return {
        "problem_id": tree.problem.id,
        "question": tree.problem.question,
        "steps": [tree.text[node] for node in nodes],
        "step_ids": [tree.ids[node] for node in nodes],
        "tokenizer": tree.models.get("tokenizer"),
    }
