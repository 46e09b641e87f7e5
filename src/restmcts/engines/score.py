"""The value model on plain transformers: each new step is computed once, its prefix is reused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from restmcts.encoding import Encoded
from restmcts.engines import TransientError
from restmcts.engines.busy import Busy
from restmcts.engines.kv import ATTENTION
from restmcts.engines.prefixes import Chain, PrefixModel
from restmcts.engines.settings import EngineSettings
from restmcts.engines.worker import Letter, Mailbox, Worker
from restmcts.errors import EngineError
from restmcts.types import Path, Problem, Score, Scores, Usage

_FULL_BATCH, _GPU_FULL_BATCH = 32, 96
"""waiting requests at which scoring is as urgent as decoding a full batch"""
_PATIENCE = 1.0
"""seconds after which a single waiting request is"""
_MOST_REQUESTS, _GPU_MOST_REQUESTS = 64, 256


Read = Callable[[torch.Tensor], torch.Tensor]
"""hidden states [n, hidden] → values [n] in [0, 1]"""


class Traces(Protocol):
    """The part of `encoding.Encoder` that scoring needs."""

    @property
    def tokenizer_id(self) -> str | None: ...

    @property
    def shared_length(self) -> int: ...

    def trace(self, problem: Problem, path: Path) -> Encoded: ...


def read_label(model: Any) -> Read:
    """v = sigmoid(logit) of a token classifier with one label."""
    return lambda hidden: torch.sigmoid(model.score(hidden).float()[:, 0])


class TransformersValue:
    """A causal model as value engine: `read` makes v of the hidden state where a step's value stands.

    That is where `encoder.trace` says the step ends.
    """

    def __init__(self, model: Any, encoder: Traces, read: Read, settings: EngineSettings, identity: str) -> None:
        self.identity = identity
        self.encoder = encoder
        self.tokenizer_id = encoder.tokenizer_id
        self.busy = Busy()
        model.set_attn_implementation(ATTENTION)
        self._read = read
        self._prefixes = PrefixModel(model, settings.cache_mb << 20, settings.rows_bytes(model.device.type))
        self._worker = Worker.of(str(model.device))
        self._mail = Mailbox(self._worker)
        self._since: float | None = None
        on_cpu = model.device.type == "cpu"
        self._full, self._most = (_FULL_BATCH, _MOST_REQUESTS) if on_cpu else (_GPU_FULL_BATCH, _GPU_MOST_REQUESTS)
        self._worker.add(self)

    async def score(self, request: Score) -> Scores:
        if not request.paths:
            return Scores(())
        reply: Scores = await self._mail.ask(request)
        return reply

    @property
    def busy_seconds(self) -> float:
        """Seconds in which a step of this model was being computed."""
        return self.busy.seconds

    async def close(self) -> None:
        self._worker.remove(self)

    # ------------------------------------------------------------------ on the worker's thread

    def urgency(self) -> float:
        """Grows with what waits and how long: scoring a few paths at a time would waste the hardware."""
        waiting = len(self._mail)
        if not waiting:
            self._since = None
            return 0.0
        self._since = self._since or time.monotonic()
        return waiting / self._full + (time.monotonic() - self._since) / _PATIENCE

    def shrink(self) -> bool:
        """Half the requests at once."""
        if self._most == 1:
            return False
        self._most //= 2
        self._prefixes.shrink()
        self._mail.put_back()
        return True

    def fail(self, error: EngineError) -> None:
        self._prefixes.forget()
        self._mail.refuse_all(error)

    @torch.inference_mode()
    def step(self) -> None:
        letters: list[Letter] = []
        while len(letters) < self._most and (letter := self._mail.take()) is not None:
            letters.append(letter)
        self._since = None
        chains = [self._chain(letter.request.problem, path) for letter in letters for path in letter.request.paths]
        if not chains:
            return
        hidden, computed = self._prefixes.extend(chains)
        values = self._read(hidden).tolist()
        at = 0
        for letter in letters:
            count = len(letter.request.paths)
            tokens = tuple(computed[at : at + count])
            own, usage = tuple(values[at : at + count]), Usage(value_tokens=sum(tokens), requests=1)
            if any(map(math.isnan, own)):
                letter.refuse(TransientError("the value model's output is no number", again=False, usage=usage))
            else:
                letter.reply(Scores(own, usage, tokens))
            at += count
        if any(map(math.isnan, values)):
            self._prefixes.forget()  # 0 times what is no number is no number: it would reach others

    def _chain(self, problem: Problem, path: Path) -> Chain:
        trace = self.encoder.trace(problem, path)
        shared = min(self.encoder.shared_length, trace.prompt_length)
        return Chain(trace.ids, sorted({shared, trace.prompt_length, *(end + 1 for end in trace.ends)} - {0}))
