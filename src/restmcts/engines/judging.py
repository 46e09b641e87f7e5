"""Value models behind a server: a token classifier at vLLM's `/pooling`, or a language model as a judge."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from restmcts.encoding import Encoder, user_turn
from restmcts.engines import Busy, TransientError
from restmcts.engines.asking import Asker
from restmcts.engines.reading import Reply, count, estimate, is_number, read_reply
from restmcts.engines.server import Junk, Refused, Server
from restmcts.errors import EngineError
from restmcts.types import Path, Problem, Score, Scores, Usage

JUDGE_QUESTION = (
    "How likely is it that the solution so far is right and leads to the correct final answer? "
    "Reply with one whole number from 0 (it is wrong) to 10 (it is certainly right), and nothing else."
)
_SCORE = re.compile(
    r"[\s*`\"']*(?:(?:score|rating)\s*[:=]\s*)?([0-9]{1,2}(?:\.[0-9]{1,3})?)\s*(?:/\s*10)?[\s*`\"'.]*", re.IGNORECASE
)
_SAME = 1e-2
"""a difference that bfloat16 makes"""


class PoolingValue:
    """A token classifier with one label, read at the last token of every step as it was trained.

    One request holds all paths of a `Score`. `value_tokens` counts what the server was given, cached tokens excluded.
    """

    def __init__(self, server: Server, model: str, encoder: Encoder) -> None:
        self.identity = f"{model} at {server.place}"
        self.tokenizer_id: str | None = encoder.tokenizer_id
        self._server = server
        self._model = model
        self._encoder = encoder
        # Beside /v1, not below it.
        self._url = server.url.removesuffix("/v1") + "/pooling"
        self._logits = self._gives_logits()
        self._busy = Busy()

    @property
    def busy_seconds(self) -> float:
        """Seconds in which at least one request was on its way."""
        return self._busy.seconds

    async def score(self, request: Score) -> Scores:
        if not request.paths:
            return Scores(())
        inputs = [self._encoder.trace(request.problem, path).ids for path in request.paths]

        def read(raw: Any) -> Scores:
            values = tuple(self._value(row[-1]) for row in _rows(raw, inputs))
            usage = raw.get("usage")
            told = count(usage, "prompt_tokens")
            given = sum(map(len, inputs)) if told is None else told
            details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
            cached = count(details, "cached_tokens") or 0
            return Scores(values, Usage(value_tokens=max(given - cached, 0), requests=1))

        try:
            with self._busy:
                return await self._server.ask(self._url, self._body(inputs, logits=self._logits), read)
        except Refused as error:
            raise TransientError(str(error), again=False) from None

    async def close(self) -> None:
        self._server.close()

    def _body(self, inputs: Sequence[list[int]], *, logits: bool) -> dict[str, Any]:
        return {"model": self._model, "task": "token_classify", "input": list(inputs), "use_activation": not logits}

    def _value(self, number: float) -> float:
        if self._logits:
            return _sigmoid(number)
        if not 0 <= number <= 1:
            raise Junk(f"the value {number}")
        return number

    def _gives_logits(self) -> bool:
        """Whether the server gives logits when asked for them; one that does not is taken to give values.

        Raises EngineError for a model that is no value model.
        """
        ids = self._encoder.prompt(Problem("probe", "What is 1 + 1?"))
        raw, squashed = (
            self._server.ask_now(self._url, self._body([ids], logits=logits), lambda raw: _rows(raw, [ids])[0])
            for logits in (True, False)
        )
        if all(abs(_sigmoid(a) - b) < _SAME for a, b in zip(raw, squashed, strict=True)):
            return True
        if raw == squashed and all(0 <= b <= 1 for b in squashed):
            return False
        raise EngineError(f"{self._model!r} at {self._url} is no value model: its outputs are no logits of one label")


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(min(logit, 700.0), -700.0)))


def _rows(raw: Any, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
    """One number for each token of each input, in the order of the inputs. Raises Junk."""
    data = raw.get("data") if isinstance(raw, Mapping) else None
    if not isinstance(data, list) or len(data) != len(inputs) or not all(isinstance(item, Mapping) for item in data):
        raise Junk(f"not one result for each of {len(inputs)} inputs")
    rows: dict[Any, Any] = {item.get("index", at): item.get("data") for at, item in enumerate(data)}
    found: list[list[float]] = []
    for at, ids in enumerate(inputs):
        row = rows.get(at)
        if not isinstance(row, list) or len(row) != len(ids):
            raise Junk("not one output for each token")
        numbers = [token[0] if isinstance(token, list) and len(token) == 1 else token for token in row]
        if not all(is_number(number) for number in numbers):
            raise Junk("an output is no finite number; a value model has one label")
        found.append([float(number) for number in numbers])
    return found


class JudgeValue:
    """A language model that is asked how good a partial solution is: v = its score out of 10.

    A reply that is not a score is asked for again, at temperature 1; after three of them the request has failed: a
    value is never guessed. `value_tokens` counts what the judge reads (cached tokens excluded) and writes.
    """

    ASKED = 3

    def __init__(self, server: Server, asker: Asker, most_tokens: int) -> None:
        self.identity = f"judge {asker.model} at {server.place}"
        self.tokenizer_id: str | None = None
        self._server = server
        self._asker = asker
        self._most = most_tokens
        self._busy = Busy()

    @property
    def busy_seconds(self) -> float:
        """Seconds in which at least one request was on its way."""
        return self._busy.seconds

    async def score(self, request: Score) -> Scores:
        asked = (self._one(request.problem, path) for path in request.paths)
        usage, failure = Usage(), None
        values: list[float] = []
        tokens: list[int] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, TransientError):
                usage, failure = usage + answer.usage, str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                usage += answer[1]
                values.append(answer[0])
                tokens.append(answer[1].value_tokens)
        if failure is not None:
            raise TransientError(failure, again=False, usage=usage)
        return Scores(tuple(values), usage, tuple(tokens))

    async def close(self) -> None:
        self._server.close()

    async def _one(self, problem: Problem, path: Path) -> tuple[float, Usage]:
        so_far = "\n".join(step.text for step in path)
        question = f"Problem: {problem.question}\n\nSolution so far:\n{so_far}\n\n{JUDGE_QUESTION}"
        prompt = {"messages": [user_turn(question)]}
        usage, text = Usage(), ""
        for temperature in (0.0, *(1.0,) * (self.ASKED - 1)):
            body = self._asker.body(prompt, n=1, max_tokens=self._most, temperature=temperature, seed=None, stop=())
            try:
                with self._busy:
                    reply = await self._server.ask(self._asker.way.path, body, lambda raw: read_reply(raw, self._most))
            except Refused as error:
                raise TransientError(str(error), again=False, usage=usage) from None
            except TransientError as error:
                raise TransientError(str(error), again=False, usage=usage + error.usage) from None
            text = reply.choices[0].text
            usage += Usage(value_tokens=_tokens(reply, question, text), requests=1)
            if (value := read_score(text)) is not None:
                return value, usage
        said = " ".join(text.split())[:80]
        raise TransientError(f"{self.identity} gave no score but {said!r}", again=False, usage=usage)


def _tokens(reply: Reply, question: str, text: str) -> int:
    given = estimate(question) if reply.prompt_tokens is None else reply.prompt_tokens
    made = estimate(text) + 1 if reply.generated_tokens is None else reply.generated_tokens
    return max(given - (reply.cached_tokens or 0), 0) + made


def read_score(text: str) -> float | None:
    """A judge's score as a value in [0, 1]; None for anything but a number from 0 to 10."""
    found = _SCORE.fullmatch(text)
    score = None if found is None else float(found[1])
    return None if score is None or score > 10 else score / 10
