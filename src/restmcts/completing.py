"""Completions for stored trees, where a labelling rule needs more than the trees hold: asked for as a search is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from restmcts.account import Account
from restmcts.datasets import chosen_traces, verify
from restmcts.engines import Engines
from restmcts.evaluate import Searched, search_all
from restmcts.livegrader import OnTree
from restmcts.search import Search, SearchSettings
from restmcts.search.completions import COMPLETING, Traces
from restmcts.search.nodes import COMPLETION
from restmcts.sections import LabelSettings
from restmcts.tasks import Task
from restmcts.tasks.grade import Grader
from restmcts.types import Problem, Tree


def needs_completions(labels: LabelSettings) -> bool:
    """Whether the labelling rule asks the policy for completions."""
    return labels.rule in COMPLETING


def completion_settings(labels: LabelSettings, search: SearchSettings) -> SearchSettings:
    """How completions are drawn: at the temperature of `search`, under its limits, as many from a step as asked for.

    What a completion does not read is at its default, so that changing it does not seem to change the completions.
    """
    same = ("temperature", "step_tokens", "max_depth", "parallel", "budget_tokens", "budget_seconds")
    values = {name: getattr(search, name) for name in same}
    return SearchSettings(method="sample", samples=labels.completions, **values)


def complete_trees(
    trees: Sequence[Tree],
    labels: LabelSettings,
    search: SearchSettings,
    engines: Engines,
    *,
    grader: Grader,
    seed: int,
    concurrency: int,
    traces_per_question: int | None = None,
    choice_seed: int = 0,
    path: Path | None = None,
    each: Callable[[Tree], None] | None = None,
    on_tree: OnTree | None = None,
    account: Account | None = None,
) -> Searched:
    """Have the policy complete the steps of each tree that the rule of `labels` asks for; a tree for each question.

    What is completed are the traces that `value_rows` chooses when it is given the seed `choice_seed`. The trees stay
    as they are: `each` is given copies that hold the completions too, and with a `path` these are appended there and
    found again, as `evaluate.search_all` says. Their `usage` is what the completions cost. Budgets hold as in a search:
    those of `search` for each question, that of `account` for all of them.

    Raises TaskError for a tree whose question has no answer, and ConfigError for one with another policy's completions.
    """
    method, policy = COMPLETING[labels.rule], engines.policy
    traces: dict[str, Traces] = {}
    for tree, correct in zip(trees, verify(trees, grader), strict=True):
        found = [None if origin == COMPLETION else c for origin, c in zip(tree.origin, correct, strict=True)]
        leaves = chosen_traces(tree, found, count=traces_per_question, seed=choice_seed)

        def right(answer: str, problem: Problem = tree.problem) -> bool:
            return grader.grade(problem, answer)

        traces[tree.problem.id] = Traces(tree, leaves, correct, right, policy.identity, policy.tokenizer_id)

    def complete(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
        return method(traces[problem.id], settings, seed, task)

    return search_all(
        [tree.problem for tree in trees],
        complete,
        completion_settings(labels, search),
        engines,
        grader=grader,
        seed=seed,
        concurrency=concurrency,
        path=path,
        each=each,
        on_tree=on_tree,
        account=account,
    )
