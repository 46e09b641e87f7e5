"""The plain way that everything is compared with: transformers' own `generate`, and values path by path.

Nothing is kept from one request to the next. As engines they serve one request at a time, sample by sample and path by
path, which is how the published code of tree searches works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restmcts import models
from restmcts.encoding import Encoder, read_verdict
from restmcts.engines import Busy, Engines
from restmcts.engines.vllm import as_sample
from restmcts.seeds import derive_seed
from restmcts.types import Critique, Proposals, Propose, Sample, Score, Scores, Step, Usage, Verdict


def plain_engines(policy: Path, value: Path, encoder: Encoder) -> Engines:
    """Both models as transformers loads them, in the precision that the engines use."""
    device = models.pick_device()
    dtype = models.pick_dtype("auto", device)
    return Engines(
        PlainPolicy(models.load_causal(policy, dtype=dtype, device=device), encoder),
        PlainValue(models.load_token_classifier(value, dtype=dtype, device=device), encoder),
    )


class PlainPolicy:
    """A causal language model asked by `generate`."""

    identity = "generate"

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        self.tokenizer_id: str | None = encoder.tokenizer_id
        self.busy = Busy()
        texts = encoder.tokenizer.batch_decode([[token] for token in range(len(encoder.tokenizer))])
        self._turn = encoder.end_ids | models.configured_ends(model.generation_config)
        self._ends = sorted({token for token, text in enumerate(texts) if encoder.delimiter in text} | self._turn)

    @property
    def busy_seconds(self) -> float:
        return self.busy.seconds

    async def propose(self, request: Propose) -> Proposals:
        ids = self.prompt(request)
        seeds = [derive_seed(request.seed, index) for index in range(request.n)]
        drawn = [self._draw_one(ids, seed, request.temperature, request.max_tokens) for seed in seeds]
        usage = Usage(sum(map(len, drawn)), len(ids) * request.n, requests=request.n)
        return Proposals(tuple(map(self._sample, drawn)), usage)

    async def critique(self, request: Critique) -> Verdict:
        ids = self.encoder.critique(request.problem, request.path)
        new = self._draw_one(ids, request.seed, 0.0, request.max_tokens)
        return read_verdict(self._sample(new).step.text, Usage(len(new), len(ids), requests=1))

    async def close(self) -> None:
        """Nothing to close."""

    def prompt(self, request: Propose) -> list[int]:
        """The ids of the question and of the steps so far."""
        ids = self.encoder.prompt(request.problem, request.advice)
        return ids + [token for step in request.path for token in self.encoder.step(step)]

    def _draw_one(self, ids: list[int], seed: int, temperature: float, most: int) -> tuple[int, ...]:
        import torch

        with self.busy:
            torch.manual_seed(seed)
            (new,) = self.draw([ids], temperature, most)
        return tuple(new)

    def draw(self, prompts: Sequence[list[int]], temperature: float, most: int) -> list[list[int]]:
        """A step after each prompt, in one padded batch that ends with its longest step."""
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
            **sampling,
        )
        return [self._cut(row) for row in made[:, width:].tolist()]

    def _cut(self, new: list[int]) -> list[int]:
        """Up to the first token that ends the step, that one included."""
        return new[: next((at for at, token in enumerate(new, start=1) if token in self._ends), len(new))]

    def _sample(self, new: tuple[int, ...]) -> Sample:
        reason = "stop" if new[-1] in self._ends else "length"
        return as_sample(self.encoder, new, reason, self._turn, 0.0) or Sample(Step("", new), "step")


class PlainValue:
    """A token classifier that computes every path from its first token on."""

    identity = "forward"

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        self.tokenizer_id: str | None = encoder.tokenizer_id
        self.busy = Busy()

    @property
    def busy_seconds(self) -> float:
        return self.busy.seconds

    async def score(self, request: Score) -> Scores:
        from restmcts.train.value import score_traces

        with self.busy:
            one_by_one = [score_traces(self.model, self.encoder, [(request.problem, path)]) for path in request.paths]
        tokens = sum(len(self.encoder.trace(request.problem, path).ids) for path in request.paths)
        usage = Usage(value_tokens=tokens, requests=len(request.paths))
        return Scores(tuple(values[0][-1] for values in one_by_one), usage)

    async def close(self) -> None:
        """Nothing to close."""
