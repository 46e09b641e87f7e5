"""How the policy learns from its own solutions: one function per method, which takes the models through one round.

The warm start before the first round and the measuring after each are the same for all (`loop`); so are the stages that
a method is made of (`stages`, `judging`), the store and the report.
"""

from __future__ import annotations

from collections.abc import Callable

from restmcts.methods.mcts_dpo import mcts_dpo
from restmcts.methods.online import online
from restmcts.methods.rest_em import rest_em
from restmcts.methods.rest_mcts import rest_mcts
from restmcts.methods.round import Models, Round
from restmcts.methods.self_rewarding import self_rewarding

Method = Callable[[Round, Models], Models]
"""(round, the models before it) → the models after it"""

METHODS: dict[str, Method] = {
    "rest-mcts": rest_mcts,
    "rest-em": rest_em,
    "self-rewarding": self_rewarding,
    "mcts-dpo": mcts_dpo,
    "online": online,
}

__all__ = ["METHODS", "Method", "Models", "Round", "mcts_dpo", "online", "rest_em", "rest_mcts", "self_rewarding"]
