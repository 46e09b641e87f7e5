"""How many nodes a second `process_rewards` labels, in one large tree and in many of the usual size."""

from __future__ import annotations

import random

from benchmarks.common import Figure, timed
from restmcts.rewards import process_rewards

AIM = 1e6
Tree = tuple[list[int], list[bool | None]]
"""parents and verdicts"""


def run() -> list[Figure]:
    figures = []
    for name, count, nodes in (("one tree of a million nodes", 1, 10**6), ("10,000 trees of 100 nodes", 10**4, 100)):
        trees = [random_tree(nodes, seed) for seed in range(count)]

        def label(trees: list[Tree] = trees) -> None:
            for parent, correct in trees:
                process_rewards(parent, correct)

        seconds = min(timed(label)[1] for _ in range(3))
        figures.append(Figure(name, count * nodes / seconds, "nodes/s", aim=AIM, better="higher"))
    return figures


def random_tree(nodes: int, seed: int) -> Tree:
    """New nodes mostly deep, every leaf finished, a third of them right: no node is without a label."""
    chance = random.Random(seed)
    parent = [-1]
    for node in range(1, nodes):
        parent.append(max(chance.randrange(node), chance.randrange(node)))
    inner = set(parent)
    correct = [None if n in inner else chance.random() < 1 / 3 for n in range(nodes)]
    return parent, correct
