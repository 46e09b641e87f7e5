"""MCTS*: tree search over reasoning steps guided by a process reward model (ReST-MCTS*, Algorithm 2).

Each iteration selects an open leaf by value and visits, lets the policy criticise it (a setting), expands it, rolls the
best child out greedily and backs the values up. Departures from the published code, all deliberate: a node is finished
only by an answer; finished and dead branches are closed and never selected again; rollout steps are nodes; what the
value model said (`raw_value`) is kept apart from what search backed up (`value`).
"""

from __future__ import annotations

import math
from collections.abc import Generator

from restmcts.search.nodes import Phase, Search, add_samples, conclude, new_tree, score_nodes
from restmcts.search.settings import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Critique, Failed, Problem, Proposals, Propose, Reply, Request, Tree, Verdict

STATE_THE_ANSWER = "The solution is complete: state the final answer."
_CRITIC_TOKENS = 48
_FAILURES_IN_A_ROW = 3


def mcts_star(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Search `problem`; returns its tree.

    `tree.stop` says why it ended: `threshold` (a finished node was valued at least l), `exhausted` (nothing open is
    left), `iterations`, `budget`, or `failed` (the engine failed three times in a row).
    """
    search = _MctsStar(new_tree(problem, settings, seed, "mcts_star"), settings, task)
    try:
        yield from search.run()
    except BudgetExhausted:
        search.tree.stop = "budget"
    return conclude(search.tree, settings.answer_rule, task)


class _MctsStar:
    """The state of one search: its tree, each node's children, and which branches are closed."""

    def __init__(self, tree: Tree, settings: SearchSettings, task: Task) -> None:
        self.tree = tree
        self.settings = settings
        self.task = task
        self.children: list[list[int]] = [[]]
        self.closed: list[bool] = [False]
        self.calls = 0
        self.failures = 0

    def run(self) -> Phase:
        tree = self.tree
        for iteration in range(1, self.settings.iterations + 1):
            if self.closed[0]:
                tree.stop = "exhausted"
                return
            leaf = self.select()
            advice = (yield from self.critique(leaf)) if self.settings.self_critic and leaf else None
            best = yield from self.expand(leaf, advice, iteration)
            if best is not None:
                yield from self.simulate(best, iteration)
            self.back_up(leaf)
            if self.failures >= _FAILURES_IN_A_ROW:
                tree.stop = "failed"
                return
            if any((v := tree.raw_value[n]) is not None and v >= self.settings.threshold for n in tree.finished()):
                tree.stop = "threshold"
                return
        tree.stop = "exhausted" if self.closed[0] else "iterations"

    # ------------------------------------------------------------------ phases

    def select(self) -> int:
        """From the root down by argmax of v + ε·sqrt(ln N_parent / N_child) over open branches, to a leaf.

        Unvisited children come first, the one with the highest value before the others.
        """
        node = 0
        while self.children[node]:
            open_children = [c for c in self.children[node] if not self.closed[c]]
            node = max(open_children, key=lambda c: self.selection_value(c, node))
        return node

    def selection_value(self, child: int, parent: int) -> tuple[bool, float]:
        visits = self.tree.visits[child]
        if visits == 0:
            return True, self.value(child)
        bonus = math.sqrt(math.log(max(self.tree.visits[parent], 1)) / visits)
        return False, self.value(child) + self.settings.exploration * bonus

    def critique(self, leaf: int) -> Generator[Request, Reply, str | None]:
        """The self-critic: advice for the next step. End of inference means that only the answer is to be stated."""
        reply = yield Critique(self.tree.problem, self.tree.path(leaf), self.seed(), _CRITIC_TOKENS)
        if isinstance(reply, Verdict):
            return STATE_THE_ANSWER if reply.solved else reply.advice
        self.failed("critique", reply)
        return None

    def expand(self, leaf: int, advice: str | None, iteration: int) -> Generator[Request, Reply, int | None]:
        """b next steps, each scored by V; returns the best child that is open, if any."""
        nodes = yield from self.grow(leaf, self.settings.branch, advice, "expand", iteration)
        return self.best_open(nodes)

    def simulate(self, child: int, iteration: int) -> Phase:
        """Greedy rollout: m times the best of d next steps; v_n' ← α·v_n' + (1−α)·v_max and N_n' += 1."""
        node, v_max = child, self.value(child)
        for _ in range(self.settings.rollout_steps):
            nodes = yield from self.grow(node, self.settings.rollout_branch, None, "rollout", iteration)
            v_max = max([v_max, *(v for n in nodes if (v := self.tree.raw_value[n]) is not None)])
            following = self.best_open(nodes)
            if following is None:
                break
            node = following
        alpha = self.settings.alpha
        self.tree.value[child] = alpha * self.value(child) + (1 - alpha) * v_max
        self.tree.visits[child] += 1

    def back_up(self, leaf: int) -> None:
        """To the root: N += 1 and v = Σ N_i v_i / Σ N_i over the children that were visited."""
        tree, node = self.tree, leaf
        while node >= 0:
            tree.visits[node] += 1
            visited = [(tree.visits[c], v) for c in self.children[node] if (v := tree.value[c]) is not None]
            total = sum(n for n, _ in visited)
            if total:
                tree.value[node] = sum(n * v for n, v in visited) / total
            node = tree.parent[node]

    # ------------------------------------------------------------------ helpers

    def grow(
        self, node: int, n: int, advice: str | None, origin: str, iteration: int
    ) -> Generator[Request, Reply, list[int]]:
        """Propose n steps after `node`, add them to the tree and score them; returns the nodes they are."""
        settings, tree = self.settings, self.tree
        reply = yield Propose(
            tree.problem, tree.path(node), n, self.seed(), settings.temperature, settings.step_tokens, advice
        )
        if not isinstance(reply, Proposals):
            self.failed("propose", reply)
            return []
        self.failures = 0
        known = len(tree)
        nodes = add_samples(tree, node, reply, settings, self.task, origin=origin, iteration=iteration)
        for new in range(known, len(tree)):
            self.children.append([])
            self.children[node].append(new)
            self.closed.append(tree.status[new] != "open")
        yield from score_nodes(tree, nodes)
        for new in range(known, len(tree)):
            if tree.status[new] == "finished":  # as good as visited: it is never selected
                tree.visits[new] = 1
        self.close(node)
        return nodes

    def close(self, node: int) -> None:
        """Close `node`, and its ancestors, where every child is closed: nothing is left to search below."""
        while node >= 0 and self.children[node] and all(self.closed[c] for c in self.children[node]):
            self.closed[node] = True
            node = self.tree.parent[node]

    def best_open(self, nodes: list[int]) -> int | None:
        return max((n for n in nodes if not self.closed[n]), key=self.value, default=None)

    def value(self, node: int) -> float:
        """The node's value; where V failed to give one, its nearest valued ancestor's."""
        while (value := self.tree.value[node]) is None:
            node = self.tree.parent[node]
        return value

    def seed(self) -> int:
        self.calls += 1
        return derive_seed(self.tree.seed, self.calls)

    def failed(self, what: str, reply: Reply) -> None:
        self.failures += 1
        self.tree.failures.append(f"{what}: {reply.reason if isinstance(reply, Failed) else 'unexpected reply'}")
