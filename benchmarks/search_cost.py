"""What MCTS* and drive cost without any model: time and memory a node, in trees of any size and any number of them.

The scripted engines reply at once with a step that is looked up; the time that takes is a figure of its own.
"""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from benchmarks.common import Figure, alone, peak_memory, timed
from restmcts import drive
from restmcts.engines import Engines
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue
from restmcts.search import SearchSettings, get_search
from restmcts.tasks import get_task
from restmcts.types import Path, Problem, Propose, Sample, Tree

NODES = (10, 10**3, 10**5)
TREES = (1, 10**2, 10**4)
TREE_OF = 100
"""nodes of each tree where there are many"""
SETTINGS: dict[str, Any] = {
    "branch": 3,
    "widening": 0.0,
    "rollout_steps": 2,
    "max_depth": 24,
    "threshold": 2.0,
    "step_tokens": 16,
}
_NODES_AN_ITERATION = 4.5
"""of 3 + 2: some samples are alike and some rollouts end at an answer"""


def run() -> list[Figure]:
    figures, cost = [], {}
    for nodes in NODES:
        repeats = max(1, 3000 // nodes)
        cost[nodes], memory = alone(one_by_one, nodes, repeats)
        figures.append(Figure(f"a tree of {nodes:,} nodes: time a node", cost[nodes], "µs"))
        figures.append(Figure(f"a tree of {nodes:,} nodes: memory a node, when done", memory, "bytes"))
    ratio = cost[NODES[-1]] / cost[NODES[1]]
    figures.append(Figure(f"time a node at {NODES[-1]:,} nodes ÷ at {NODES[1]:,}", ratio, "×", aim=1.5))
    for trees in TREES:
        nodes, seconds, memory, peak = alone(together, trees)
        last = trees == TREES[-1]
        name = f"{trees:,} trees of {TREE_OF} nodes, all open"
        figures.append(Figure(f"{name}: time a node", 1e6 * seconds / nodes, "µs"))
        if last:
            figures.append(Figure(f"{name}: in all", seconds, "s", aim=60.0))
            figures.append(Figure(f"{name}: memory a node", memory / nodes, "bytes"))
            figures.append(Figure(f"{name}: memory of the process", peak / 2**30, "GiB", aim=2.0))
    figures.append(Figure("of a node's time, in the functions that stand in for models", alone(engines_alone), "µs"))
    return figures


# ---------------------------------------------------------------- what is measured


def one_by_one(nodes: int, repeats: int) -> tuple[float, float]:
    """µs and bytes a node of trees of that size, searched one after the other."""
    search(3, 100, 1, [])  # what is loaded on first use is loaded
    gc.collect()
    grown: list[Tree] = []
    _, seconds = timed(lambda: search(repeats, nodes, 1, grown))
    size = sum(map(len, grown))
    return 1e6 * seconds / size, sum(map(memory_of, grown)) / size


def together(trees: int) -> tuple[int, float, int, int]:
    """Nodes, seconds, bytes for them and bytes in all, with all trees open at once and all of them kept."""
    search(3, TREE_OF, 1, [])  # what is loaded on first use is loaded
    gc.collect()
    before = peak_memory()
    grown: list[Tree] = []
    _, seconds = timed(lambda: search(trees, TREE_OF, trees, grown))
    return sum(map(len, grown)), seconds, peak_memory() - before, peak_memory()


def engines_alone() -> float:
    """µs that the functions behind the scripted engines take for each node of a search."""
    asked: list[tuple[Propose, int]] = []

    def note(request: Propose, seed: int) -> Sample | str:
        asked.append((request, seed))
        return step(request, seed)

    grown: list[Tree] = []
    search(1, 1000, 1, grown, ScriptedPolicy(note))
    paths = [(grown[0].problem, grown[0].path(n)) for n in range(1, len(grown[0]))]

    def reply() -> None:
        for request, seed in asked:
            step(request, seed)
        for problem, path in paths:
            worth(problem, path)

    return 1e6 * timed(reply)[1] / len(grown[0])


def search(trees: int, nodes: int, concurrency: int, grown: list[Tree], policy: ScriptedPolicy | None = None) -> None:
    task = get_task("math")
    iterations = max(1, round(nodes / _NODES_AN_ITERATION))
    drive.run(
        (Problem(f"q{i}", "What is it?") for i in range(trees)),
        get_search("mcts_star"),
        SearchSettings(iterations=iterations, **SETTINGS),
        Engines(policy or ScriptedPolicy(step), ScriptedValue(worth)),
        task_of=lambda _: task,
        seed=0,
        concurrency=concurrency,
        on_tree=grown.append,
    )


def step(request: Propose, seed: int) -> str:
    """One of a thousand steps; one in ten states an answer."""
    return f"Answer: {seed % 7}" if seed % 10 == 0 else f"step number {seed % 997}"


def worth(problem: Problem, path: Path) -> float:
    """A value that depends on the last step alone."""
    return zlib.crc32(path[-1].text.encode()) % 1000 / 1000


def memory_of(tree: Tree) -> int:
    """Bytes of a tree's columns and of what they hold, each object once."""
    seen: set[int] = set()
    return sum(_sizes(tree, seen))


def _sizes(tree: Tree, seen: set[int]) -> Iterator[int]:
    for name in tree.__slots__:
        column = getattr(tree, name)
        if isinstance(column, list):
            yield sys.getsizeof(column)
            for item in column:
                if id(item) not in seen and not isinstance(item, bool):
                    seen.add(id(item))
                    yield sys.getsizeof(item)
