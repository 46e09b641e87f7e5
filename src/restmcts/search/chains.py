"""Methods without a value model in the loop: one chain of thought, and independent sampled chains."""

from __future__ import annotations

from restmcts.search.nodes import Phase, Search, add_samples, conclude, new_tree
from restmcts.search.settings import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Failed, Problem, Proposals, Propose, Tree


def cot(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Chain of thought (Wei et al. 2022), one chain; greedy at temperature 0."""
    return (yield from _chains(new_tree(problem, settings, seed, "cot"), settings, task, count=1))


def sample(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """`settings.samples` independent chains in one tree, equal prefixes merged; the answer is the majority's.

    This is self-consistency (Wang et al. 2023), and the breadth-first data that a first value model is made from.
    """
    return (yield from _chains(new_tree(problem, settings, seed, "sample"), settings, task, count=settings.samples))


def _chains(tree: Tree, settings: SearchSettings, task: Task, count: int) -> Search:
    try:
        # All first steps come from one request, so that their common prefix is computed once.
        reply = yield _propose(tree, 0, count, settings, derive_seed(tree.seed, 0))
        if isinstance(reply, Proposals):
            firsts = [add_samples(tree, 0, Proposals((s,)), settings, task, origin="sample")[0] for s in reply.samples]
            for chain, first in enumerate(firsts):
                yield from _follow(tree, first, chain, settings, task)
        elif isinstance(reply, Failed):
            tree.failures.append(f"propose: {reply.reason}")
        tree.stop = "done" if not tree.failures else "failed"
    except BudgetExhausted:
        tree.stop = "budget"
    return conclude(tree, settings.answer_rule, task)


def _follow(tree: Tree, node: int, chain: int, settings: SearchSettings, task: Task) -> Phase:
    """Take one chain from its first step to its end."""
    depth = 1
    while tree.status[node] == "open":
        reply = yield _propose(tree, node, 1, settings, derive_seed(tree.seed, chain + 1, depth))
        if isinstance(reply, Failed):
            tree.failures.append(f"propose: {reply.reason}")
            return
        assert isinstance(reply, Proposals)
        if not reply.samples:
            return
        node = add_samples(tree, node, reply, settings, task, origin="sample", iteration=chain)[0]
        depth += 1


def _propose(tree: Tree, node: int, n: int, settings: SearchSettings, seed: int) -> Propose:
    return Propose(tree.problem, tree.path(node), n, seed, settings.temperature, settings.step_tokens)
