"""Chains of thought: one, or many that vote. No value model is asked."""

from __future__ import annotations

from restmcts.search.nodes import Search, add_samples, conclude, new_tree, note_failure
from restmcts.search.settings import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Problem, Proposals, Propose


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

    Chains that agreed so far lie on one node; one request draws the next step of each. `tree.stop` is `done`, `budget`,
    or `failed` when a chain was cut short by a failure.
    """
    tree = new_tree(problem, settings, seed, method)
    waiting = [(0, count)]
    requests = 0
    try:
        while waiting:
            node, chains = waiting.pop()
            requests += 1
            call = derive_seed(seed, requests)
            reply = yield Propose(problem, tree.path(node), chains, call, settings.temperature, settings.step_tokens)
            if not isinstance(reply, Proposals):
                note_failure(tree, "propose", reply)
                continue
            made = add_samples(tree, node, reply, settings, task, origin="sample", iteration=requests)
            waiting += [(n, tree.copies[n]) for n in reversed(made) if tree.status[n] == "open"]
        tree.stop = "failed" if tree.failures else "done"
    except BudgetExhausted:
        tree.stop = "budget"
    return conclude(tree, settings, task, usual_rule="majority")
