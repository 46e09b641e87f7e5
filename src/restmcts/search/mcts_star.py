"""MCTS*: tree search over reasoning steps, guided by a process reward model (ReST-MCTS*, Algorithm 2).

Each iteration selects an open leaf by value and visits, lets the policy criticise it (a setting), expands it, rolls its
best child out greedily, and backs the values up to the root. Departures from the published code, all deliberate:

- only an answer finishes a node; finished and dead branches are closed and never selected again;
- the steps of a rollout are nodes of the tree, so nothing that was generated is lost;
- what V said (`raw_value`) is kept apart from what search backed up (`value`), and a node V could not score has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from restmcts.search.nodes import Phase, Search, add_samples, ask_all, conclude, new_tree, note_failure, score_nodes
from restmcts.search.settings import SearchSettings
from restmcts.search.votes import Votes
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import (
    Answer,
    Ask,
    BudgetExhausted,
    Critique,
    Problem,
    Proposals,
    Propose,
    Reply,
    Request,
    Tree,
    Verdict,
)

STATE_THE_ANSWER = "The solution is complete: state the final answer."
"""the advice for the next step when the self-critic sees the end of inference but no answer was stated"""
_FAILURES_IN_A_ROW = 3


Asking = tuple[Phase[None], Request]
"""an iteration in flight, and what it asks"""


def mcts_star(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Search `problem`; returns its tree.

    `tree.stop` says why it ended: `threshold` (a finished node is worth at least l), `exhausted` (nothing open is
    left), `decided` (early stop, a setting), `iterations`, `budget`, or `failed` (policy or value model failed three
    times in a row).
    """
    search = _MctsStar(new_tree(problem, settings, seed, "mcts_star"), settings, task)
    try:
        search.tree.stop = yield from search.run()
    except BudgetExhausted:
        search.tree.stop = "budget"
    return conclude(search.tree, settings, task, usual_rule="posterior")


