"""One exception per boundary. Each message names the value, the rule it breaks and the remedy, on one line."""

from __future__ import annotations

LONGEST = 1500
"""characters of a message"""


class RestmctsError(Exception):
    """Base of everything restmcts raises on purpose; the command line prints it as one line and exits with 2.

    The message is made one line, and of values without end only the beginning is shown.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split()) if len(message.splitlines()) > 1 else message
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} … {line[-300:]}")


class ConfigError(RestmctsError):
    """A setting, a flag or a combination of them is not usable."""


class TaskError(RestmctsError):
    """A question set cannot be read, or a question lacks what is needed of it."""


class EngineError(RestmctsError):
    """A model cannot be loaded or has stopped answering for good."""


class StoreError(RestmctsError):
    """A run folder or a file in it cannot be read, written or trusted."""


class Damaged(StoreError):
    """Something that was written whole is so no longer; what made it can make it again."""


class TrainError(RestmctsError):
    """Training cannot start or cannot go on (no rows, a loss that is not finite, memory)."""


class HubError(RestmctsError):
    """The model hub cannot be reached, refuses, or would show what is to be private."""


class FixedModelError(TrainError):
    """This model can be used and not be trained."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in Python, on the GPU or in torch's own allocator."""
    if isinstance(error, MemoryError):
        return True
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said)
    )
