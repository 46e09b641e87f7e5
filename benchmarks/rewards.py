"""How many nodes a second `process_rewards` labels, in one large tree and in many of the usual size."""

from __future__ import annotations

import random

from benchmarks.common import Figure, timed
from restmcts.rewards import process_rewards

AIM = 1e6


def run() -> list[Figure]:
    figures = []
    for name, count, nodes in (("one tree of a million nodes", 1, 10**6), ("10,000 trees of 100 nodes", 10**4, 100)):
        trees = [random_tree(nodes, seed) for seed in range(count)]
        seconds = min(timed(lambda trees=trees: [process_rewards(*tree) for tree in trees])[1] for _ in range(3))  # type: ignore[misc]
        figures.append(Figure(name, count * nodes / seconds, "nodes/s", aim=AIM, better="higher"))
    return figures


def random_tree(nodes: int, seed: int) -> tuple[list[int], list[bool | None]]:
    """A tree as search grows it: new nodes mostly deep, half of its leaves finished, a third of these right."""
    chance = random.Random(seed)
    parent = [-1]
    for node in range(1, nodes):
        parent.append(max(chance.randrange(node), chance.randrange(node)))
    leaves = set(range(nodes)) - set(parent)
    correct = [chance.random() < 1 / 3 if n in leaves and chance.random() < 0.5 else None for n in range(nodes)]
    return parent, correct
