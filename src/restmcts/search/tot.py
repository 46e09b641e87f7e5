"""Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601), with the value model as its state evaluator V.

A thought is a step and a state the path to it, worth what V says of that path. The answer is that of the best state.
"""

from __future__ import annotations

from collections.abc import Generator

from restmcts.search.nodes import Search, Wanted, best_of, finish, grow, new_tree, nodes_of, path_seed, path_value
from restmcts.search.settings import SearchSettings
from restmcts.search.votes import Votes
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, Problem, Tree


def tot_bfs(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Breadth first (Algorithm 1): from each of the b best states k next steps, of all of which b states are kept.

    k = `branch` and b = `samples` / k, so that a step costs as many samples as one of `beam`. Solutions need not be of
    one length here: a state that is finished stays one of the b for as long as no better ones come up, and the search
    is over when all of them are finished.
    """
    tree = new_tree(problem, settings, seed, "tot_bfs")
    return finish(tree, _bfs(tree, settings, task), settings, task, usual_rule="best")


def _bfs(tree: Tree, settings: SearchSettings, task: Task) -> Generator[Ask, Answer, str]:
    votes = Votes(tree, settings, task, usual_rule="best", scored=True)
    breadth = -(-settings.samples // settings.branch)
    states, deeper = [0], settings.max_depth
    while going := [n for n in states if tree.status[n] == "open"]:
        if votes.decided(breadth * settings.branch * deeper):
            return "decided"
        wanted = [Wanted(node, settings.branch, path_seed(tree, node)) for node in going]
        grown = yield from grow(tree, wanted, settings, task, origin="expand", score="steps")
        new = nodes_of(grown)
        votes.count(new)
        ended = [n for n in states if tree.status[n] == "finished"]
        states = best_of(tree, ended + new, breadth, settings)
        deeper -= 1
    return "failed" if tree.failures else "done"


def tot_dfs(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Depth first (Algorithm 2): k next steps, the best of which is followed first; from dead ends it turns back.

    k = `branch`. Steps that are worth no more than v_th = `prune` are not followed. The search ends when an answer is
    worth at least `threshold`, after `iterations` expansions, or when there is nothing left to follow.
    """
    tree = new_tree(problem, settings, seed, "tot_dfs")
    return finish(tree, _dfs(tree, settings, task), settings, task, usual_rule="best")


def _dfs(tree: Tree, settings: SearchSettings, task: Task) -> Generator[Ask, Answer, str]:
    votes = Votes(tree, settings, task, usual_rule="best", scored=True)
    stack, left = [0], settings.iterations
    while stack and left:
        if votes.decided(left * settings.branch):
            return "decided"
        going = [stack.pop() for _ in range(min(settings.parallel, left, len(stack)))]
        left -= len(going)
        wanted = [Wanted(node, settings.branch, path_seed(tree, node)) for node in going]
        grown = yield from grow(tree, wanted, settings, task, origin="expand", score="steps")
        votes.count(nodes_of(grown))
        for nodes, *_ in reversed(grown):
            ranked = [(n, path_value(tree, n, settings.step_aggregation)) for n in best_of(tree, nodes, None, settings)]
            if any(v is not None and v >= settings.threshold and tree.status[n] == "finished" for n, v in ranked):
                return "threshold"
            open_ones = [(n, v) for n, v in ranked if tree.status[n] == "open"]
            stack += [n for n, v in reversed(open_ones) if v is None or v > settings.prune]
    return "iterations" if stack else "failed" if tree.failures else "exhausted"
