"""Online reinforcement learning by GRPO (Shao et al. 2024, arXiv 2402.03300), with restmcts' grading as reward."""

from __future__ import annotations

from restmcts import training
from restmcts.methods.round import Models, Round


def online(this: Round, models: Models) -> Models:
    """The policy samples, is graded and learns at every step; a round is `online.steps` of them (`train.online`).

    A value model, where a held-out search asks for one, stays that of the warm start.
    """
    policy = training.train_online(this.job, this.k, this.data, this.questions, models.policy)
    return Models(policy, models.value)
