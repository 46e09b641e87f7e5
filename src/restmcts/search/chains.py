"""Chains of thought: one, or many from which an answer is chosen."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, NamedTuple

from restmcts.search.nodes import Search, Wanted, finish, grow, new_tree, path_seed
from restmcts.search.settings import AnswerRule, SearchSettings
from restmcts.search.votes import Votes
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, Problem, Tree


def cot(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """One chain of thought (Wei et al. 2022, arXiv 2201.11903); greedy at temperature 0."""
    return _chains(new_tree(problem, settings, seed, "cot"), 1, settings, task, "majority")


def sample(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """`samples` independent chains in one tree, equal prefixes merged; the answer is the majority's.

    This is self-consistency (Wang et al. 2023, arXiv 2203.11171), and the data that a first value model can be made
    from. No value model is asked.
    """
    return _chains(new_tree(problem, settings, seed, "sample"), settings.samples, settings, task, "majority")


def best_of_n(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """The chains of `sample`; the answer is that of the one which V values highest.

    With an outcome reward model as V (Cobbe et al. 2021, arXiv 2110.14168) only whole solutions are scored
    (`step_aggregation: last`), with a process reward model (Lightman et al. 2023, arXiv 2305.20050) all their steps.
    """
    tree = new_tree(problem, settings, seed, "best_of_n")
    return _chains(tree, settings.samples, settings, task, "best", score="endings")


def weighted_vote(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """The chains of `sample`, each with a vote that weighs as much as V values it.

    Verifier-weighted self-consistency (Li et al. 2023, arXiv 2206.02336): the baseline to beat.
    """
    tree = new_tree(problem, settings, seed, "weighted_vote")
    return _chains(tree, settings.samples, settings, task, "weighted", score="endings")


def _chains(
    tree: Tree,
    count: int,
    settings: SearchSettings,
    task: Task,
    usual_rule: AnswerRule,
    score: Literal["nothing", "endings"] = "nothing",
) -> Search:
    votes = Votes(tree, settings, task, usual_rule=usual_rule, scored=score == "endings")
    return finish(tree, _draw(tree, count, settings, task, votes, score), settings, task, usual_rule=usual_rule)


class _Chains(NamedTuple):
    """Which of the chains that lie on a node go on from there: the first one's number, and how many."""

    node: int
    first: int
    chains: int


def _draw(
    tree: Tree, count: int, settings: SearchSettings, task: Task, votes: Votes, score: Literal["nothing", "endings"]
) -> Generator[Ask, Answer, str]:
    """Depth first, so that a budget that runs out leaves whole chains and not many beginnings.

    Chains that agreed so far lie on one node; one request draws the next step of each. Sample i after a path is drawn
    with a seed that depends on the tree's seed, the path and i alone, so that the first N chains of more are those N
    chains, and the same chains are drawn whatever the answer is chosen by. Returns `done`, `decided` when the chains
    left cannot change the answer (a setting), or `failed` when something could not be asked.
    """
    waiting: list[_Chains] = []
    begun = spent = 0
    gone_on = {0: 0}
    """how many of the chains on each node were sent on from there"""
    while waiting or begun < count:
        if votes.decided(count - begun + sum(chains for _, _, chains in waiting)):
            return "decided"
        if not waiting:
            wave = _wave(count - begun, begun, spent, settings.budget_tokens)
            waiting.append(_Chains(0, begun, wave))
            begun += wave
        going = [waiting.pop() for _ in range(min(settings.parallel, len(waiting)))]
        wanted = [Wanted(node, chains, path_seed(tree, node), first) for node, first, chains in going]
        further: list[_Chains] = []
        grown = yield from grow(tree, wanted, settings, task, origin="sample", score=score)
        for (node, first, chains), (made, drawn, tokens) in zip(going, grown, strict=True):
            spent += tokens
            votes.count(made)
            if 0 < drawn < chains:  # a budget cut the request
                waiting.append(_Chains(node, first + drawn, chains - drawn))
            for n in made:
                if tree.status[n] == "open":
                    before, gone_on[n] = gone_on.get(n, 0), tree.copies[n]
                    further.append(_Chains(n, before, tree.copies[n] - before))
        waiting += reversed(further)
    return "failed" if tree.failures else "done"


def _wave(left: int, begun: int, spent: int, budget: int | None) -> int:
    """How many of the chains that are left to begin at once: all of them, where no budget of tokens is set.

    Else half as many as the rest of the budget pays for, going by what those before have cost, and one at first: begun
    all at once, they would spend it on beginnings.
    """
    if budget is None:
        return left
    return min(left, max(1, (budget - spent) * begun // (2 * spent))) if spent else 1
