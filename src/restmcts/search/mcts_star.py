"""MCTS*: tree search over reasoning steps, guided by a process reward model (ReST-MCTS*, Algorithm 2).

Each iteration selects an open leaf by value and visits, lets the policy criticise it (a setting), expands it, rolls its
best child out greedily, and backs the values up to the root. Departures from the published code, all deliberate:

- only an answer finishes a node; finished and dead branches are closed and never selected again;
- the steps of a rollout are nodes of the tree, so nothing that was generated is lost;
- the search begins with the policy's likeliest solution, `greedy_first`;
- a rollout of single samples takes the likeliest steps, unless `rollout_temperature` says otherwise;
- with `widening`, a node gets further next steps as it is visited more often, so that no budget is bound to b of them;
- what V said (`raw_value`) is kept apart from what search backed up (`value`), and a node V could not score has none.

Each part can be taken away by a setting: `self_critic`, `rollout_steps: 0`, `rollout: random`, `backup: vanilla`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from restmcts.search.iterations import Iterations
from restmcts.search.nodes import Phase, Search, finish, new_tree, score_nodes
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, Critique, Problem, Tree, Verdict

STATE_THE_ANSWER = "The solution is complete: state the final answer."
"""the advice for the next step when the self-critic sees the end of inference but no answer was stated"""


def mcts_star(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Search `problem`; returns its tree. See `Iterations.run` for why it may end; a spent budget ends it too."""
    tree = new_tree(problem, settings, seed, "mcts_star")
    search = _MctsStar(tree, settings, task)
    return finish(tree, search.run(), settings, task, usual_rule=search.usual_rule)


