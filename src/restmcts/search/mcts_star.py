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
from collections.abc import Generator

from restmcts.search.nodes import Search, add_samples, conclude, new_tree, note_failure, score_nodes
from restmcts.search.settings import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Critique, Problem, Proposals, Propose, Reply, Request, Tree, Verdict

STATE_THE_ANSWER = "The solution is complete: state the final answer."
"""the advice for the next step when the self-critic sees the end of inference but no answer was stated"""
_FAILURES_IN_A_ROW = 3


def mcts_star(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Search `problem`; returns its tree.

    `tree.stop` says why it ended: `threshold` (a finished node is worth at least l), `exhausted` (nothing open is
    left), `iterations`, `budget`, or `failed` (policy or value model failed three times in a row).
    """
    search = _MctsStar(new_tree(problem, settings, seed, "mcts_star"), settings, task)
    try:
        search.tree.stop = yield from search.run()
    except BudgetExhausted:
        search.tree.stop = "budget"
    return conclude(search.tree, settings, task, usual_rule="posterior")


class _MctsStar:
    """One search: its tree, and per node the children, whether it was expanded, and whether it is closed.

    A node is closed when there is nothing left to search at or below it: it is finished or dead, or it was expanded and
    all its children are closed. A node that a rollout went through has a child but is a leaf until it is expanded.
    """

    def __init__(self, tree: Tree, settings: SearchSettings, task: Task) -> None:
        self.tree = tree
        self.settings = settings
        self.task = task
        self.children: list[list[int]] = [[]]
        self.expanded = [False]
        self.closed = [False]
        self.solved = False
        self.calls = 0
        self.failures: Counter[str] = Counter()

    def run(self) -> Generator[Request, Reply, str]:
        """All iterations; returns why the search ended."""
        for iteration in range(1, self.settings.iterations + 1):
            leaf = self.select()
            advice = yield from self.critique(leaf)
            child = yield from self.expand(leaf, advice, iteration)
            if child is not None and not self.solved:
                yield from self.simulate(child, iteration)
            self.back_up(leaf)
            if self.solved:
                return "threshold"
            if self.closed[0]:
                return "exhausted"
            if max(self.failures.values(), default=0) >= _FAILURES_IN_A_ROW:
                return "failed"
        return "iterations"

    # ------------------------------------------------------------------ the phases of Algorithm 2

    def select(self) -> int:
        """From the root to an open leaf, at each node by argmax of v + ε·sqrt(ln N_parent / N_child).

        Children not visited yet come first, the one with the highest value before the others.
        """
        node = 0
        while self.expanded[node]:
            choices = [child for child in self.children[node] if not self.closed[child]]
            node = max(choices, key=self.preference)
        return node

    def preference(self, child: int) -> tuple[bool, float]:
        tree = self.tree
        if tree.visits[child] == 0:
            return True, self.value(child)
        bonus = math.sqrt(math.log(tree.visits[tree.parent[child]]) / tree.visits[child])
        return False, self.value(child) + self.settings.exploration * bonus

    def critique(self, leaf: int) -> Generator[Request, Reply, str | None]:
        """The self-critic's advice for the next step. At the end of inference only the answer is left to be stated."""
        if leaf == 0 or not self.settings.self_critic:
            return None
        reply = yield Critique(self.tree.problem, self.tree.path(leaf), self.next_seed(), self.settings.critic_tokens)
        if not isinstance(reply, Verdict):
            self.failed("critique", reply)
            return None
        self.failures["critique"] = 0
        return STATE_THE_ANSWER if reply.solved else reply.advice

    def expand(self, leaf: int, advice: str | None, iteration: int) -> Generator[Request, Reply, int | None]:
        """b next steps, scored by V; returns the best open child, those an earlier rollout left included."""
        made = yield from self.grow(leaf, self.settings.branch, advice, "expand", iteration)
        if not made:
            return None
        self.expanded[leaf] = True
        self.close(leaf)
        return max((child for child in self.children[leaf] if not self.closed[child]), key=self.value, default=None)

    def simulate(self, child: int, iteration: int) -> Generator[Request, Reply, None]:
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
            known = [(tree.visits[c], v) for c in self.children[node] if (v := tree.value[c]) is not None]
            total = sum(visits for visits, _ in known)
            if total:
                tree.value[node] = sum(visits * v for visits, v in known) / total
            node = tree.parent[node]

    # ------------------------------------------------------------------ what the phases are made of

    def grow(
        self, node: int, count: int, advice: str | None, origin: str, iteration: int
    ) -> Generator[Request, Reply, list[int]]:
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
            self.children.append([])
            self.children[node].append(new)
            self.expanded.append(False)
            self.closed.append(tree.status[new] != "open")
        answered = yield from score_nodes(tree, made)
        self.failures["score"] = 0 if answered else self.failures["score"] + 1
        for n in made:
            if tree.status[n] == "finished":
                tree.visits[n] = 1  # it is never selected, and what V says of it counts in the backup
                self.solved |= (v := tree.raw_value[n]) is not None and v >= settings.threshold
        return made

    def close(self, node: int) -> None:
        """Close `node` and its ancestors as far as nothing is left to search below them."""
        while node >= 0 and self.expanded[node] and all(self.closed[c] for c in self.children[node]):
            self.closed[node] = True
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
