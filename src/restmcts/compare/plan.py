"""What a comparison consists of: arms, each at several budgets and under several seeds, on the same questions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from restmcts.config import build, merged
from restmcts.drive import Errand
from restmcts.errors import ConfigError
from restmcts.search import SEARCHES, VARIANTS, SearchSettings, get_search
from restmcts.sections import CompareSettings
from restmcts.tasks import get_task
from restmcts.types import Problem

GREEDY = "greedy"
"""the name of the reference: one greedy answer to every question"""
USUAL = ("sample", "best_of_n", "weighted_vote", "mcts_star")
ONE_PASS = frozenset({"beam", "tot_bfs"})
"""methods that go once through the question with `samples` candidates for every step; the others go on and on"""
_SPARE = 2
"""how many times longer than usual a solution may be and still fit into the budget of such a method"""
_NAME = re.compile(r"\w[\w.+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of answering: a search method and its settings, to be run at several budgets."""

    name: str
    settings: SearchSettings
    own: Mapping[str, Any] = field(default_factory=dict)
    """of these, those that are set for this arm alone"""

    @property
    def fixed(self) -> frozenset[str]:
        """The settings of how much is to be searched that do not follow the budget (see `at`)."""
        return frozenset({"iterations", "samples"} & self.own.keys())

    def at(self, budget: int, greedy_tokens: float) -> SearchSettings:
        """The settings under a budget of so many policy tokens a question.

        Iterations and samples are as many as the budget could ever pay for, so that it is the budget that ends the
        search. A method that goes through the question once has as many candidates for a step as leave room for
        solutions twice as long as the greedy ones, of `greedy_tokens`: it finds nothing unless it comes to its end.
        """
        samples = budget
        if self.settings.method in ONE_PASS:
            samples = max(1, int(budget / (_SPARE * max(greedy_tokens, 1.0))))
        derived = {"iterations": budget, "samples": samples}
        update = {name: value for name, value in derived.items() if name not in self.fixed}
        return self.settings.model_copy(update={**update, "budget_tokens": budget})

    def identity(self) -> dict[str, Any]:
        """What makes the arm's answers what they are, JSON-ready; budgets and seeds apart, which stand in every row."""
        return {
            name: value
            for name, value in self.settings.model_dump(mode="json").items()
            if name not in {"budget_tokens", "iterations", "samples"} - self.fixed
        }


def arms(settings: CompareSettings, search: SearchSettings) -> list[Arm]:
    """The arms that the settings name, in their order, each over `search`.

    A name stands for what `settings.arms` says of it, over what `VARIANTS` says, else for the method of that name.
    Raises ConfigError for one that is none.
    """
    names = settings.methods if settings.methods is not None else tuple(settings.arms) or USUAL
    if not names:
        raise ConfigError("compare.methods is empty; give --methods sample,mcts_star or others")
    found = [_arm(name, settings.arms.get(name), search) for name in names]
    if len(set(names)) < len(names):
        raise ConfigError(f"compare.methods = {', '.join(names)}: name each of them once")
    if settings.baseline is not None and settings.baseline not in (*names, GREEDY):
        raise ConfigError(
            f"compare.baseline = {settings.baseline!r} is not compared; choose one of {', '.join((*names, GREEDY))}"
        )
    return found


def _arm(name: str, own: dict[str, Any] | None, search: SearchSettings) -> Arm:
    if not _NAME.fullmatch(name) or name == GREEDY:
        raise ConfigError(f"{name!r} cannot name an arm; take letters, digits and . + - _, and not {GREEDY!r}")
    if own is None and name not in VARIANTS:
        get_search(name, among=(*SEARCHES, *VARIANTS))
    raw = {**VARIANTS.get(name, {"method": name}), **(own or {})}
    if raw["method"] == name and name not in SEARCHES:
        raise ConfigError(f"compare.arms.{name} needs a method, e.g. method: mcts_star")
    if raw.get("budget_tokens") is not None:
        raise ConfigError(f"compare.arms.{name}.budget_tokens: every arm has the budgets of compare.budgets")
    settings = build(SearchSettings, merged(search.model_dump(mode="json"), raw), prefix=f"compare.arms.{name}.")
    get_search(settings.method)
    if settings.budget_seconds is not None:
        raise ConfigError(
            f"budget_seconds = {settings.budget_seconds:g} of arm {name}: what others have asked for takes no time, so "
            "that seconds are no fair budget here; unset search.budget_seconds"
        )
    return Arm(name, settings, raw)


def budgets_in_tokens(settings: CompareSettings, greedy_tokens: float) -> list[int]:
    """The budgets, in policy tokens a question, from small to large.

    Raises ConfigError for two that are the same, or that are none since the greedy answers are empty.
    """
    unit = greedy_tokens if settings.unit == "answers" else 1.0
    found = [round(budget * unit) for budget in sorted(settings.budgets)]
    given = ", ".join(f"{budget:g}" for budget in settings.budgets)
    if found[0] < 1:
        raise ConfigError(
            f"compare.budgets = {given}: the smallest is less than a token (a greedy answer has {greedy_tokens:.1f})"
        )
    if len(set(found)) < len(found):
        raise ConfigError(f"compare.budgets = {given}: two of them are the same number of tokens; leave one out")
    return found


@dataclass(frozen=True, slots=True)
class Trial(Errand):
    """One question, answered by one arm at one budget under one seed."""

    arm: str
    budget: int

    @property
    def key(self) -> Key:
        return self.problem.id, self.arm, self.budget, self.seed


Key = tuple[str, str, int, int]
"""(question, arm, budget in tokens, seed): what there is one row of"""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a comparison is to find out."""

    problems: Sequence[Problem]
    arms: Sequence[Arm]
    budgets: Sequence[int]
    seeds: Sequence[int]
    greedy_tokens: float
    """mean policy tokens of a greedy answer to these questions"""

    def trials(self) -> Iterator[Trial]:
        """Everything to be run; what belongs to one question stands together."""
        trees = len(self.problems) * len(self.seeds) * len(self.arms) * len(self.budgets)
        settings = {
            (arm.name, budget): arm.at(budget, self.greedy_tokens).shared_by(trees)
            for arm in self.arms
            for budget in self.budgets
        }
        for problem in self.problems:
            task = get_task(problem.task)
            for seed in self.seeds:
                for (arm, budget), chosen in settings.items():
                    yield Trial(problem, SEARCHES[chosen.method], chosen, seed, task, arm, budget)
