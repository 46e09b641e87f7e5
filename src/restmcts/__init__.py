"""ReST-MCTS*: LLM self-training by process-reward-guided tree search."""

from __future__ import annotations

__version__ = "0.1.0"
