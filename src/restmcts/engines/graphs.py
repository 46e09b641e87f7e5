"""Decoding steps replayed as CUDA graphs.

A decoding step of a small model is hundreds of kernels of a few microseconds each, which Python launches more slowly
than a GPU runs them. Captured once for a number of rows and a span, they are launched as one.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger("restmcts")

_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""rows a graph is captured for; of more, steps are not replayed"""
_SPAN = 64
"""tokens to which the span of a graph is rounded up"""

Decode = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(ids [rows], positions [rows], span) → hidden states [rows, hidden], of tensors that lie on the device"""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any
    inputs: torch.Tensor
    """[2, rows]: ids and positions, read by each replay"""
    hidden: torch.Tensor
    """[rows, hidden], written by each replay"""


class Graphs:
    """Captured steps by (rows, span). They read and write the slab that was there when they were captured."""

    def __init__(self, decode: Decode, device: torch.device) -> None:
        self._decode = decode
        self._device = device
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._refused = False

    def usable(self) -> bool:
        """Whether steps are replayed: on a GPU, of a model that can be captured."""
        return self._device.type == "cuda" and not self._refused

    def size(self, rows: int, tokens: int) -> tuple[int, int] | None:
        """The (rows, span) of the graph that would serve so many; None where steps are not replayed."""
        at = bisect_left(_SIZES, rows)
        if not self.usable() or at == len(_SIZES):
            return None
        return _SIZES[at], -(-tokens // _SPAN) * _SPAN

    def forget(self) -> None:
        """Drop what was captured: the slab is another one."""
        self._captured.clear()
        self._pool = None

    def step(self, size: tuple[int, int], ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor | None:
        """Hidden states [len(ids), hidden], valid until the next step; None when this model cannot be captured."""
        padding = [0] * (size[0] - len(ids))
        inputs = torch.tensor([[*ids, *padding], [*positions, *padding]]).pin_memory()
        found = self._captured.get(size)
        if found is None:
            found = self._capture(size, inputs)
            if found is None:
                return None
            self._captured[size] = found
        found.inputs.copy_(inputs, non_blocking=True)
        found.graph.replay()
        return found.hidden[: len(ids)]

    def _capture(self, size: tuple[int, int], inputs: torch.Tensor) -> _Captured | None:
        span = size[1]
        there = inputs.to(self._device)
        try:
            # Not torch.cuda.graph: it collects garbage each time, of all open trees.
            graph = torch.cuda.CUDAGraph()
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._decode(there[0], there[1], span)  # what is prepared on first use must not be captured
                torch.cuda.synchronize()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    hidden = self._decode(there[0], there[1], span)
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._refused = True
            self.forget()
            log.info("decoding steps are not replayed: %s", " ".join(str(error).split())[:200])
            return None
        self._pool = self._pool or graph.pool()
        return _Captured(graph, there, hidden)
