"""The policy on a plain transformers model: continuous batching, prefix reuse along the tree, seeded sampling.

All open rows advance one token per step. A row that is done leaves at once and its tree goes on, so there is no barrier
between trees. A sample's tokens are drawn from (its seed, its position) alone: what it draws does not depend on its
batch mates, though logits may differ in their last bits with the shape of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from restmcts.encoding import Encoder, read_verdict
from restmcts.engines import TransientError
from restmcts.engines.busy import Busy
from restmcts.engines.kv import ATTENTION, Rows
from restmcts.engines.prefixes import Chain, PrefixModel
from restmcts.engines.settings import EngineSettings
from restmcts.engines.worker import Letter, Mailbox, Worker
from restmcts.errors import EngineError
from restmcts.models import configured_ends
from restmcts.seeds import Seeds
from restmcts.types import Critique, Path, Problem, Proposals, Propose, Sample, Step, Usage, Verdict

_LEAST = 1e-38
"""a probability has a logarithm, however small it is"""
_DRAWN_AT_ONCE = 32
"""rows whose probabilities are at hand together: few enough to stay in a CPU's cache; on a GPU all are"""
_BLOCK = 128


@dataclass(slots=True)
class _Job:
    """A Propose or Critique at work; `samples` fills as its rows finish."""

    letter: Letter
    chain: Chain
    """all ids but the last, which is fed together with the first decoding step"""
    last: int
    n: int
    max_tokens: int
    temperature: float
    seed: int
    first: int = 0
    samples: dict[int, Sample] = field(default_factory=dict)
    cached: int = 0
    generated: int = 0

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return len(self.chain.ids) + 1 + self.max_tokens


@dataclass(slots=True)
class _Row:
    """A sequence being decoded. `fork` samples are drawn from its next logits: n for a new row, then 1."""

    job: _Job
    index: int
    pending: int
    fork: int = 1
    new: list[int] = field(default_factory=list)
    logprob: float = 0.0
    seeds: Seeds = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = Seeds(self.job.seed, self.job.first + self.index)

    def uniform(self) -> float:
        """A number in [0, 1) that depends on the sample's identity and the token's position alone."""
        return self.seeds(len(self.new)) / (1 << 63)


