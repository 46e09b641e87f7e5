"""The values of trees that are there already: asked for once, kept row by row, taken up again where they were left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from restmcts import drive
from restmcts.account import Account
from restmcts.engines import Engines, PolicyEngine, ValueEngine
from restmcts.errors import StoreError
from restmcts.search import Method, Search, SearchSettings
from restmcts.search.nodes import ask_all, note_failure
from restmcts.store import JsonlWriter, read_jsonl
from restmcts.tasks import Task, get_task
from restmcts.types import STAGE_BUDGET, BudgetExhausted, Problem, Score, Scores, Step, Tree, Usage
from restmcts.types import Path as Steps

_TOGETHER = 64
"""finished leaves of a tree whose values are asked for at once"""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a value model said of a tree, and what that cost."""

    values: list[float | None]
    """v of every node, None where it was not asked or did not answer"""
    failures: list[str]
    usage: Usage


def score_given(
    trees: Mapping[str, Tree],
    engine: ValueEngine,
    path: Path,
    *,
    concurrency: int,
    account: Account | None = None,
    on_scored: Callable[[Tree], None] = lambda tree: None,
) -> dict[str, Scored]:
    """Score all nodes on the way to a finished leaf of every tree; rows are appended at `path` as trees are done.

    Trees, and what is returned, go by the ids of their problems. What is at `path` already is not scored again; trees
    that the budget of `account` left unscored are missing in the result. Raises StoreError for rows of other trees.
    """
    found = read_scored(path, trees)
    owed = [tree.problem for name, tree in trees.items() if name not in found]
    stand_in = cast(PolicyEngine, _NoPolicy(engine.tokenizer_id))
    with closing(JsonlWriter(path)) as writer:

        def keep(tree: Tree) -> None:
            if tree.stop != STAGE_BUDGET:
                scored = Scored(tree.raw_value, tree.failures, tree.usage)
                writer.write({"id": tree.problem.id, **dataclasses.asdict(scored)})
                found[tree.problem.id] = scored
                on_scored(tree)

        drive.run(
            owed,
            _scoring(trees, engine.tokenizer_id),
            SearchSettings(),
            Engines(stand_in, engine),
            task_of=lambda _: get_task("math"),
            seed=0,
            concurrency=concurrency,
            on_tree=keep,
            account=account,
        )
    return found


def read_scored(path: Path, trees: Mapping[str, Tree]) -> dict[str, Scored]:
    """What `score_given` left at `path`. Raises StoreError for a row that fits none of the trees."""
    found: dict[str, Scored] = {}
    for row in read_jsonl(path, skip_torn=True) if path.exists() else ():
        try:
            scored = Scored(row["values"], row["failures"], Usage(**row["usage"]))
            if len(scored.values) != len(trees[row["id"]]):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise StoreError(
                f"{path}: the row of {row.get('id')!r} fits no tree that is given; use another --out"
            ) from None
        found[row["id"]] = scored
    return found


def _scoring(trees: Mapping[str, Tree], tokenizer_id: str | None) -> Method:
    """A search method that finds nothing new: it asks for the values of what is there.

    A request holds what is not asked for yet on the way to one leaf: all of it is read in one forward pass.
    """

    def method(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
        given = trees[problem.id]
        tree = dataclasses.replace(given, raw_value=[None] * len(given), failures=[], stop="done", usage=Usage())
        own_ids = given.models.get("tokenizer") == tokenizer_id
        ways, asked = [], set[int]()
        for leaf in tree.finished():
            ways.append([node for node in tree.nodes_to(leaf) if node not in asked])
            asked.update(ways[-1])
        try:
            for start in range(0, len(ways), _TOGETHER):
                batch = ways[start : start + _TOGETHER]
                requests = [Score(problem, tuple(_steps(tree, node, own_ids) for node in way)) for way in batch]
                for way, reply in zip(batch, (yield from ask_all(requests)), strict=True):
                    if reply is None:
                        raise BudgetExhausted
                    if isinstance(reply, Scores):
                        for node, value in zip(way, reply.values, strict=True):
                            tree.raw_value[node] = value
                    else:
                        note_failure(tree, "score", reply)
        except BudgetExhausted:
            tree.stop = "budget"
        return tree

    return method


def _steps(tree: Tree, node: int, own_ids: bool) -> Steps:
    """The path to a node, as text where its ids are of another vocabulary than the value model's."""
    path = tree.path(node)
    return path if own_ids else tuple(Step(step.text) for step in path)


class _NoPolicy:
    """Stands where a policy would: nothing is proposed here."""

    identity = "none"
    busy_seconds = 0.0

    def __init__(self, tokenizer_id: str | None) -> None:
        self.tokenizer_id = tokenizer_id
