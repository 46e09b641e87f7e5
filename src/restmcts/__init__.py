"""ReST-MCTS*: LLM self-training by process-reward-guided tree search.

The public names load on first use, so that `import restmcts` loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors, which cannot follow `__getattr__`
    from restmcts.api import label, solve
    from restmcts.config import RunConfig, load_config
    from restmcts.datasets import policy_rows, value_rows
    from restmcts.encoding import PromptSettings
    from restmcts.engines import Engines
    from restmcts.engines.settings import EngineSettings
    from restmcts.engines.transformers import load_engines
    from restmcts.errors import ConfigError, EngineError, RestmctsError, StoreError, TaskError, TrainError
    from restmcts.loop import run
    from restmcts.rewards import Labels, process_rewards
    from restmcts.search import SEARCHES
    from restmcts.search.settings import SearchSettings
    from restmcts.tasks import TASKS
    from restmcts.tasks.load import load_problems
    from restmcts.train.policy import train_policy
    from restmcts.train.settings import PolicyTraining, ValueTraining
    from restmcts.train.value import train_value
    from restmcts.types import Problem, Step, Tree, Usage

__version__ = "0.1.0"

_HOME = {
    "types": ["Problem", "Step", "Tree", "Usage"],
    "errors": ["ConfigError", "EngineError", "RestmctsError", "StoreError", "TaskError", "TrainError"],
    "encoding": ["PromptSettings"],
    "engines": ["Engines"],
    "engines.settings": ["EngineSettings"],
    "engines.transformers": ["load_engines"],
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
    "api": ["label", "solve"],
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
