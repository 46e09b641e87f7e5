"""ReST-MCTS*: LLM self-training by process-reward-guided tree search.

The public names load on first use, so that `import restmcts` loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors, which cannot follow `__getattr__`
    from restmcts.api import label as label
    from restmcts.api import solve as solve
    from restmcts.config import RunConfig as RunConfig
    from restmcts.config import load_config as load_config
    from restmcts.datasets import policy_rows as policy_rows
    from restmcts.datasets import value_rows as value_rows
    from restmcts.encoding import PromptSettings as PromptSettings
    from restmcts.engines import Engines as Engines
    from restmcts.engines.settings import EngineSettings as EngineSettings
    from restmcts.engines.transformers import load_engines as load_engines
    from restmcts.errors import ConfigError as ConfigError
    from restmcts.errors import EngineError as EngineError
    from restmcts.errors import RestmctsError as RestmctsError
    from restmcts.errors import StoreError as StoreError
    from restmcts.errors import TaskError as TaskError
    from restmcts.errors import TrainError as TrainError
    from restmcts.loop import run as run
    from restmcts.rewards import Labels as Labels
    from restmcts.rewards import process_rewards as process_rewards
    from restmcts.search import SEARCHES as SEARCHES
    from restmcts.search.settings import SearchSettings as SearchSettings
    from restmcts.tasks import TASKS as TASKS
    from restmcts.tasks.load import load_problems as load_problems
    from restmcts.train.policy import train_policy as train_policy
    from restmcts.train.settings import PolicyTraining as PolicyTraining
    from restmcts.train.settings import ValueTraining as ValueTraining
    from restmcts.train.value import train_value as train_value
    from restmcts.types import Problem as Problem
    from restmcts.types import Step as Step
    from restmcts.types import Tree as Tree
    from restmcts.types import Usage as Usage

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
