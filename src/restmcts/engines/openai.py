"""Engines on models behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, a commercial API.

`--policy NAME` is the model's name there; `--value` is one of

- `pooling:NAME` a value model that vLLM serves at `/pooling` (`vllm serve FOLDER --runner pooling`);
- `judge:NAME` a language model that is asked for a score (`engines/judging.py`);
- a folder, or a public process reward model by its family (`rlhflow:NAME`): it runs here, on transformers.

Settings are `engine.server.*`; the key comes from RESTMCTS_API_KEY, else OPENAI_API_KEY. How the server is asked is
found out once (`engines/asking.py`). Three things are less than an engine in this process gives:

- steps hold token ids only where prompts go as token ids and the server returns them (vLLM with a tokenizer at hand);
- servers that do not say whether a text ended at the delimiter or the model was done are taken to mean the former: an
  ending is never invented, and a model that was done says nothing more when it is asked again;
- replies to equal requests are equal as far as the server's are; log-probabilities are those that the server reports.

A server that gives no token counts is counted for: by its tokenizer where that is at hand, else one token for three
bytes of text, which is more than most tokenizers make of English, so that budgets hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from restmcts import models
from restmcts.encoding import Encoder, PromptSettings, read_verdict, shown_examples
from restmcts.engines import Busy, Engines, TransientError, ValueEngine
from restmcts.engines.asking import Asker, Way, find_way
from restmcts.engines.judging import JudgeValue, PoolingValue
from restmcts.engines.reading import Choice, Reply, estimate, read_reply
from restmcts.engines.server import Refused, Server, TooLong
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError, EngineError
from restmcts.seeds import derive_seed
from restmcts.types import Critique, Problem, Proposals, Propose, Sample, Step, Usage, Verdict

POOLING, JUDGE = "pooling:", "judge:"
_SEEDS = 1 << 31
"""seeds that every server can hold"""
_MOST_LEADS = 2
"""how often a model that begins with the delimiter is asked to go on"""

log = logging.getLogger("restmcts")


class ServerPolicy:
    """A language model behind a server as policy engine."""

    def __init__(self, server: Server, asker: Asker, settings: EngineSettings) -> None:
        self.identity = f"{asker.model} at {server.place}"
        self.tokenizer_id: str | None = None if asker.encoder is None else asker.encoder.tokenizer_id
        self._server = server
        self._asker = asker
        self._way = asker.way
        self._delimiter = asker.prompt.delimiter
        self._seeds = settings.server.seeds
        self._estimates = False
        self._busy = Busy()

    @property
    def busy_seconds(self) -> float:
        """Seconds in which at least one request was on its way."""
        return self._busy.seconds

    async def propose(self, request: Propose) -> Proposals:
        """Greedy samples are all the same: they are drawn once."""
        draws = request.n if request.temperature > 0 else 1
        found: dict[int, Sample] = {}
        usage = Usage()
        while len(found) < draws:
            missing = [i for i in range(request.first, request.first + draws) if i not in found]
            parts = [missing] if self._way.several else [[i] for i in missing]
            answers = await asyncio.gather(*(self._draw(request, part) for part in parts), return_exceptions=True)
            usage = sum((a.usage for a in answers if isinstance(a, Proposals | TransientError)), usage)
            for part, answer in zip(parts, answers, strict=True):
                if isinstance(answer, TooLong):
                    return Proposals((Sample(Step(""), "length"),) * request.n, usage + Usage(requests=1))
                if isinstance(answer, TransientError):
                    raise TransientError(str(answer), again=False, usage=usage)
                if isinstance(answer, BaseException):
                    raise answer
                found |= dict(zip(part, answer.samples, strict=False))
        samples = tuple(found[i] for i in sorted(found))
        return Proposals(samples if draws == request.n else samples * request.n, usage)

    async def critique(self, request: Critique) -> Verdict:
        prompt = self._asker.critique(request.problem, request.path)
        try:
            reply, usage = await self._ask(prompt, 1, request.max_tokens, 0.0, request.seed)
        except TooLong:
            return Verdict(solved=False, usage=Usage(requests=1))
        text = reply.choices[0].text.strip().partition(self._delimiter)[0].strip()
        return read_verdict(text, usage)

    async def close(self) -> None:
        self._server.close()

    async def _draw(self, request: Propose, part: Sequence[int]) -> Proposals:
        """Samples number `part`; fewer where the server made fewer.

        Some models begin a step with the delimiter, at which the server stops: they are asked to go on after it.
        """
        samples: list[Sample | None] = [None] * len(part)
        usage, lead = Usage(), ""
        for leads in range(_MOST_LEADS + 1):
            waiting = [k for k, sample in enumerate(samples) if sample is None]
            prompt = self._asker.next_step(request.problem, request.path, request.advice, lead)
            seed = derive_seed(request.seed, part[waiting[0]], leads)
            try:
                reply, cost = await self._ask(prompt, len(waiting), request.max_tokens, request.temperature, seed)
            except TransientError as error:
                raise type(error)(str(error), again=False, usage=usage + error.usage) from None
            usage += cost
            again = False
            for k, choice in zip(waiting, reply.choices, strict=False):
                if leads < _MOST_LEADS and self._begins_with_delimiter(choice):
                    again = True
                else:
                    samples[k] = self._sample(choice, request, lead)
            if not again:
                break
            lead += self._delimiter
        return Proposals(tuple(sample for sample in samples if sample is not None), usage)

    async def _ask(
        self, prompt: dict[str, Any], n: int, max_tokens: int, temperature: float, seed: int
    ) -> tuple[Reply, Usage]:
        body = self._asker.body(
            prompt,
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed % _SEEDS if self._seeds else None,
            stop=[self._delimiter],
        )
        try:
            with self._busy:
                reply = await self._server.ask(self._way.path, body, lambda raw: read_reply(raw, max_tokens))
        except Refused as error:
            if error.status == 404:  # the model is there no more
                raise
            raise TransientError(str(error), again=False) from None
        return reply, self._usage(reply, prompt)

    def _begins_with_delimiter(self, choice: Choice) -> bool:
        """Whether that is all there is; of a text that is empty, the server must have said so."""
        return not choice.text.strip() and (self._delimiter in choice.text or choice.matched == "stop")

    def _sample(self, choice: Choice, request: Propose, lead: str) -> Sample:
        """The step in a text, and why it ended: by the text itself, else by the word of the server, else by a step."""
        text = choice.text
        so_far = "".join(step.text + self._delimiter for step in request.path) + lead
        if so_far and self._way.kind == "continue":
            text = text.removeprefix(so_far)  # some servers repeat the turn that they continue
        head, found, rest = text.lstrip().partition(self._delimiter)
        logprob = None if choice.logprobs is None or lead or rest.strip() else sum(choice.logprobs)
        step = Step(head.strip(), None if lead else self._own_ids(choice, head, bool(found)))
        if found:
            return Sample(step, "step", logprob)
        if choice.finish == "length":
            return Sample(step, "length", logprob)
        told = choice.matched or ("end" if self._way.keeps_stop and self._delimiter not in text else "stop")
        return Sample(step, "end" if told == "end" and self._way.kind != "chat" else "step", logprob)

    def _own_ids(self, choice: Choice, head: str, delimited: bool) -> tuple[int, ...] | None:
        """The ids of a step where they say, in the tokenizer at hand, what its text says, and nothing beyond it."""
        encoder, ids = self._asker.encoder, choice.ids
        if ids is None or encoder is None or max(ids) >= len(encoder.tokenizer):
            return None
        while ids and ids[-1] in encoder.end_ids:
            ids = ids[:-1]
        said, found, rest = encoder.decode(ids).lstrip().partition(self._delimiter)
        return ids if bool(found) == delimited and said.strip() == head.strip() and not rest.strip() else None

    def _usage(self, reply: Reply, prompt: dict[str, Any]) -> Usage:
        given, made = reply.prompt_tokens, reply.generated_tokens
        if (given is None or made is None) and not self._estimates:
            self._estimates = True
            log.warning("%s gives no token counts: tokens are estimated", self._server.url)
        if given is None:
            ids = prompt.get("prompt")
            given = len(ids) if isinstance(ids, list) else self._estimate(str(ids or prompt.get("messages")))
        if made is None:
            made = sum(len(c.ids or c.logprobs or ()) or self._estimate(c.text) + 1 for c in reply.choices)
        return Usage(made, given, min(reply.cached_tokens or 0, given), requests=1)

    def _estimate(self, text: str) -> int:
        if self._asker.encoder is not None:
            return len(self._asker.encoder.text_ids(text))
        return estimate(text)


# ---------------------------------------------------------------- opening


def load_engines(
    policy: str | Path,
    value: str | Path | None = None,
    prompt: PromptSettings | None = None,
    settings: EngineSettings | None = None,
    examples: Sequence[Problem] = (),
) -> Engines:
    """Connect to the policy and, where given, the value model; the servers are asked what they know at once.

    The prompt format stored with a checkpoint folder, where the policy or the tokenizer is one, wins over `prompt`.
    Raises EngineError for a server that is not there, does not know the model or refuses the key, and ConfigError for
    a value model that is not one.
    """
    prompt, settings = prompt or PromptSettings(), settings or EngineSettings()
    opened = load_policy(policy, prompt, settings, examples)
    try:
        return Engines(opened, None if value is None else load_value(value, prompt, settings, opened._server))
    except BaseException:
        opened._server.close()
        raise


def load_policy(
    policy: str | Path, prompt: PromptSettings, settings: EngineSettings, examples: Sequence[Problem] = ()
) -> ServerPolicy:
    """Connect to the policy and find out how it is asked."""
    encoder, prompt = _encoder(str(policy), prompt, settings, examples)
    server = Server(settings.server.base_url, settings.server)
    asker = Asker(str(policy), prompt, shown_examples(prompt, examples), encoder, Way("chat"))
    try:
        way = find_way(asker, settings.server.ask, server.ask_now)
    except Refused as error:
        raise EngineError(_not_served(server, str(policy), error)) from None
    except BaseException:
        server.close()
        raise
    return ServerPolicy(server, replace(asker, way=way), settings)


def load_value(
    value: str | Path, prompt: PromptSettings, settings: EngineSettings, policy: Server | None = None
) -> ValueEngine:
    """Open the value model that `value` names; `policy` is the policy's server, which may serve both."""
    value = str(value)
    if value.startswith((POOLING, JUDGE)):
        kind, _, name = value.partition(":")
        url = settings.server.value_url or settings.server.base_url
        server = policy if policy is not None and url == settings.server.base_url else Server(url, settings.server)
        try:
            if kind == "judge":
                asker = Asker(name, prompt, (), None, Way("chat"))
                asker = replace(asker, way=find_way(asker, "chat", server.ask_now))
                return JudgeValue(server, asker, settings.server.judge_tokens)
            encoder, _ = _encoder(name, prompt, settings, ())
            if encoder is None:
                raise ConfigError(
                    f"--value {value} needs the model's tokenizer, to know where steps end; set engine.server.tokenizer"
                )
            return PoolingValue(server, name, encoder)
        except Refused as error:
            raise EngineError(_not_served(server, name, error)) from None
        except BaseException:
            server.close()
            raise
    style, name = models.named_style(value)
    if style is None and not Path(name).is_dir():
        raise ConfigError(f"--value {value} is neither pooling:NAME nor judge:NAME nor a folder with a value model")
    from restmcts.engines import transformers

    return transformers.load_value(value, prompt, settings)


def _encoder(
    name: str, prompt: PromptSettings, settings: EngineSettings, examples: Sequence[Problem]
) -> tuple[Encoder | None, PromptSettings]:
    """The tokenizer at hand, if there is one: the one that is set, else that of a model served from a folder here."""
    source = settings.server.tokenizer or (name if Path(name).is_dir() else None)
    for folder in (name, source):
        stored = models.read_prompt(folder) if folder and Path(folder).is_dir() else None
        if stored is not None:
            prompt = stored
            break
    return (None if source is None else Encoder(models.load_tokenizer(source), prompt, examples)), prompt


def _not_served(server: Server, model: str, error: Refused) -> str:
    """Why a first request was refused, and what would be taken."""
    served = server.models()
    server.close()
    if error.status == 404 and not served:
        return f"{error}; check engine.server.base_url, which usually ends in /v1, and the model's name"
    if served and model not in served:
        return f"{server.url} does not serve {model!r}; it serves {', '.join(served[:5])}"
    return str(error)
