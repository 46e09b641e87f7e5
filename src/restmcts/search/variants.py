"""Methods under the names that studies use: a method, and the settings that make it what it is."""

from __future__ import annotations

from typing import Any

from restmcts.search.settings import SearchSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"method": "cot", "temperature": 0.0},
    # Best-of-N with a process reward model; with an outcome reward model it is `best_of_n` itself
    "best_of_n_min": {"method": "best_of_n", "step_aggregation": "min"},
    "best_of_n_mean": {"method": "best_of_n", "step_aggregation": "mean"},
    "best_of_n_product": {"method": "best_of_n", "step_aggregation": "product"},
    # MCTS* without one of its parts, where the settings have it
    "mcts_star_no_critic": {"method": "mcts_star", "self_critic": False},
    "mcts_star_no_rollout": {"method": "mcts_star", "rollout_steps": 0},
    "mcts_star_random_rollout": {"method": "mcts_star", "rollout": "random"},
    "mcts_star_vanilla_backup": {"method": "mcts_star", "backup": "vanilla"},
}


def as_variant(settings: SearchSettings, name: str) -> SearchSettings:
    """`settings`, changed to what `name` means: one of VARIANTS, or a method in SEARCHES (which is not checked)."""
    return settings.model_copy(update=VARIANTS.get(name, {"method": name}))