class _MctsStar:
    """One search: its tree, and per node whether it was expanded, whether it is closed, and what is in flight there.

    A node is closed when there is nothing left to search at or below it: it is finished or dead, or it was expanded and
    all its children are closed. A node that a rollout went through has a child but is a leaf until it is expanded.

    With `parallel` > 1 so many iterations are in flight. They go in step: what all of them ask is yielded at once, the
    replies are taken in the order of the iterations, and one that ends makes room for the next. So the tree depends on
    that number, and not on which reply arrives first. Iterations in flight repel others by virtual loss.
    """

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
        self.votes = Votes(tree, settings, task, usual_rule="posterior", scored=True)

    def run(self) -> Generator[Ask, Answer, str]:
        """All iterations; returns why the search ended."""
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
        settings = self.settings
        if self.solved:
            return "threshold"
        if self.closed[0] and not flying:
            return "exhausted"
        if max(self.failures.values(), default=0) >= _FAILURES_IN_A_ROW:
            return "failed"
        left = settings.iterations - self.ended
        if left and self.votes.decided(left * _most_votes(settings)):
            return "decided"
        return None if left else "iterations"

    def iterate(self, leaf: int, iteration: int) -> Phase[None]:
        """One iteration of Algorithm 2, from a selected leaf on."""
        way = [0, *self.tree.nodes_to(leaf)]
        self.fly(way, 1)
        self.growing.add(leaf)
        advice = yield from self.critique(leaf)
        child = yield from self.expand(leaf, advice, iteration)
        self.growing.discard(leaf)
        if child is not None and not self.solved:
            self.fly([child], 1)
            yield from self.simulate(child, iteration)
            self.fly([child], -1)
        self.fly(way, -1)
        self.back_up(leaf)

    # ------------------------------------------------------------------ the phases of Algorithm 2

    def select(self) -> int | None:
        """From the root to an open leaf, at each node by argmax of v + ε·sqrt(ln N_parent / N_child).

        Children not visited yet come first, the one with the highest value before the others. None when all that is
        open is being expanded.
        """
        ways = [0]
        while ways:
            node = ways.pop()
            if not self.expanded[node]:
                if node not in self.growing:
                    return node
                continue
            # The best lies on top, the first of equals; the others are for when all below it is being expanded.
            best_first = sorted(self.open_children(node), key=self.preference, reverse=True)
            ways += best_first[::-1]
        return None

    def preference(self, child: int) -> tuple[bool, float]:
        """Virtual loss: an iteration in flight counts as a visit that found a value of 0."""
        tree, flying = self.tree, self.flying
        visits = tree.visits[child] + flying[child]
        if visits == 0:
            return True, self.value(child)
        parent = tree.parent[child]
        bonus = math.sqrt(math.log(tree.visits[parent] + flying[parent]) / visits)
        loss = (tree.visits[child] + 1) / (visits + 1)
        return False, self.value(child) * loss + self.settings.exploration * bonus

    def critique(self, leaf: int) -> Phase[str | None]:
        """The self-critic's advice for the next step. At the end of inference only the answer is left to be stated."""
        if leaf == 0 or not self.settings.self_critic:
            return None
        reply = yield Critique(self.tree.problem, self.tree.path(leaf), self.next_seed(), self.settings.critic_tokens)
        if not isinstance(reply, Verdict):
            self.failed("critique", reply)
            return None
        self.failures["critique"] = 0
        return STATE_THE_ANSWER if reply.solved else reply.advice

    def expand(self, leaf: int, advice: str | None, iteration: int) -> Phase[int | None]:
        """b next steps, scored by V; returns the best open child, those an earlier rollout left included."""
        made = yield from self.grow(leaf, self.settings.branch, advice, "expand", iteration)
        if not made:
            return None
        self.expanded[leaf] = True
        self.close(leaf)
        return max(self.open_children(leaf), key=self.value, default=None)

    def simulate(self, child: int, iteration: int) -> Phase[None]:
        """Greedy rollout from n' for m steps, each the best of d: v_n' ← α·v_n' + (1−α)·v_max, N_n' ← N_n' + 1.

        v_max is the best value met, n' included. The rollout ends early at a finished step, or when all are dead.
        """
        tree, node = self.tree, child
        met = [tree.raw_value[child]]
        for _ in range(self.settings.rollout_steps):
            made = yield from self.grow(node, self.settings.rollout_branch, None, "rollout", iteration)
            alive = [n for n in made if tree.status[n] != "dead"]
            if not alive:
                break
            node = max(alive, key=self.value)
            met.append(tree.raw_value[node])
            if self.closed[node]:
                break
        values = [v for v in met if v is not None]
        if values:
            own, alpha = tree.value[child], self.settings.alpha
            tree.value[child] = max(values) if own is None else alpha * own + (1 - alpha) * max(values)
        tree.visits[child] += 1

    def back_up(self, leaf: int) -> None:
        """To the root: N ← N + 1 and v ← Σ N_i v_i / Σ N_i over the children, those without a value left out."""
        tree, node = self.tree, leaf
        while node >= 0:
            tree.visits[node] += 1
            known = [(tree.visits[c], v) for c in self.tree.children(node) if (v := tree.value[c]) is not None]
            total = sum(visits for visits, _ in known)
            if total:
                tree.value[node] = sum(visits * v for visits, v in known) / total
            node = tree.parent[node]

    # ------------------------------------------------------------------ what the phases are made of

    def grow(self, node: int, count: int, advice: str | None, origin: str, iteration: int) -> Phase[list[int]]:
        """Ask for `count` steps after `node`, make nodes of them and have them scored; returns the nodes they are."""
        tree, settings = self.tree, self.settings
        path, seed = tree.path(node), self.next_seed()
        warm = settings.temperature
        if origin == "rollout" and settings.rollout_temperature is not None:
            warm = settings.rollout_temperature
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
        answered = yield from score_nodes(tree, made)
        self.failures["score"] = 0 if answered else self.failures["score"] + 1
        for n in made:
            if tree.status[n] == "finished":
                tree.visits[n] = 1  # it is never selected, and what V says of it counts in the backup
                self.solved |= (v := tree.raw_value[n]) is not None and v >= settings.threshold
        self.votes.count(made)
        return made

    def close(self, node: int) -> None:
        """Close `node` and its ancestors as far as nothing is left to search below them."""
        while node >= 0 and self.expanded[node] and all(self.closed[c] for c in self.tree.children(node)):
            self.closed[node] = True
            node = self.tree.parent[node]

    def open_children(self, node: int) -> list[int]:
        return [child for child in self.tree.children(node) if not self.closed[child]]

    def fly(self, way: Sequence[int], one: int) -> None:
        """One more (1) or one fewer (−1) iteration in flight through each node of `way`."""
        for node in way:
            self.flying[node] += one

    def reopen(self, node: int) -> None:
        """Open `node` and its ancestors again: a rollout found something below what others in flight had closed."""
        while node >= 0 and self.closed[node]:
            self.closed[node] = False
            node = self.tree.parent[node]

    def value(self, node: int) -> float:
        """The value to choose by. Where V failed to give one, the parent's: the average of its siblings, not 0."""
        while (value := self.tree.value[node]) is None:
            node = self.tree.parent[node]
        return value

    def next_seed(self) -> int:
        self.calls += 1
        return derive_seed(self.tree.seed, self.calls)

    def failed(self, what: str, reply: Reply) -> None:
        self.failures[what] += 1
        note_failure(self.tree, what, reply)


def _most_votes(settings: SearchSettings) -> int:
    """How many finished samples one iteration can make. A rollout that takes single samples ends at the first."""
    steps = min(settings.rollout_steps, settings.max_depth)
    return settings.branch + (min(steps, 1) if settings.rollout_branch == 1 else settings.rollout_branch * steps)
