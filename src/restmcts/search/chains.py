"""Chains of thought: one, or many from which an answer is chosen."""

from __future__ import annotations

from collections.abc import Generator

from restmcts.search.nodes import Search, Wanted, finish, grow, new_tree, path_seed
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.search.votes import Votes
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, Problem, Tree


def cot(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """One chain of thought (Wei et al. 2022, arXiv 2201.11903); greedy at temperature 0."""
    return _chains("cot", 1, "majority", False, problem, settings, seed, task)


def sample(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """`samples` independent chains in one tree, equal prefixes merged; the answer is the majority's.

    This is self-consistency (Wang et al. 2023, arXiv 2203.11171), and the data that a first value model can be made
    from. No value model is asked.
    """
    return _chains("sample", settings.samples, "majority", False, problem, settings, seed, task)


def best_of_n(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """The chains of `sample`; the answer is that of the one which V values highest.

    With an outcome reward model as V (Cobbe et al. 2021, arXiv 2110.14168) only whole solutions are scored
    (`step_aggregation: last`), with a process reward model (Lightman et al. 2023, arXiv 2305.20050) all their steps.
    """
    return _chains("best_of_n", settings.samples, "best", True, problem, settings, seed, task)


def weighted_vote(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """The chains of `sample`, each with a vote that weighs as much as V values it.

    Verifier-weighted self-consistency (Li et al. 2023, arXiv 2206.02336): the baseline to beat.
    """
    return _chains("weighted_vote", settings.samples, "weighted", True, problem, settings, seed, task)


def _chains(
    method: str,
    count: int,
    rule: AnswerRule,
    scored: bool,
    problem: Problem,
    settings: SearchSettings,
    seed: int,
    task: Task,
) -> Search:
    tree = new_tree(problem, settings, seed, method)
    votes = Votes(tree, settings, task, usual_rule=rule, scored=scored)
    return finish(tree, _draw(tree, count, votes, scored, settings, task), settings, task, usual_rule=rule)


def _draw(
    tree: Tree, count: int, votes: Votes, scored: bool, settings: SearchSettings, task: Task
) -> Generator[Ask, Answer, str]:
    """Depth first, so that a budget that runs out leaves whole chains and not many beginnings.

    Chains that agreed so far lie on one node; one request draws the next step of each. Its seed depends on the path, so
    fewer chains are always the first of more, and what is asked is the same whatever the answer is chosen by. Returns
    `done`, `decided` when the chains left cannot change the answer (a setting), or `failed` when a failure cut a chain
    short.
    """
    waiting = [(0, count)]
    while waiting and not votes.decided(sum(chains for _, chains in waiting)):
        going = [waiting.pop() for _ in range(min(settings.parallel, len(waiting)))]
        wanted = [Wanted(node, chains, path_seed(tree, node)) for node, chains in going]
        score = "endings" if scored else "nothing"
        made = yield from grow(tree, wanted, settings, task, origin="sample", score=score)
        new = [n for nodes in made for n in nodes]
        votes.count(new)
        waiting += [(n, tree.copies[n]) for n in reversed(new) if tree.status[n] == "open"]
    return "decided" if waiting else "failed" if tree.failures else "done"
