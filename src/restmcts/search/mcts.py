"""Plain Monte Carlo tree search: nothing guides it but the policy's own probabilities and how its rollouts ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

from restmcts.search.iterations import Iterations
from restmcts.search.nodes import Phase, Search, finish, new_tree, path_value, score_endings
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.tasks import Task
from restmcts.types import Problem


def mcts(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """MCTS with PUCT selection (Silver et al. 2017, Nature 550) and true rollouts; returns its tree.

    Each iteration goes down to a leaf, expands it by b next steps, and has the policy write the solution to its end
    from one of them. V is asked for endings only; without an answer they are worth 0. Every ending is backed up to the
    root: N ← N + 1, and Q is the mean of what the endings below were worth (`visits` and `value` of the tree). See
    `Iterations.run` for why the search may end; a spent budget ends it too.
    """
    tree = new_tree(problem, settings, seed, "mcts")
    search = _Mcts(tree, settings, task)
    return finish(tree, search.run(), settings, task, usual_rule=search.usual_rule)


class _Mcts(Iterations):
    """Select, expand, simulate, back up."""

    usual_rule: AnswerRule = "weighted"

    def iterate(self, leaf: int, iteration: int) -> Phase[None]:
        way = [0, *self.tree.nodes_to(leaf)]
        self.fly(way, 1)
        self.growing.add(leaf)
        made = yield from self.grow(leaf, self.settings.branch, "expand", iteration)
        self.growing.discard(leaf)
        if made:
            self.expanded[leaf] = True
            self.close(leaf)
        for node in made:
            self.back_up(node)
        child = max(self.open_children(leaf), key=self.preference, default=None) if made else None
        if child is not None and not self.solved:
            self.fly([child], 1)
            yield from self.simulate(child, iteration)
            self.fly([child], -1)
        self.fly(way, -1)

    def preference(self, child: int) -> tuple[bool, float]:
        """Q + c·P·sqrt(N_parent) / (1 + N), with Q of the parent where nothing below the child ended yet.

        Virtual loss: an iteration in flight counts as a visit that found a value of 0.
        """
        tree, flying = self.tree, self.flying
        parent = tree.parent[child]
        found, visits = tree.visits[child], tree.visits[child] + flying[child]
        own = tree.value[child] if found else tree.value[parent]
        mean = (own or 0.0) * (max(found, 1) / max(visits, 1))
        around = math.sqrt(max(tree.visits[parent] + flying[parent], 1))
        return False, mean + self.settings.exploration * self.prior(child) * around / (1 + visits)

    def prior(self, child: int) -> float:
        """P: how likely the policy takes this step rather than one of its siblings.

        By the mean log-probability of a token, for otherwise short steps would seem likely. Where the engine tells no
        probabilities, by how often each step was sampled.
        """
        tree = self.tree
        siblings = tree.children(tree.parent[child])
        logs = {n: log / _length(tree.text[n], tree.ids[n]) for n in siblings if (log := tree.logprob[n]) is not None}
        shares = {n: math.exp(log) for n, log in logs.items()}
        if len(shares) < len(siblings) or not sum(shares.values()):
            shares = {n: float(tree.copies[n]) for n in siblings}
        return shares[child] / sum(shares.values())

    def simulate(self, child: int, iteration: int) -> Phase[None]:
        """From the child on, one step after the other as the policy says, until something ended."""
        node = child
        while self.tree.status[node] == "open":
            made = yield from self.grow(node, 1, "rollout", iteration, temperature=self.rollout_temperature)
            if not made:
                return
            node = made[0]
        self.back_up(node)

    def back_up(self, ending: int) -> None:
        """N ← N + 1 and Q ← Q + (worth − Q) / N, from the ending to the root. One V could not score says nothing."""
        tree, node = self.tree, ending
        if tree.status[ending] == "open":
            return
        how = self.settings.step_aggregation
        worth = 0.0 if tree.status[ending] == "dead" else path_value(tree, ending, how)
        if worth is None:
            return
        while node >= 0:
            tree.visits[node] += 1
            own = tree.value[node] if tree.visits[node] > 1 else None
            tree.value[node] = worth if own is None else own + (worth - own) / tree.visits[node]
            node = tree.parent[node]

    def score(self, made: Sequence[int]) -> Phase[bool]:
        """Endings only."""
        return score_endings(self.tree, made, self.settings)

    def most_votes(self) -> int:
        """A rollout ends once."""
        return self.settings.branch + 1


def _length(text: str, ids: Sequence[int] | None) -> int:
    """How many tokens a step has; words, where it is known by its text alone."""
    return max(len(text.split()) if ids is None else len(ids), 1)
