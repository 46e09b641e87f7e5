"""Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020)."""

from __future__ import annotations

from restmcts import pairing, stages, training
from restmcts.judging import judge
from restmcts.methods.round import Models, Round


def self_rewarding(this: Round, models: Models) -> Models:
    """The policy judges its own samples; it learns by DPO to prefer the best of each question to the worst.

    No known answer is read. A value model, where a held-out search asks for one, stays that of the warm start.
    """
    job, k = this.job, this.k
    trees = stages.search(job, k, this.data, this.questions, job.config.search, models.policy, models.value)
    judged = judge(job, k, trees, this.questions, models.policy, every=True)
    pairs = pairing.pairs_of_solutions(job, k, trees, this.questions, judged)
    return Models(training.train(job, "preference", k, pairs, models.policy), models.value)
