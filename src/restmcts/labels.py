"""The labelling rules: what a verified tree says about its steps, by the rule that a verifier is trained with.

    rest-mcts      process rewards inferred from the tree (ReST-MCTS*, Eqs. 1 and 2): the rule that is built for search
    orm            outcome reward model (Cobbe et al. 2021): only the last step of a finished trace, right or wrong
    math-shepherd  Math-Shepherd (Wang et al. 2023): a step is worth what completions of it come to
    omega-prm      OmegaPRM (Luo et al. 2024): right up to the first wrong step, found by binary search

All make the same `Labels` beside the tree, hence the same rows. v is what the value model learns and r = 1 − v but for
`rest-mcts`; m and w belong to `rest-mcts` alone. Only `rest-mcts` and `orm` can label any tree: the others read the
completions that the tree holds (see `search.completions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal

import numpy as np

from restmcts.errors import ConfigError
from restmcts.rewards import Floats, Labels, process_rewards
from restmcts.search.completions import COMPLETED, completions_of, drawn, own_chains, wanted
from restmcts.types import Tree

Estimate = Literal["hard", "soft"]
Verdicts = Sequence[bool | None]
"""per node: whether a finished leaf is right, None for all others (`datasets.verify`)"""
Rule = Callable[[Tree, Verdicts, Estimate], Labels]
"""a verified tree and hard or soft → its labels"""

_NAN = float("nan")


def rest_mcts(tree: Tree, correct: Verdicts, estimate: Estimate) -> Labels:
    """See `rewards.process_rewards`."""
    return process_rewards(tree.parent, correct, estimate=estimate)


def orm(tree: Tree, correct: Verdicts, estimate: Estimate) -> Labels:
    """v = 1 at right and 0 at wrong finished leaves, nothing anywhere else; `estimate` makes no difference."""
    return _of_values([_NAN if verdict is None else float(verdict) for verdict in correct])


def math_shepherd(tree: Tree, correct: Verdicts, estimate: Estimate) -> Labels:
    """v of a step from its completions: hard, 1 if any of them is right, else 0; soft, the share that is right.

    A completion that ended without an answer is wrong. A finished leaf is its own verdict. Labelled are the steps of
    the traces that were completed; in a tree of independent samples that was not, the steps of all its finished traces,
    by the chains that pass through them. A step whose completions a budget or a failure cut short has no label.

    Raises ConfigError for a tree that holds no completions.
    """
    if wanted(tree) is None and not own_chains(tree):
        raise _no_completions(tree, "math-shepherd", "its leaves are no independent samples")
    values = [_NAN] * len(tree)
    for node in _steps(tree, correct):
        share = _share(tree, node, correct)
        values[node] = share if estimate == "soft" or math.isnan(share) else float(share > 0)
    return _of_values(values)


def omega_prm(tree: Tree, correct: Verdicts, estimate: Estimate) -> Labels:
    """v of the steps of the traces that were looked into: hard, 1 before the first wrong step and 0 from it on.

    A step is right if a right answer lies anywhere below it; wrong if it is a wrong leaf, if all its completions are
    wrong, or if it follows a wrong step; and else, where a budget or a failure ended the search, nothing is known.
    Soft: the share of right completions, where the search looked, and the verdict at finished leaves.

    Raises ConfigError for a tree that was never completed.
    """
    if wanted(tree) is None:
        raise _no_completions(tree, "omega-prm", "it holds no completions")
    reached = [verdict is True for verdict in correct]
    for node in range(len(tree) - 1, 0, -1):
        reached[tree.parent[node]] |= reached[node]
    values = [_NAN] * len(tree)
    for node in sorted(_steps(tree, correct)):  # parents first
        share = _share(tree, node, correct)
        if estimate == "soft":
            values[node] = share
        elif reached[node]:
            values[node] = 1.0
        elif share == 0 or values[tree.parent[node]] == 0:
            values[node] = 0.0
    return _of_values(values)


RULES: dict[str, Rule] = {
    "rest-mcts": rest_mcts,
    "orm": orm,
    "math-shepherd": math_shepherd,
    "omega-prm": omega_prm,
}


def get_rule(name: str) -> Rule:
    """The rule of that name. Raises ConfigError with the nearest name when there is none."""
    if name not in RULES:
        near = get_close_matches(name, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(RULES)}"
        raise ConfigError(f"unknown labelling rule {name!r}; {hint}")
    return RULES[name]


# ---------------------------------------------------------------- parts


def _of_values(values: Sequence[float]) -> Labels:
    v: Floats = np.array(values, dtype=np.float64)
    nothing = np.full(len(v), _NAN)
    return Labels(nothing, 1.0 - v, nothing, v)


def _steps(tree: Tree, correct: Verdicts) -> set[int]:
    """The nodes of the traces that were completed; of all the tree's finished traces where none was."""
    made = tree.settings.get(COMPLETED)
    leaves = [n for n, verdict in enumerate(correct) if verdict is not None] if made is None else made["leaves"]
    return {node for leaf in leaves for node in tree.nodes_to(leaf)}


def _share(tree: Tree, node: int, correct: Verdicts) -> float:
    """The share of right ones among the completions of `node`; its verdict at a finished leaf. NaN if cut short."""
    verdict = correct[node]
    if verdict is not None:
        return float(verdict)
    number = drawn(tree, node)
    if number < max(1, wanted(tree) or 0):
        return _NAN
    return sum(tree.copies[end] for end in completions_of(tree, node) if correct[end]) / number


def _no_completions(tree: Tree, rule: str, why: str) -> ConfigError:
    return ConfigError(
        f"labels.rule = {rule!r} needs completions, and of the tree of {tree.problem.id!r} ({tree.method}) {why}; "
        "have a policy draw some with --policy"
    )
