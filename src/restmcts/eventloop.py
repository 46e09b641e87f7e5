"""An event loop for many open trees: run from anywhere, looked at by the garbage collector less often."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_COLLECT_AFTER = 100
"""new objects for each open tree between two looks of the garbage collector"""


@contextmanager
def rare_collections(trees: int) -> Iterator[None]:
    """Let the garbage collector look less often: it looks at all open trees, and with thousands of them at little else.

    Nothing here needs it; what falls to it is found a little later.
    """
    before = gc.get_threshold()
    if before[0]:  # else it is switched off
        gc.set_threshold(max(before[0], _COLLECT_AFTER * trees), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def first_error(error: BaseException) -> BaseException:
    """The error itself, out of the groups in which tasks hand it on."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def run_async(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, also from within a running event loop, as notebooks have one: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    inside: list[asyncio.Task[Any]] = []

    async def watched() -> None:
        if (task := asyncio.current_task()) is not None:
            inside.append(task)
        await main

    with ThreadPoolExecutor(1, "restmcts-drive") as thread:
        running = thread.submit(asyncio.run, watched())
        try:
            running.result()
        except KeyboardInterrupt:
            if not running.done():
                inside[0].get_loop().call_soon_threadsafe(inside[0].cancel)
            raise
