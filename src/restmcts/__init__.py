"""ReST-MCTS*: LLM self-training by process-reward-guided tree search.

The public names load on first use, so that `import restmcts` loads nothing else; `__init__.pyi` tells them to type
checkers and editors.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "types": ["Problem", "Step", "Tree", "Usage"],
    "errors": ["ConfigError", "EngineError", "RestmctsError", "StoreError", "TaskError", "TrainError"],
    "encoding": ["PromptSettings"],
    "engines": ["Engines"],
    "engines.settings": ["EngineSettings"],
    "engines.opening": ["load_engines"],
    "search": ["SEARCHES"],
    "search.settings": ["SearchSettings"],
    "tasks": ["TASKS"],
    "tasks.load": ["load_problems"],
    "rewards": ["Labels", "process_rewards"],
    "datasets": ["policy_rows", "value_rows"],
    "train.settings": ["PolicyTraining", "ValueTraining"],
    "train.policy": ["train_policy"],
    "train.value": ["train_value"],
    "config": ["RunConfig", "load_config"],
    "api": ["complete", "label", "solve"],
    "loop": ["run"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'restmcts' has no attribute {name!r}")
    value = getattr(import_module(f"restmcts.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # next time, Python finds it without asking here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
