"""The public names, for type checkers and editors."""

from restmcts.api import complete as complete, label as label, solve as solve
from restmcts.config import RunConfig as RunConfig, load_config as load_config
from restmcts.datasets import policy_rows as policy_rows, value_rows as value_rows
from restmcts.encoding import PromptSettings as PromptSettings
from restmcts.engines import Engines as Engines
from restmcts.engines.opening import load_engines as load_engines
from restmcts.engines.settings import EngineSettings as EngineSettings
from restmcts.errors import (
    ConfigError as ConfigError,
    EngineError as EngineError,
    RestmctsError as RestmctsError,
    StoreError as StoreError,
    TaskError as TaskError,
    TrainError as TrainError,
)
from restmcts.loop import run as run
from restmcts.rewards import Labels as Labels, process_rewards as process_rewards
from restmcts.search import SEARCHES as SEARCHES
from restmcts.search.settings import SearchSettings as SearchSettings
from restmcts.tasks import TASKS as TASKS
from restmcts.tasks.load import load_problems as load_problems
from restmcts.train.policy import train_policy as train_policy
from restmcts.train.settings import PolicyTraining as PolicyTraining, ValueTraining as ValueTraining
from restmcts.train.value import train_value as train_value
from restmcts.types import Problem as Problem, Step as Step, Tree as Tree, Usage as Usage

__version__: str
