"""Chains of thought: one, or many that vote. No value model is asked."""

from __future__ import annotations

from restmcts.search.nodes import Search, add_samples, ask_all, conclude, new_tree, note_failure
from restmcts.search.settings import SearchSettings
from restmcts.search.votes import Votes
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
    `decided` when the chains left cannot change the answer (a setting), or `failed` when a failure cut a chain short.
    """
    tree = new_tree(problem, settings, seed, method)
    votes = Votes(tree, settings, task, usual_rule="majority", scored=False)
    waiting = [(0, count)]
    requests = 0
    try:
        while waiting and not votes.decided(sum(chains for _, chains in waiting)):
            going = [waiting.pop() for _ in range(min(settings.parallel, len(waiting)))]
            numbers = range(requests + 1, requests + len(going) + 1)
            requests += len(going)
            replies = yield from ask_all(
                [
                    Propose(
                        problem,
                        tree.path(node),
                        chains,
                        derive_seed(seed, number),
                        settings.temperature,
                        settings.step_tokens,
                    )
                    for (node, chains), number in zip(going, numbers, strict=True)
                ]
            )
            grown: list[tuple[int, int]] = []
            for (node, _), number, reply in zip(going, numbers, replies, strict=True):
                if isinstance(reply, Proposals):
                    made = add_samples(tree, node, reply, settings, task, origin="sample", iteration=number)
                    votes.count(made)
                    grown += [(n, tree.copies[n]) for n in made if tree.status[n] == "open"]
                elif reply is not None:
                    note_failure(tree, "propose", reply)
            if None in replies:
                raise BudgetExhausted
            waiting += reversed(grown)
        tree.stop = "decided" if waiting else "failed" if tree.failures else "done"
    except BudgetExhausted:
        tree.stop = "budget"
    return conclude(tree, settings, task, usual_rule="majority")
