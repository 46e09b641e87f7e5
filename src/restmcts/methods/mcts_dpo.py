"""DPO on steps of search trees (MCTS-DPO: Xie et al. 2024, arXiv 2405.00451; step-level pairs: 2406.18629)."""

from __future__ import annotations

from restmcts import pairing, stages, training
from restmcts.methods.round import Models, Round


def mcts_dpo(this: Round, models: Models) -> Models:
    """Search with π and V as ReST-MCTS* does; of sibling steps, π learns to prefer the one of higher inferred value."""
    job, data, k = this.job, this.data, this.k
    trees = stages.search(job, k, data, this.questions, job.config.search, models.policy, models.value)
    trees = stages.complete(job, k, trees, this.questions, models.policy)
    rows = stages.label(job, k, data, this.trained_on(trees), models.policy)
    pairs = pairing.pairs_of_steps(job, k, trees, this.questions, rows)
    policy = training.train(job, "preference", k, pairs, models.policy)
    return Models(policy, models.value and training.train(job, "value", k, rows, models.value))