class _MctsStar(Iterations):
    """The phases of Algorithm 2."""

    usual_rule: AnswerRule = "posterior"

    def __init__(self, tree: Tree, settings: SearchSettings, task: Task) -> None:
        super().__init__(tree, settings, task)
        self.likeliest: dict[int, int] = {}
        """node → the child that is the policy's likeliest next step, where it was asked for"""

    def run(self) -> Generator[Ask, Answer, str]:
        if self.settings.greedy_first is not False and self.settings.temperature > 0:
            yield from self.begin_greedily()
        return "threshold" if self.solved else (yield from super().run())

    def begin_greedily(self) -> Phase[None]:
        """What the policy would say without a search: its likeliest steps, from the root to their end.

        So the search starts with a whole solution, and is not behind greedy decoding when its budget is small.
        """
        node = 0
        while not self.closed[node]:
            made = yield from self.grow(node, 1, "greedy", 0, temperature=0.0)
            if not made:
                return
            self.likeliest[node] = made[0]
            node = made[0]

    def iterate(self, leaf: int, iteration: int) -> Phase[None]:
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

    def preference(self, child: int) -> tuple[bool, float]:
        """v + ε·sqrt(ln N_parent / N_child). Children not visited yet come first, by value.

        Virtual loss: an iteration in flight counts as a visit that found a value of 0.
        """
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
        """b next steps, scored by V, or fewer where there are some; returns the best open child not visited yet.

        Those that an earlier rollout left are among them.
        """
        count = min(max(self.lacking(leaf), 1), self.settings.branch) if self.expanded[leaf] else self.settings.branch
        made = yield from self.grow(leaf, count, "expand", iteration, advice=advice)
        if not made:
            return None
        self.expanded[leaf] = True
        if not self.widens:
            self.close(leaf)
        children = self.open_children(leaf)
        new = [child for child in children if not self.tree.visits[child]]
        return max(new or children, key=self.value, default=None)

    @property
    def widens(self) -> bool:
        """Whether nodes get further next steps: greedy ones would be the same again."""
        return self.settings.widening > 0 and self.settings.temperature > 0

    def due(self, node: int) -> bool:
        """Whether its visits entitle a node to further next steps, or nothing else is left to do below it."""
        return self.widens and (self.lacking(node) > 0 or not self.open_children(node))

    def lacking(self, node: int) -> int:
        """How many samples a node has fewer than b·N^w (Coulom 2007; Chaslot et al. 2008)."""
        samples = sum(self.tree.copies[child] for child in self.tree.children(node))
        entitled = float(self.settings.branch * self.tree.visits[node] ** self.settings.widening)
        return math.ceil(entitled) - samples

    def simulate(self, child: int, iteration: int) -> Phase[None]:
        """Rollout from n' for m steps: v_n' ← α·v_n' + (1−α)·v_max, N_n' ← N_n' + 1.

        Greedy, each step is the best of d, and v_max is the best value met, n' included. Random, each is what the
        policy says (d = 1), and the value of the last one takes the place of v_max. The rollout ends early at a
        finished step, or when all are dead.
        """
        tree, node, greedy = self.tree, child, self.settings.rollout == "greedy"
        width = self.settings.rollout_branch if greedy else 1
        met = [tree.raw_value[child]]
        for _ in range(self.settings.rollout_steps):
            made = yield from self.roll(node, width, iteration)
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
            found = max(values) if greedy else values[-1]
            tree.value[child] = found if own is None else alpha * own + (1 - alpha) * found
        tree.visits[child] += 1

    def roll(self, node: int, width: int, iteration: int) -> Phase[list[int]]:
        """The next step of a rollout. The likeliest is asked for once at each node: it would be the same again."""
        warm = self.rollout_temperature
        if warm == 0 and node in self.likeliest:
            return [self.likeliest[node]]
        made = yield from self.grow(node, width, "rollout", iteration, temperature=warm)
        if warm == 0 and made:
            self.likeliest[node] = made[0]
        return made

    @property
    def rollout_temperature(self) -> float:
        """Where nothing else is set, a greedy rollout of single samples (d = 1) takes the likeliest steps.

        There is nothing for it to choose among, and a step taken at random says less of what its node is worth.
        """
        settings = self.settings
        likeliest = settings.rollout == "greedy" and settings.rollout_branch == 1
        unset = settings.rollout_temperature is None
        return 0.0 if unset and likeliest else super().rollout_temperature

    def back_up(self, leaf: int) -> None:
        """To the root: N ← N + 1 and v ← Σ N_i v_i / Σ N_i over the children, those without a value left out.

        Vanilla, v is the mean of what the iterations through the node found: at the leaf, the value of its best child.
        """
        tree, node = self.tree, leaf
        found = max((v for c in tree.children(leaf) if (v := tree.value[c]) is not None), default=self.value(leaf))
        while node >= 0:
            tree.visits[node] += 1
            if self.settings.backup == "vanilla":
                own = tree.value[node] if tree.visits[node] > 1 else None
                tree.value[node] = found if own is None else own + (found - own) / tree.visits[node]
            else:
                known = [(tree.visits[c], v) for c in tree.children(node) if (v := tree.value[c]) is not None]
                total = sum(visits for visits, _ in known)
                if total:
                    tree.value[node] = sum(visits * v for visits, v in known) / total
            node = tree.parent[node]

    def score(self, made: Sequence[int]) -> Phase[bool]:
        """All of them. A finished one is never selected, and what V says of it counts in the backup."""
        answered = yield from score_nodes(self.tree, made)
        for n in made:
            if self.tree.status[n] == "finished":
                self.tree.visits[n] = 1
        return answered

    def value(self, node: int) -> float:
        """The value to choose by. Where V failed to give one, the parent's: the average of its siblings, not 0."""
        while (value := self.tree.value[node]) is None:
            node = self.tree.parent[node]
        return value

    def most_votes(self) -> int:
        """A rollout that takes single samples ends at the first that is finished."""
        settings = self.settings
        steps, width = min(settings.rollout_steps, settings.max_depth), settings.rollout_branch
        single = width == 1 or settings.rollout == "random"
        return settings.branch + (min(steps, 1) if single else width * steps)
