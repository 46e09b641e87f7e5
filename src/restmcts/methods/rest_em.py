"""ReST-EM: expectation, then maximisation (Singh et al. 2023, arXiv 2312.06585)."""

from __future__ import annotations

from restmcts.methods.rest_mcts import rest_mcts
from restmcts.methods.round import Models, Round


def rest_em(this: Round, models: Models) -> Models:
    """Sample N solutions of each question, keep the right ones, at most so many of each, and fine-tune on them.

    It is ReST-MCTS* with samples in place of trees, a random draw in place of the highest-valued traces, and a policy
    that is trained from the base anew in every round (`sections.METHOD_DEFAULTS`; `policy_training.start=previous` goes
    on from the last one). A value model is trained only where something else asks for values.
    """
    return rest_mcts(this, models)
