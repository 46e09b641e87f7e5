"""How to look for a solution: one generator function per method. Search does no input or output.

A method yields requests and is sent replies; `drive` connects it to engines, a test to `next` and `send`:

    search = mcts_star(problem, SearchSettings(), seed=0, task=get_task("math"))
    request = next(search)               # Propose(…)
    request = search.send(Proposals(…))  # Score(…)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from restmcts.errors import ConfigError
from restmcts.search.beam import beam, dvts
from restmcts.search.chains import best_of_n, cot, sample, weighted_vote
from restmcts.search.mcts import mcts
from restmcts.search.mcts_star import mcts_star
from restmcts.search.nodes import Search
from restmcts.search.settings import SearchSettings
from restmcts.search.tot import tot_bfs, tot_dfs
from restmcts.tasks import Task
from restmcts.types import Problem

Method = Callable[[Problem, SearchSettings, int, Task], Search]
"""(problem, settings, seed, task) → a generator of requests that returns its tree"""

SEARCHES: dict[str, Method] = {
    "mcts_star": mcts_star,
    "cot": cot,
    "sample": sample,
    "best_of_n": best_of_n,
    "weighted_vote": weighted_vote,
    "beam": beam,
    "dvts": dvts,
    "tot_bfs": tot_bfs,
    "tot_dfs": tot_dfs,
    "mcts": mcts,
}

VARIANTS: dict[str, dict[str, Any]] = {
    # Best-of-N with a process reward model; with an outcome reward model it is `best_of_n` itself
    "best_of_n_min": {"method": "best_of_n", "step_aggregation": "min"},
    "best_of_n_mean": {"method": "best_of_n", "step_aggregation": "mean"},
    "best_of_n_product": {"method": "best_of_n", "step_aggregation": "product"},
    # MCTS* without one of its parts, where the settings have it
    "mcts_star_no_critic": {"method": "mcts_star", "self_critic": False},
    "mcts_star_no_rollout": {"method": "mcts_star", "rollout_steps": 0},
    "mcts_star_random_rollout": {"method": "mcts_star", "rollout": "random"},
    "mcts_star_vanilla_backup": {"method": "mcts_star", "backup": "vanilla"},
    "mcts_star_no_widening": {"method": "mcts_star", "widening": 0.0},
}
"""methods under the names that studies use: settings that make of a method what the name says"""

UNSCORED = frozenset({"cot", "sample"})
"""methods that ask for no values"""


def get_search(name: str, among: Sequence[str] = ()) -> Method:
    """The method of that name. Raises ConfigError with the nearest name, of `among` where given, when there is none."""
    if name not in SEARCHES:
        known = among or tuple(SEARCHES)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"unknown search method {name!r}; {hint}")
    return SEARCHES[name]


__all__ = [
    "SEARCHES",
    "UNSCORED",
    "VARIANTS",
    "Method",
    "Search",
    "SearchSettings",
    "beam",
    "best_of_n",
    "cot",
    "dvts",
    "get_search",
    "mcts",
    "mcts_star",
    "sample",
    "tot_bfs",
    "tot_dfs",
    "weighted_vote",
]
