"""One exception per boundary. Each message names the value, the rule it breaks and the remedy, on one line."""

from __future__ import annotations


class RestmctsError(Exception):
    """Base of everything restmcts raises on purpose; the command line prints it as one line and exits with 2."""


class ConfigError(RestmctsError):
    """A setting, a flag or a combination of them is not usable."""


class TaskError(RestmctsError):
    """A question set cannot be read, or a question lacks what is needed of it."""


class EngineError(RestmctsError):
    """A model cannot be loaded or has stopped answering for good."""


class StoreError(RestmctsError):
    """A run folder or a file in it cannot be read, written or trusted."""


class TrainError(RestmctsError):
    """Training cannot start or cannot go on (no rows, a loss that is not finite, memory)."""


class FixedModelError(TrainError):
    """This model can be used and not be trained."""
