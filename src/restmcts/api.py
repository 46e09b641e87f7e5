"""The short way from Python: one question, one tree; trees and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from restmcts import datasets, drive
from restmcts.completing import complete_trees
from restmcts.engines import Engines
from restmcts.errors import ConfigError
from restmcts.rows import TreeLabels
from restmcts.search import get_search
from restmcts.search.completions import COMPLETING
from restmcts.search.settings import SearchSettings
from restmcts.sections import LabelSettings
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
    rule: str = "rest-mcts",
    unsolved: Literal["zero", "drop"] = "zero",
    estimate: Literal["hard", "soft"] = "hard",
) -> list[TreeLabels]:
    """Grade the finished leaves against each problem's answer and label every step, one record per tree.

    `rule` is one of `labels.RULES`: by default process rewards, inferred from the tree. The trees stay as they are.
    Raises TaskError for a tree whose problem has no answer, ConfigError for one that lacks the completions that the
    rule needs (see `complete`).
    """
    with Grader() as grader:
        correct = datasets.verify(trees, grader)
    return datasets.label_trees(trees, correct, rule=rule, unsolved=unsolved, estimate=estimate)


def complete(
    trees: Sequence[Tree],
    engines: Engines,
    *,
    rule: str,
    completions: int = 8,
    settings: SearchSettings | None = None,
    seed: int = 0,
    concurrency: int = 48,
) -> list[Tree]:
    """Copies of `trees`, a tree a question, with the completions that `rule` (`math-shepherd`, `omega-prm`) asks for.

    They are drawn at the temperature of `settings` and under its limits and budgets. `usage` of a copy is what they
    cost. Raises TaskError for a tree whose problem has no answer.
    """
    if rule not in COMPLETING:
        raise ConfigError(f"rule = {rule!r} asks for no completions; those that do are: {', '.join(COMPLETING)}")
    completed: dict[str, Tree] = {}
    with Grader() as grader:
        complete_trees(
            trees,
            LabelSettings(rule=rule, completions=completions),
            settings or SearchSettings(),
            engines,
            grader=grader,
            seed=seed,
            concurrency=concurrency,
            each=lambda tree: completed.update({tree.problem.id: tree}),
        )
    return [completed[tree.problem.id] for tree in trees]
