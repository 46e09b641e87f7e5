"""ReST-MCTS* (Zhang et al. 2024, arXiv 2406.03816, Algorithm 1)."""

from __future__ import annotations

from restmcts import stages, training
from restmcts.methods.round import Models, Round


def rest_mcts(this: Round, models: Models) -> Models:
    """Search with π and V; π imitates the right traces, V learns the value inferred for every step of every tree."""
    job, data, k = this.job, this.data, this.k
    trees = stages.search(job, k, data, this.questions, job.config.search, models.policy, models.value)
    trees = stages.complete(job, k, trees, this.questions, models.policy)
    rows = stages.label(job, k, data, this.trained_on(trees), models.policy)
    policy = training.train(job, "policy", k, rows, models.policy)
    return Models(policy, models.value and training.train(job, "value", k, rows, models.value))
