"""Early stop: whether the answer is settled before the search is at its end."""

from __future__ import annotations

from collections.abc import Iterable

from restmcts.search.settings import SearchSettings
from restmcts.tasks import Task
from restmcts.types import Tree


class Votes:
    """The votes of the finished leaves, counted as they come in, as `nodes.conclude` will count them in the end.

    A leaf without a value votes like the average one, which is known at the end only: between 0 and 1 until then, or
    exactly 1 where `scored` is false and nothing is ever scored.
    """

    def __init__(self, tree: Tree, settings: SearchSettings, task: Task, *, scored: bool) -> None:
        self._tree, self._settings, self._task = tree, settings, task
        self._unscored = (0.0, 1.0) if scored else (1.0, 1.0)
        self._counted: dict[int, tuple[str, float, float]] = {}
        self._least: dict[str, float] = {}
        self._most: dict[str, float] = {}
        self._wanted = settings.answer_rule == "vote" and (settings.stop_decided or settings.stop_lead is not None)

    def count(self, nodes: Iterable[int]) -> None:
        """Take in what is new about `nodes`: that they finished, their value, further copies."""
        tree = self._tree
        for node in nodes:
            if not self._wanted or tree.status[node] != "finished":
                continue
            key, old_least, old_most = self._counted.get(node) or (self._task.key(tree.answer[node] or ""), 0.0, 0.0)
            value = tree.raw_value[node]
            low, high = self._unscored if value is None else (value, value)
            least, most = low * tree.copies[node], high * tree.copies[node]
            self._counted[node] = key, least, most
            self._least[key] = self._least.get(key, 0.0) + least - old_least
            self._most[key] = self._most.get(key, 0.0) + most - old_most

    def decided(self, left: int) -> bool:
        """Whether the leading answer is out of reach, by the rules that are switched on.

        `left` is how many more votes may come in, each of weight 1 at most.
        """
        if not self._least:
            return False
        leader = max(self._least, key=self._least.__getitem__)
        second = max((votes for key, votes in self._most.items() if key != leader), default=0.0)
        lead, rule = self._least[leader] - second, self._settings.stop_lead
        return (self._settings.stop_decided and lead > left + 1e-6) or (rule is not None and lead >= rule - 1e-6)
