"""Several processes of one training, as `accelerate launch` and `torchrun` start them.

All of them compute; the first alone locks and writes the folder and shows progress. When one fails, the launcher ends
the others. Loads torch only where there are several.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""how long processes wait for each other, for example while the first one writes a checkpoint"""

FIRST_SPEAKS = 10.0
"""seconds for which the other processes keep an error to themselves: the first may have it too, and then they end"""
_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl")


def count() -> int:
    """How many processes train; 1 where no launcher has started this one."""
    # Some clusters set WORLD_SIZE and RANK for whole machines; LOCAL_RANK is a launcher's.
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


@contextmanager
def together(device: str) -> Iterator[None]:
    """Within it, the processes of this training can talk to each other; `device` is a training's setting."""
    if count() == 1:
        yield
        return
    import torch
    from torch import distributed

    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    yield
    distributed.destroy_process_group()  # after an error the process ends anyway, and taking leave might hang


def agreed(say: Callable[[], T]) -> T:
    """What `say` returns in the first process, in all of them; the others do not call it."""
    if count() == 1:
        return say()
    import torch
    from torch import distributed

    said: list[Any] = [say() if is_first() else None]
    distributed.broadcast_object_list(said, device=torch.device("cpu"))
    found: T = said[0]
    return found


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()


def let_the_first_speak() -> None:
    """To be called before saying what went wrong: so that of an error of all processes one line is said."""
    if not is_first():
        time.sleep(FIRST_SPEAKS)


def lost(error: BaseException) -> bool:
    """Whether another process ended while this one was talking to it.

    Returns late, so that the launcher can end this one before it says anything: the other knew more.
    """
    said = str(error).lower()
    found = count() > 1 and isinstance(error, RuntimeError) and any(words in said for words in _GONE)
    if found:
        time.sleep(3 * FIRST_SPEAKS)
    return found
