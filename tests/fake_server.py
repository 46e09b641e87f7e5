"""An OpenAI-compatible server without a model, in this process: what it says is scripted, and so is what goes wrong.

It answers arithmetic questions as the scripted engine does. Faults are answers of another kind: see `Fault`.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from restmcts.encoding import steps_of
from restmcts.engines.scripted import solve_step
from restmcts.seeds import derive_seed
from restmcts.types import Path, Problem, Propose

HEAD = 4
"""tokens that open a turn, the end of the one before included"""


@dataclass(frozen=True)
class Fault:
    """An answer that is none."""

    status: int = 200
    body: bytes | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """seconds before the answer; a request that is cancelled meanwhile shows in `disconnects`"""
    cut: int | None = None
    """bytes of the body after which the connection is closed"""
    kind: str = "application/json"


Hook = Callable[[int, str, dict[str, Any]], "Fault | dict[str, Any] | None"]
"""(number of the request, path, body) → a fault, another reply, or None for the usual one"""


class FakeServer:
    """A server on loopback. What it knows is set by its fields, before or while it runs."""

    def __init__(self, hook: Hook | None = None, **knows: Any) -> None:
        self.hook = hook
        self.model = "solver"
        self.completions = True
        self.continues: str | None = "flags"
        """flags · prefix · always · None"""
        self.several = True
        self.usage = True
        self.keeps_stop = True
        self.tells_stop = True
        self.logprobs = True
        self.refuses: set[str] = set()
        self.echoes = False
        self.latency = 0.0
        self.judge: Callable[[str], str] = lambda question: "7"
        self.pooling: Callable[[list[int]], list[Any]] | None = None
        for name, value in knows.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.running = self.most_running = self.disconnects = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        self._tasks: set[asyncio.Task[None]] = set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection is good for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split()[1]
        body = json.loads(raw) if raw else {}
        self.requests.append((path, body, headers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = self.hook(len(self.requests), path, body) if self.hook else None
            if answer is None:
                answer = self._answer(path, body)
            fault = answer if isinstance(answer, Fault) else Fault(body=json.dumps(answer), delay=self.latency)
            if fault.delay and await self._gone(reader, fault.delay):
                self.disconnects += 1
                return False
        finally:
            self.running -= 1
        content = fault.body.encode() if isinstance(fault.body, str) else fault.body
        more = "".join(f"{name}: {value}\r\n" for name, value in fault.headers.items())
        start = (
            f"HTTP/1.1 {fault.status} X\r\ncontent-type: {fault.kind}\r\ncontent-length: {len(content)}\r\n{more}\r\n"
        )
        writer.write(start.encode() + content[: fault.cut])
        await writer.drain()
        return fault.cut is None

    @staticmethod
    async def _gone(reader: asyncio.StreamReader, seconds: float) -> bool:
        """Whether the other side hangs up within that time."""
        try:
            async with asyncio.timeout(seconds):
                return await reader.read(1) == b""
        except TimeoutError:
            return False

    # ------------------------------------------------------------------ what it says

    def _answer(self, path: str, body: dict[str, Any]) -> Fault | dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": self.model}]}
        if path == "/pooling" and self.pooling is not None:
            made = [self.pooling(ids) for ids in body["input"]]
            if body["use_activation"]:
                made = [squashed(row) for row in made]
            rows = [{"index": i, "data": row} for i, row in enumerate(made)]
            return {"data": rows, "usage": {"prompt_tokens": sum(map(len, body["input"]))}}
        chat = path == "/v1/chat/completions"
        if not chat and not (path == "/v1/completions" and self.completions):
            return _error(404, "Not Found")
        if body.get("model") != self.model:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if refused := sorted(self.refuses & body.keys()):
            return _error(400, f"Unrecognized request argument supplied: {', '.join(refused)}")
        return self._chat(body) if chat else self._complete(body)

    def _complete(self, body: dict[str, Any]) -> Fault | dict[str, Any]:
        if not isinstance(body["prompt"], str):
            return _error(400, "prompt must be a string.")
        question, _, so_far = body["prompt"].rpartition("Question: ")[2].partition("\nSolution:\n")
        return self._reply(body, question, so_far, len(body["prompt"].split()))

    def _chat(self, body: dict[str, Any]) -> Fault | dict[str, Any]:
        messages = body["messages"]
        if "system" in self.refuses and messages[0]["role"] == "system":
            return _error(400, "System role not supported")
        question, last = messages[-1]["content"], messages[-1]
        tokens = sum(HEAD + _tokens(message["content"]) for message in messages) + HEAD
        so_far = ""
        if last["role"] == "assistant":
            asked = {"flags" if body.get("continue_final_message") else "", "prefix" if last.get("prefix") else ""}
            if self.continues in asked | {"always"}:
                tokens -= HEAD  # no other turn is opened
                question, so_far = messages[-2]["content"], last["content"]
        if "0 (it is wrong)" in question:
            return self._texts(body, [Choice(self.judge(question), "stop")], tokens)
        if "reply with the one word SOLVED" in question:
            text = "SOLVED" if "Answer:" in question else "Work on."
            return self._texts(body, [Choice(text, "stop")], tokens)
        if "Solution so far:\n" in question:
            so_far = question.partition("Solution so far:\n")[2].partition("\n\n")[0] + "\n"
        return self._reply(body, question.partition("Solution so far:")[0], so_far, tokens)

    def _reply(self, body: dict[str, Any], question: str, so_far: str, tokens: int) -> dict[str, Any]:
        stop = body.get("stop") or []
        made = []
        for i in range(body.get("n", 1) if self.several else 1):
            seed = derive_seed(body.get("seed", 0), i, so_far, question)
            said = solve_step(_propose(question, steps_of(so_far), body), seed)
            text, ended = (said, False) if isinstance(said, str) else (said.step.text, True)
            made.append(self._cut(text if ended else text + "\n", stop, so_far))
        return self._texts(body, made, tokens)

    def _cut(self, text: str, stop: list[str], so_far: str) -> Choice:
        at, found = min(((text.find(s), s) for s in stop if s in text), default=(len(text), None))
        kept = text[:at] + (found or "" if self.keeps_stop else "")
        if self.echoes:
            kept = so_far + kept
        return Choice(kept, "stop", found)

    def _texts(self, body: dict[str, Any], made: list[Choice], tokens: int) -> dict[str, Any]:
        choices = []
        for index, choice in enumerate(made):
            item: dict[str, Any] = {"index": index, "finish_reason": choice.finish}
            item |= {"message": {"content": choice.text}} if "messages" in body else {"text": choice.text}
            if self.tells_stop:
                item["stop_reason"] = choice.matched
            if self.logprobs and body.get("logprobs") is not None:
                many = [-0.25] * (_tokens(choice.text) + 1)
                item["logprobs"] = (
                    {"content": [{"logprob": p} for p in many]} if "messages" in body else {"token_logprobs": many}
                )
            choices.append(item)
        reply: dict[str, Any] = {"choices": choices}
        if self.usage:
            spent = sum(_tokens(choice.text) + 1 for choice in made)
            details = {"cached_tokens": tokens // 2}
            reply["usage"] = {"prompt_tokens": tokens, "completion_tokens": spent, "prompt_tokens_details": details}
        return reply


@dataclass(frozen=True)
class Choice:
    text: str
    finish: str
    matched: str | None = None


def pooled(ids: list[int]) -> list[list[float]]:
    """Logits that depend on the tokens up to each place."""
    return [[(derive_seed(*ids[: k + 1]) % 1000) / 250 - 2] for k in range(len(ids))]


def squashed(row: list[list[float]]) -> list[list[float]]:
    """The values of logits."""
    return [[1 / (1 + math.exp(-logit))] for (logit,) in row]


def _propose(question: str, path: Path, body: dict[str, Any]) -> Propose:
    return Propose(Problem("", question), path, 1, 0, body.get("temperature", 1.0), 64)


def _tokens(text: str) -> int:
    """Words, and one for each line."""
    return len(text.split()) + text.count("\n")


def _error(status: int, message: str) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, "code": None}}))
