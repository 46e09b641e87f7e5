"""Early stop: whether the answer is settled before the search is at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable

from restmcts.search.nodes import LEAST_COVERED, path_value
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.tasks import Task
from restmcts.types import Tree

_ROUNDING = 1e-6


class Votes:
    """The votes of the finished leaves, counted as they come in, as `nodes.leaf_weights` will count them in the end.

    A leaf without a value is worth as much as the average one, which is known at the end only: between 0 and 1 until
    then, or exactly 1 where `scored` is false and nothing is ever scored.
    """

    def __init__(
        self, tree: Tree, settings: SearchSettings, task: Task, *, usual_rule: AnswerRule, scored: bool
    ) -> None:
        self._tree, self._settings, self._task = tree, settings, task
        self._rule = settings.answer_rule or usual_rule
        self._wanted = self._rule != "best" and (settings.stop_decided or settings.stop_lead is not None)
        self._unscored = (0.0, 1.0) if scored else (1.0, 1.0)
        self._by_samples, self._by_paths = _Tally(), _Tally()
        self._chances: dict[int, float] = {}
        """π(path) of what is at its end, finished or dead; NaN where the engine does not tell"""
        self._over = self._covered = 0.0
        """their sum, and that of the finished ones"""

    def count(self, nodes: Iterable[int]) -> None:
        """Take in what is new about `nodes`: that they are there, their value, further copies."""
        tree = self._tree
        for node in nodes:
            if not self._wanted or tree.status[node] == "open":
                continue
            chance = self._chance(node)
            if tree.status[node] != "finished":
                continue
            key = self._task.key(tree.answer[node] or "")
            low, high = self._bounds(node)
            self._by_paths.put(node, key, low * chance, high * chance)
            if self._rule == "majority":
                low = high = 1.0
            self._by_samples.put(node, key, low * tree.copies[node], high * tree.copies[node])

    def decided(self, left: int) -> bool:
        """Whether the leading answer is out of reach, by the rules that are switched on.

        `left` is how many more samples may finish, each of weight 1 at most. With the rule `posterior` all of them
        together weigh no more than the probability that the policy says something that was not found yet; advice would
        make that another probability at every step, so that with a self-critic nothing is known of it.
        """
        settings, most, lead = self._settings, float(left), self._by_samples.lead()
        if self._rule == "posterior" and not math.isnan(self._covered):  # else it is `weighted` in the end
            if self._covered < LEAST_COVERED:
                return False
            most = math.inf if settings.self_critic else 1.0 - self._over
            lead = self._by_paths.lead()
        enough = settings.stop_lead
        return (settings.stop_decided and lead > most + _ROUNDING) or (
            enough is not None and lead >= enough - _ROUNDING
        )

    def _bounds(self, leaf: int) -> tuple[float, float]:
        """The least and the most that V may say of the path in the end; steps without a value may still get one."""
        tree, how = self._tree, self._settings.step_aggregation
        steps = [leaf] if how == "last" else tree.nodes_to(leaf)
        value = None if any(tree.raw_value[n] is None for n in steps) else path_value(tree, leaf, how)
        return self._unscored if value is None else (value, value)

    def _chance(self, node: int) -> float:
        """π(path), added to the sums when it is first asked for."""
        if node not in self._chances:
            logs = [self._tree.logprob[n] for n in self._tree.nodes_to(node)]
            chance = math.exp(sum(log for log in logs if log is not None)) if None not in logs else math.nan
            self._chances[node] = chance
            self._over += 0.0 if math.isnan(chance) else chance
            self._covered += chance if self._tree.status[node] == "finished" else 0.0
        return self._chances[node]


class _Tally:
    """For each answer the least and the most votes that it has."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[float, float]] = {}
        self._least: dict[str, float] = {}
        self._most: dict[str, float] = {}

    def put(self, leaf: int, answer: str, least: float, most: float) -> None:
        """What a leaf counts for its answer, in place of what it counted before."""
        old_least, old_most = self._leaves.get(leaf, (0.0, 0.0))
        self._leaves[leaf] = least, most
        self._least[answer] = self._least.get(answer, 0.0) + least - old_least
        self._most[answer] = self._most.get(answer, 0.0) + most - old_most

    def lead(self) -> float:
        """How far the leading answer is ahead of every other at least; 0 without an answer."""
        if not self._least:
            return 0.0
        leader = max(self._least, key=self._least.__getitem__)
        return self._least[leader] - max((most for key, most in self._most.items() if key != leader), default=0.0)
