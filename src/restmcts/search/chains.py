"""Chains of thought: one, or many that vote. No value model is asked."""

from __future__ import annotations

from restmcts.search.nodes import Search, add_samples, ask_all, conclude, new_tree, note_failure
from restmcts.search.settings import SearchSettings
from restmcts.search.votes import Votes
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Problem, Proposals, Propose, Tree


def cot(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """One chain of thought (Wei et al. 2022); greedy at temperature 0."""
    return _chains("cot", 1, problem, settings, seed, task)


def sample(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """`settings.samples` independent chains in one tree, equal prefixes merged; the answer is the majority's.

    This is self-consistency (Wang et al. 2023), and the data that a first value model can be made from.
    """
    return _chains("sample", settings.samples, problem, settings, seed, task)


def _chains(method: str, count: int, problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Depth first, so that a budget that runs out leaves whole chains and not many beginnings.

    Chains that agreed so far lie on one node; one request draws the next step of each. Sample i after a path is drawn
    with a seed that depends on `seed`, the path and i alone, so that the first N chains of more are those N chains.
    `tree.stop` is `done`, `budget`, `decided` when the chains left cannot change the answer (a setting), or `failed`
    when a failure cut a chain short.
    """
    tree = new_tree(problem, settings, seed, method)
    votes = Votes(tree, settings, task, usual_rule="majority", scored=False)
    waiting: list[Chains] = []
    begun = spent = iteration = 0
    gone_on = {0: 0}
    """how many of the chains on each node were sent on from there"""
    try:
        while waiting or begun < count:
            if votes.decided(count - begun + sum(chains for _, _, chains in waiting)):
                tree.stop = "decided"
                break
            if not waiting:
                wave = _wave(count - begun, begun, spent, settings.budget_tokens)
                waiting.append((0, begun, wave))
                begun += wave
            going = [waiting.pop() for _ in range(min(settings.parallel, len(waiting)))]
            replies = yield from ask_all([_next_step(tree, chains, settings) for chains in going])
            grown: list[Chains] = []
            for (node, first, chains), reply in zip(going, replies, strict=True):
                iteration += 1
                if isinstance(reply, Proposals):
                    spent += reply.usage.policy_tokens
                    made = add_samples(tree, node, reply, settings, task, origin="sample", iteration=iteration)
                    votes.count(made)
                    if 0 < (drawn := len(reply.samples)) < chains:  # a budget cut the request
                        waiting.append((node, first + drawn, chains - drawn))
                    for n in made:
                        if tree.status[n] == "open":
                            before, gone_on[n] = gone_on.get(n, 0), tree.copies[n]
                            grown.append((n, before, tree.copies[n] - before))
                elif reply is not None:
                    note_failure(tree, "propose", reply)
            if None in replies:
                raise BudgetExhausted
            waiting += reversed(grown)
        else:
            tree.stop = "failed" if tree.failures else "done"
    except BudgetExhausted:
        tree.stop = "budget"
    return conclude(tree, settings, task, usual_rule="majority")


Chains = tuple[int, int, int]
"""a node, and which of the chains on it go on from there: the first one's number, and how many"""


def _next_step(tree: Tree, chains: Chains, settings: SearchSettings) -> Propose:
    node, first, n = chains
    path = tree.path(node)
    seed = derive_seed(tree.seed, *(step.text for step in path))
    return Propose(tree.problem, path, n, seed, settings.temperature, settings.step_tokens, first=first)


def _wave(left: int, begun: int, spent: int, budget: int | None) -> int:
    """How many of the chains that are left to begin at once: all of them, where no budget of tokens is set.

    Else half as many as the rest of the budget pays for, going by what those before have cost, and one at first: begun
    all at once, they would spend it on beginnings.
    """
    if budget is None:
        return left
    return min(left, max(1, (budget - spent) * begun // (2 * spent))) if spent else 1