class TransformersPolicy:
    """A causal language model as policy engine."""

    def __init__(self, model: Any, encoder: Encoder, settings: EngineSettings, identity: str) -> None:
        self.identity = identity
        self.encoder = encoder
        self.tokenizer_id: str | None = encoder.tokenizer_id
        self.busy = Busy()
        model.set_attn_implementation(ATTENTION)
        self._model = model
        self._max_rows = settings.max_rows
        rows_bytes = settings.rows_bytes(model.device.type)
        self._prefixes = PrefixModel(model, settings.cache_mb << 20, rows_bytes)
        self._kv = Rows(model, rows_bytes)
        self._next: _Job | None = None
        self._rows: list[_Row] = []
        self._pieces: dict[int, str] = {}
        self._context = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        self._end_ids = encoder.end_ids | configured_ends(model.generation_config)
        self._worker = Worker.of(str(model.device))
        self._mail = Mailbox(self._worker)
        self._worker.add(self)

    async def propose(self, request: Propose) -> Proposals:
        reply: Proposals = await self._mail.ask(request)
        return reply

    async def critique(self, request: Critique) -> Verdict:
        reply: Proposals = await self._mail.ask(request)
        return read_verdict(reply.samples[0].step.text, reply.usage)

    @property
    def busy_seconds(self) -> float:
        """Seconds in which a step of this model was being computed."""
        return self.busy.seconds

    async def close(self) -> None:
        self._worker.remove(self)

    # ------------------------------------------------------------------ on the worker's thread

    def urgency(self) -> float:
        """The share of rows at work or waiting."""
        return (len(self._rows) + len(self._mail)) / self._max_rows

    def shrink(self) -> bool:
        """Half the rows at once; what was begun is begun again, and draws the same."""
        if self._max_rows == 1:
            return False
        self._max_rows //= 2
        self._rows.clear()
        self._kv.free()
        self._prefixes.shrink()
        self._mail.put_back()
        return True

    def fail(self, error: EngineError) -> None:
        self._rows.clear()
        self._kv.free()
        self._prefixes.forget()
        self._mail.refuse_all(error)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what waits while there is room, then one token for every row."""
        for at in reversed(range(len(self._rows))):
            letter = self._rows[at].job.letter
            if letter.future.cancelled():
                self._mail.taken.discard(letter)
                self._release(at)
        self._admit()
        if not self._rows:
            return
        hidden = self._kv.forward(0, [[row.pending] for row in self._rows])
        logits = self._model.lm_head(hidden)
        source = self._fork()
        if len(source) > len(logits):
            logits = logits[source]
        for row, (token, logprob) in zip(self._rows, self._draw(logits), strict=True):
            row.new.append(token)
            row.pending = token
            row.logprob += logprob
            row.job.generated += 1
        if any(math.isnan(row.logprob) for row in self._rows):
            self._refuse_unsound()
        for at in reversed(range(len(self._rows))):
            self._finish(at)

    def _refuse_unsound(self) -> None:
        """Refuse the requests whose logits are no numbers, and forget all that was computed for them."""
        unsound = {id(row.job) for row in self._rows if math.isnan(row.logprob)}
        for at in reversed(range(len(self._rows))):
            job = self._rows[at].job
            if id(job) in unsound:
                job.letter.refuse(TransientError("the policy's logits are no numbers", again=False))
                self._kv.blank(at)
                self._release(at)
        self._prefixes.forget()

    def _admit(self) -> None:
        """Start waiting requests: what their prefix lacks in the cache is computed, up to the last token."""
        jobs: list[_Job] = []
        count, width = len(self._rows), max((row.job.width for row in self._rows), default=0)

        def fits(letter: Letter) -> bool:
            if self._next is None or self._next.letter is not letter:
                self._next = self._job(letter)
            most = min(self._max_rows, self._kv.room(max(width, self._next.width)))
            return count == 0 or count + self._next.n <= most  # one that is wider than the whole engine runs alone

        while (letter := self._mail.take(fits)) is not None and self._next is not None:
            job, self._next = self._next, None
            if job.max_tokens > 0:
                jobs.append(job)
                count, width = count + job.n, max(width, job.width)
            else:
                nothing = Sample(Step("", ()), "length", tokens=0)
                letter.reply(Proposals((nothing,) * job.n, Usage(prompt_tokens=len(job.chain.ids) + 1, requests=1)))
        lacking = []
        for job in jobs:
            job.cached = self._prefixes.cache.longest(job.chain.ids, job.chain.ends)[1]
            if job.cached < len(job.chain.ids):
                lacking.append(job.chain)
        if lacking:
            self._prefixes.extend(lacking)
        for job in jobs:
            segments, covered = self._prefixes.cache.longest(job.chain.ids, job.chain.ends)
            at = self._kv.append(segments)
            if covered < len(job.chain.ids):  # the cache is too small to hold even this
                self._kv.forward(at, [job.chain.ids[covered:]])
            self._rows.append(_Row(job, 0, job.last, fork=job.n))

    def _job(self, letter: Letter) -> _Job:
        request: Propose | Critique = letter.request
        if isinstance(request, Critique):
            ids = self.encoder.critique(request.problem, request.path)
            ends: list[int] = []
            n, temperature, first = 1, 0.0, 0
        else:
            ids, ends = self._prefix(request.problem, request.path, request.advice)
            n, temperature, first = request.n, request.temperature, request.first
        chain = Chain(ids[:-1], [*(end - 1 for end in ends), len(ids) - 1])
        room = self._context - len(ids)
        return _Job(letter, chain, ids[-1], n, min(request.max_tokens, room), temperature, request.seed, first)

    def _prefix(self, problem: Problem, path: Path, advice: str | None) -> tuple[list[int], list[int]]:
        """Prompt and steps, and where the segments before the last one end (each +1: the last token is held back)."""
        ids = self.encoder.prompt(problem, advice)
        shared = self.encoder.shared_length
        ends = [shared + 1] if 0 < shared < len(ids) - 1 else []
        for step in path:
            ends.append(len(ids))
            ids += self.encoder.step(step)
        return ids, ends

    def _fork(self) -> list[int]:
        """Give every sample of a new request its own row; the row of logits that each row draws from."""
        source = list(range(len(self._rows)))
        for at in range(len(self._rows)):
            row = self._rows[at]
            for index in range(1, row.fork):
                self._kv.fork(at)
                self._rows.append(_Row(row.job, index, row.pending))
                source.append(at)
            row.fork = 1
        return source

    def _draw(self, logits: torch.Tensor) -> list[tuple[int, float]]:
        """One token per row and its log-probability (at temperature 1, whatever it was drawn at).

        It is the argmax at temperature 0, else drawn by inverse CDF at the row's own uniform number.
        """
        drawn: list[tuple[int, float]] = []
        at_once = _DRAWN_AT_ONCE if logits.device.type == "cpu" else len(logits)
        for start in range(0, len(logits), at_once):
            rows = self._rows[start : start + at_once]
            temperatures = [row.job.temperature for row in rows]
            uniforms = [row.uniform() if row.job.temperature > 0 else 0.0 for row in rows]
            tokens, logprobs = draw(logits[start : start + at_once].float(), temperatures, uniforms)
            drawn += zip(tokens.tolist(), logprobs.tolist(), strict=True)
        return drawn

    def _finish(self, at: int) -> None:
        row, job = self._rows[at], self._rows[at].job
        sample = self._sample(row)
        if sample is None:
            return
        if sample.finish == "step" and sample.step.ids is not None:
            # Its children start from here: keep all but the last token, which was never fed back.
            start, stop = len(job.chain.ids), self._kv.length[at]
            prefix = (*job.chain.ids, job.last, *row.new)[:stop]
            self._prefixes.cache.put(prefix, self._kv.cut(at, start, stop))
        self._release(at)
        job.samples[row.index] = sample
        if len(job.samples) == job.n:
            prompt = len(job.chain.ids) + 1
            usage = Usage(job.generated, prompt, job.cached, requests=1)
            job.letter.reply(Proposals(tuple(job.samples[i] for i in range(job.n)), usage))

    def _sample(self, row: _Row) -> Sample | None:
        """The row's sample if it has ended."""
        facts = row.logprob, len(row.new)
        if row.new[-1] in self._end_ids:
            new = row.new[:-1]
            return Sample(Step(self.encoder.decode(new).strip(), tuple(new)), "end", *facts)
        delimiter = self.encoder.delimiter
        if delimiter[-1] in self._piece(row.new[-1]):
            text, found, rest = self.encoder.decode(row.new).lstrip().partition(delimiter)
            if found:
                # A token that reaches into the next step cannot be kept as this step's: the text is.
                ids = None if rest.strip() else tuple(row.new)
                return Sample(Step(text.strip(), ids), "step", *facts)
        if len(row.new) >= row.job.max_tokens:
            return Sample(Step(self.encoder.decode(row.new).strip(), tuple(row.new)), "length", *facts)
        return None

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.encoder.decode([token])
        return self._pieces[token]

    def _release(self, at: int) -> None:
        last = self._kv.release(at)
        self._rows[at] = self._rows[last]
        self._rows.pop()


