"""Beams: many solutions grown side by side, step by step, and V says which go on."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from restmcts.search.nodes import Search, Wanted, best_of, finish, grow, new_tree, nodes_of, path_seed
from restmcts.search.settings import SearchSettings
from restmcts.search.votes import Votes
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, Problem, Tree


def beam(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Step-level beam search guided by V (Snell et al. 2024, arXiv 2408.03314, section 5.1).

    N = `samples` first steps are drawn; the N/M best of them are kept, each goes on in M = `branch` ways, and so forth,
    until all have ended. A beam that has ended is a candidate and takes no more samples, so that there are N in the end
    as there are in `sample`, at about the same cost; the rest share what is left. With M = 1 nothing is ever pruned.
    The candidates vote, weighted by V.
    """
    tree = new_tree(problem, settings, seed, "beam")
    return finish(tree, _beam(tree, settings, task), settings, task, usual_rule="weighted")


def _beam(tree: Tree, settings: SearchSettings, task: Task) -> Generator[Ask, Answer, str]:
    votes = Votes(tree, settings, task, usual_rule="weighted", scored=True)
    front, left = [0], settings.samples
    while front and not votes.decided(left):
        kept = best_of(tree, front, -(-left // settings.branch), settings)
        each, more = divmod(left, len(kept))
        wanted = [Wanted(node, each + (rank < more), path_seed(tree, node)) for rank, node in enumerate(kept)]
        grown = yield from grow(tree, wanted, settings, task, origin="expand", score="steps")
        new = nodes_of(grown)
        votes.count(new)
        front = [n for n in new if tree.status[n] == "open"]
        left = sum(tree.copies[n] for n in front)
    return "decided" if front else "failed" if tree.failures else "done"


class _Subtree(NamedTuple):
    """One of the searches of `dvts`: its number, how many candidates it draws for each step, and how far it is."""

    number: int
    width: int
    node: int


def dvts(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
    """Diverse verifier tree search (Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models").

    Beam search tends to keep variants of one solution. Here the N = `samples` beams are N/M subtrees that know nothing
    of each other: each draws M = `branch` next steps, and goes on with the one that V values highest. The candidates of
    all subtrees, also those that ended but were not the best, vote, weighted by V.
    """
    tree = new_tree(problem, settings, seed, "dvts")
    return finish(tree, _dvts(tree, settings, task), settings, task, usual_rule="weighted")


def _dvts(tree: Tree, settings: SearchSettings, task: Task) -> Generator[Ask, Answer, str]:
    """One subtree after the other, or `parallel` at once: a budget that runs out leaves whole solutions."""
    votes = Votes(tree, settings, task, usual_rule="weighted", scored=True)
    samples, width, deepest = settings.samples, settings.branch, settings.max_depth
    going: list[_Subtree] = []
    begun = 0
    while going or begun < samples:
        to_come = sum(s.width * (deepest - len(tree.nodes_to(s.node))) for s in going)
        if votes.decided(to_come + (samples - begun) * deepest):
            return "decided"
        while len(going) < settings.parallel and begun < samples:
            going.append(_Subtree(begun // width, min(width, samples - begun), 0))
            begun += going[-1].width
        wanted = [Wanted(s.node, s.width, path_seed(tree, s.node, "subtree", s.number)) for s in going]
        grown = yield from grow(tree, wanted, settings, task, origin="expand", score="steps")
        votes.count(nodes_of(grown))
        best = [(s, n) for s, came in zip(going, grown, strict=True) for n in best_of(tree, came.nodes, 1, settings)]
        going = [s._replace(node=n) for s, n in best if tree.status[n] == "open"]
    return "failed" if tree.failures else "done"
