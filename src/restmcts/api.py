"""The short way from Python: one question, one tree; trees and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from restmcts import datasets, drive
from restmcts.engines import Engines
from restmcts.errors import ConfigError
from restmcts.rows import TreeLabels
from restmcts.search import get_search
from restmcts.search.settings import SearchSettings
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.types import Problem, Tree


def solve(problem: Problem | str, engines: Engines, settings: SearchSettings | None = None, *, seed: int = 0) -> Tree:
    """Search one question with the method that `settings` names; the same seed and engines give the same tree.

    `tree.final_answer` is the answer (None when nothing finished) and `tree.path(tree.result)` its steps. The engines
    stay open. Raises ConfigError for an empty question or an unknown method, EngineError for an engine gone for good.
    """
    if isinstance(problem, str):
        problem = Problem("question", problem)
    if not problem.question.strip():
        raise ConfigError("the question is empty; write it out")
    settings = settings or SearchSettings()
    task = get_task(problem.task)
    found: list[Tree] = []
    drive.run(
        [problem],
        get_search(settings.method),
        settings,
        engines,
        task_of=lambda _: task,
        seed=seed,
        concurrency=1,
        on_tree=found.append,
    )
    return found[0]


def label(
    trees: Sequence[Tree],
    *,
    unsolved: Literal["zero", "drop"] = "zero",
    estimate: Literal["hard", "soft"] = "hard",
) -> list[TreeLabels]:
    """Grade the finished leaves against each problem's answer and infer process rewards, one record per tree.

    The trees stay as they are. Raises TaskError for a tree whose problem has no answer.
    """
    with Grader() as grader:
        correct = datasets.verify(trees, grader)
    return datasets.label_trees(trees, correct, unsolved=unsolved, estimate=estimate)