def draw(
    logits: torch.Tensor, temperatures: Sequence[float], uniforms: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of float32 `logits` [rows, vocabulary], and its log-probability at temperature 1.

    The argmax where the temperature is 0, else the inverse of the CDF at the row's uniform number in [0, 1).
    """
    probabilities = logits.softmax(dim=-1)
    temperature = logits.new_tensor(temperatures)
    weights = probabilities
    if any(t not in (0.0, 1.0) for t in temperatures):
        weights = (logits / temperature.clamp(min=1e-6)[:, None]).softmax(dim=-1)
    if any(temperatures):
        chosen = inverse_cdf(weights, logits.new_tensor(uniforms))
        if not all(temperatures):
            chosen = torch.where(temperature > 0, chosen, logits.argmax(dim=-1))
    else:
        chosen = logits.argmax(dim=-1)
    chosen = chosen.clamp(max=logits.shape[-1] - 1)  # where logits are no numbers, any place may be found
    return chosen, probabilities.gather(1, chosen[:, None])[:, 0].clamp(min=_LEAST).log()


def inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first index of each row at which the sum of its weights exceeds uniform × their total.

    Summed by blocks first: a running sum over a whole vocabulary costs more than everything else that is done with it.
    """
    rows, size = weights.shape
    if size % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -size % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = blocks.sum(dim=-1).cumsum(dim=-1)
    point = uniforms[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, point, right=True).clamp(max=sums.shape[1] - 1)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].cumsum(dim=-1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0)
    # What rounding leaves beyond the block's end belongs to its last index that weighs something.
    rest = torch.minimum(point - before, torch.nextafter(within[:, -1:], torch.zeros_like(point)))
    return (block * _BLOCK + torch.searchsorted(within, rest, right=True))[:, 0]
