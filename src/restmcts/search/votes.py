"""Early stop: whether the answer is settled before the search is at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable

from restmcts.search.nodes import LEAST_COVERED
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.tasks import Task
from restmcts.types import Tree


class Votes:
    """The votes of the finished leaves, counted as they come in, as `nodes.conclude` will count them in the end.

    A leaf without a value votes like the average one, which is known at the end only: between 0 and 1 until then, or
    exactly 1 where `scored` is false and nothing is ever scored. The rule `best` has no votes and is never decided.
    """

    def __init__(
        self, tree: Tree, settings: SearchSettings, task: Task, *, usual_rule: AnswerRule, scored: bool
    ) -> None:
        self._tree, self._settings, self._task = tree, settings, task
        self._rule = settings.answer_rule or usual_rule
        self._unscored = (0.0, 1.0) if scored else (1.0, 1.0)
        self._counted: dict[int, tuple[str, float, float]] = {}
        self._least: dict[str, float] = {}
        self._most: dict[str, float] = {}
        self._ended: dict[int, float] = {}
        """the policy's probability of each leaf that ended, dead ones included; with the rule `posterior`"""
        self._wanted = self._rule != "best" and (settings.stop_decided or settings.stop_lead is not None)

    def count(self, nodes: Iterable[int]) -> None:
        """Take in what is new about `nodes`: that they ended, their value, further copies."""
        tree = self._tree
        for node in nodes:
            if not self._wanted or tree.status[node] == "open":
                continue
            if self._rule == "posterior":
                self._ended[node] = self._chance(node)
            if tree.status[node] == "dead":
                continue
            key, old_least, old_most = self._counted.get(node) or (self._task.key(tree.answer[node] or ""), 0.0, 0.0)
            least, most = self._weight(node)
            self._counted[node] = key, least, most
            self._least[key] = self._least.get(key, 0.0) + least - old_least
            self._most[key] = self._most.get(key, 0.0) + most - old_most

    def decided(self, left: int) -> bool:
        """Whether the leading answer is out of reach, by the rules that are switched on.

        `left` is how many more samples may come in. Each votes with a weight of 1 at most; with the rule `posterior`,
        all together weigh no more than the probability that the policy says something that was not found yet.
        """
        if not self._least:
            return False
        if self._rule == "posterior" and not sum(self._ended[node] for node in self._counted) >= LEAST_COVERED:
            return False  # what the engine tells no probability of is NaN, and ends here too
        leader = max(self._least, key=self._least.__getitem__)
        second = max((votes for key, votes in self._most.items() if key != leader), default=0.0)
        lead, rule = self._least[leader] - second, self._settings.stop_lead
        open_votes = 1 - sum(self._ended.values()) if self._rule == "posterior" else left
        return (self._settings.stop_decided and lead > open_votes + 1e-6) or (rule is not None and lead >= rule - 1e-6)

    def _weight(self, node: int) -> tuple[float, float]:
        """The least and the most that a finished leaf may count in the end (see `nodes.leaf_weights`)."""
        copies = self._tree.copies[node]
        if self._rule == "majority":
            return copies, copies
        times = self._ended[node] if self._rule == "posterior" else copies
        value = self._tree.raw_value[node]
        low, high = self._unscored if value is None else (value, value)
        return low * times, high * times

    def _chance(self, node: int) -> float:
        """π(path) of a node; NaN where the engine does not tell."""
        logs = [self._tree.logprob[n] for n in self._tree.nodes_to(node)]
        return math.exp(sum(log for log in logs if log is not None)) if None not in logs else math.nan
