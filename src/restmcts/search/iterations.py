"""What Monte Carlo tree searches have in common: iterations, each from an open leaf, several in flight if wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from restmcts.search.nodes import Phase, add_samples, ask_all, note_failure
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.search.votes import Votes
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, BudgetExhausted, Proposals, Propose, Reply, Request, Tree

_FAILURES_IN_A_ROW = 3

Asking = tuple[Phase[None], Request]
"""an iteration in flight, and what it asks"""


class Iterations(ABC):
    """One search: its tree, and per node whether it was expanded, whether it is closed, and what is in flight there.

    A node is closed when there is nothing left to search at or below it: it is finished or dead, or it was expanded and
    all its children are closed. A node that a rollout went through has a child but is a leaf until it is expanded.

    With `parallel` > 1 so many iterations are in flight. They go in step: what all of them ask is yielded at once, the
    replies are taken in the order of the iterations, and one that ends makes room for the next. So the tree depends on
    that number, and not on which reply arrives first. Iterations in flight repel others by virtual loss.

    A method says what an iteration does, which child to go down to, and how many finished samples an iteration makes.
    """

    usual_rule: AnswerRule

    def __init__(self, tree: Tree, settings: SearchSettings, task: Task) -> None:
        self.tree = tree
        self.settings = settings
        self.task = task
        self.expanded = [False]
        self.closed = [False]
        self.flying = [0]
        """iterations in flight through each node: visits that are still to be counted"""
        self.growing: set[int] = set()
        """leaves being expanded"""
        self.solved = False
        self.spent = False
        self.calls = self.begun = self.ended = 0
        self.failures: Counter[str] = Counter()
        self.votes = Votes(tree, settings, task, usual_rule=self.usual_rule, scored=True)

    @abstractmethod
    def iterate(self, leaf: int, iteration: int) -> Phase[None]:
        """One iteration, from a selected leaf on."""

    @abstractmethod
    def preference(self, child: int) -> tuple[bool, float]:
        """What an open child is selected by; the greatest is."""

    def due(self, node: int) -> bool:
        """Whether a node that was expanded is to be expanded once more."""
        return False

    @abstractmethod
    def score(self, made: Sequence[int]) -> Phase[bool]:
        """Ask V what it is asked of new nodes; whether it could be asked."""

    @abstractmethod
    def most_votes(self) -> int:
        """How many finished samples one iteration can make."""

    @property
    def rollout_temperature(self) -> float:
        """Of the steps of rollouts: that of all steps, where nothing else is set."""
        own = self.settings.rollout_temperature
        return self.settings.temperature if own is None else own

    def run(self) -> Generator[Ask, Answer, str]:
        """All iterations; returns why the search ended: `threshold` (a finished node is worth at least l), `exhausted`
        (nothing open is left), `decided` (early stop, a setting), `iterations`, or `failed` (policy or value model
        failed three times in a row).
        """
        flight: list[Asking] = []
        while True:
            flight += self.begin(self.settings.parallel - len(flight))
            if not flight:
                raise BudgetExhausted
            replies = yield from ask_all([request for _, request in flight])
            before = self.ended
            flight = list(self.go_on(flight, replies))
            if self.ended > before and (reason := self.at_end(bool(flight))):
                return reason

    def begin(self, most: int) -> Iterator[Asking]:
        """Up to `most` new iterations, as far as there are open leaves, each with what it asks first."""
        while most and not self.spent and self.begun < self.settings.iterations:
            leaf = self.select()
            if leaf is None:
                return
            self.begun += 1
            most -= 1
            iteration = self.iterate(leaf, self.begun)
            yield iteration, next(iteration)

    def go_on(self, flight: list[Asking], replies: Sequence[Reply | None]) -> Iterator[Asking]:
        """Give each iteration its reply; those that go on, with what they ask next.

        One that the budget did not suffice for is cut off, and no other is begun.
        """
        for (iteration, _), reply in zip(flight, replies, strict=True):
            if reply is None:
                self.spent = True
                continue
            try:
                yield iteration, iteration.send(reply)
            except StopIteration:
                self.ended += 1

    def at_end(self, flying: bool) -> str | None:
        """Why the search is over, now that an iteration ended; None when it is not."""
        if self.solved:
            return "threshold"
        if self.closed[0] and not flying:
            return "exhausted"
        if max(self.failures.values(), default=0) >= _FAILURES_IN_A_ROW:
            return "failed"
        left = self.settings.iterations - self.ended
        if left and self.votes.decided(left * self.most_votes()):
            return "decided"
        return None if left else "iterations"

    def select(self) -> int | None:
        """From the root to an open leaf, at each node by argmax of the preference; the first of equals.

        None when all that is open is being expanded.
        """
        ways = [0]
        while ways:
            node = ways.pop()
            if node not in self.growing and (not self.expanded[node] or self.due(node)):
                return node
            if not self.expanded[node]:
                continue
            # The best lies on top; the others are for when all below it is being expanded.
            best_first = sorted(self.open_children(node), key=self.preference, reverse=True)
            ways += best_first[::-1]
        return None

    def grow(
        self,
        node: int,
        count: int,
        origin: str,
        iteration: int,
        *,
        temperature: float | None = None,
        advice: str | None = None,
    ) -> Phase[list[int]]:
        """Ask for `count` steps after `node`, make nodes of them and have them scored; returns the nodes they are."""
        tree, settings = self.tree, self.settings
        path, seed = tree.path(node), self.next_seed()
        warm = settings.temperature if temperature is None else temperature
        reply = yield Propose(tree.problem, path, count, seed, warm, settings.step_tokens, advice)
        if not isinstance(reply, Proposals):
            self.failed("propose", reply)
            return []
        self.failures["propose"] = 0
        known = len(tree)
        made = add_samples(tree, node, reply, settings, self.task, origin=origin, iteration=iteration)
        for new in range(known, len(tree)):
            self.expanded.append(False)
            self.flying.append(0)
            self.closed.append(tree.status[new] != "open")
            if not self.closed[new]:
                self.reopen(node)
        answered = yield from self.score(made)
        self.failures["score"] = 0 if answered else self.failures["score"] + 1
        for n in made:
            if tree.status[n] == "finished":
                self.solved |= (v := tree.raw_value[n]) is not None and v >= settings.threshold
        self.votes.count(made)
        return made

    def close(self, node: int) -> None:
        """Close `node` and its ancestors as far as nothing is left to search below them."""
        while node >= 0 and self.expanded[node] and all(self.closed[c] for c in self.tree.children(node)):
            self.closed[node] = True
            node = self.tree.parent[node]

    def reopen(self, node: int) -> None:
        """Open `node` and its ancestors again: a rollout found something below what others in flight had closed."""
        while node >= 0 and self.closed[node]:
            self.closed[node] = False
            node = self.tree.parent[node]

    def open_children(self, node: int) -> list[int]:
        return [child for child in self.tree.children(node) if not self.closed[child]]

    def fly(self, way: Sequence[int], one: int) -> None:
        """One more (1) or one fewer (−1) iteration in flight through each node of `way`."""
        for node in way:
            self.flying[node] += one

    def next_seed(self) -> int:
        self.calls += 1
        return derive_seed(self.tree.seed, self.calls)

    def failed(self, what: str, reply: Reply) -> None:
        self.failures[what] += 1
        note_failure(self.tree, what, reply)
