"""The server over HTTP, asked by the real client and by hand: solutions, streams, crowds, those who leave, the end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import openai

import restmcts
from restmcts.config import RunConfig, load_config
from restmcts.engines import Engines, TransientError
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue, check_steps, scripted_engines, solve_step
from restmcts.errors import ConfigError, EngineError
from restmcts.serve.server import KEY, serving
from restmcts.types import Proposals, Propose, Tree

QUESTION = "What is 3 + 4 * 2 - 5?"


class Counted(ScriptedPolicy):
    """The scripted solver, which says how many requests are under way; `hold` keeps all from `depth` steps on."""

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(solve_step, identity="counted", latency=latency)
        self.running = self.most_running = 0
        self.begun = 0
        self.hold = False
        self.depth = 0

    async def propose(self, request: Propose) -> Proposals:
        self.running += 1
        self.begun += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while self.hold and len(request.path) >= self.depth:
                await asyncio.sleep(0.002)
            return await super().propose(request)
        finally:
            self.running -= 1


def config_of(*overrides: str, **flags: Any) -> RunConfig:
    return load_config(flags={"policy": "scripted", **flags}, overrides=("serve.port=0", *overrides))


@contextmanager
def client_of(config: RunConfig | None = None, engines: Engines | None = None, **options: Any) -> Iterator[Any]:
    """The official client on a server of its own; nothing is asked again."""
    with (
        serving(config or config_of(), engines or scripted_engines()) as url,
        openai.OpenAI(base_url=url, api_key=options.pop("api_key", "none"), max_retries=0, **options) as client,
    ):
        yield client


def ask(client: Any, content: str = QUESTION, model: str = "restmcts", **options: Any) -> Any:
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], extra_body=options.pop("extra", None), **options
    )


def raw(client: Any, body: bytes | str = b"", method: str = "POST", path: str | None = None, **headers: str) -> Any:
    """A request by hand: status, headers, body."""
    with closing(http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)) as connection:
        given = {"Content-Type": "application/json"} | {name.replace("_", "-"): to for name, to in headers.items()}
        data = body.encode() if isinstance(body, str) else body
        connection.request(method, path or "/v1/chat/completions", data or None, given)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def gauge(client: Any, name: str) -> float:
    text = raw(client, method="GET", path="/metrics")[2].decode()
    return sum(float(n) for n in re.findall(rf"^restmcts_{name}(?:{{[^}}]*}})? ([\d.]+)$", text, re.MULTILINE))


# ---------------------------------------------------------------- solutions


def test_the_answer_is_that_of_solve():
    """With the same settings, seed and engines: the server adds nothing and takes nothing away."""
    config = config_of("search.iterations=6")
    tree = restmcts.solve(QUESTION, scripted_engines(), config.search, seed=11)
    with client_of(config) as client:
        found = ask(client, seed=11, extra={"restmcts": {"tree": True}})
    assert tree.final_answer == "6"
    choice, own = found.choices[0], found.restmcts
    assert choice.finish_reason == "stop"
    assert choice.message.content == "\n".join(step.text for step in tree.path(tree.result))
    assert "Answer: 6" in choice.message.content
    assert found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-")
    assert (own["answer"], own["stop"], own["nodes"], own["seed"]) == ("6", tree.stop, len(tree) - 1, 11)
    assert own["value"] == tree.raw_value[tree.result]
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (tree.usage.prompt_tokens, tree.usage.policy_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert own["usage"]["value_tokens"] == tree.usage.value_tokens > 0
    whole = Tree.from_record(own["tree"])
    assert (whole.text, whole.value, whole.visits) == (tree.text, tree.value, tree.visits)


def test_a_stream_says_the_same():
    with client_of() as client:
        whole = ask(client)
        chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
        bare = list(ask(client, stream=True))
    *pieces, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[-1].restmcts["answer"] == whole.restmcts["answer"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in bare)


def test_a_single_chain_is_streamed_step_by_step():
    policy = Counted()
    policy.hold, policy.depth = True, 1
    with client_of(config_of("search.method=cot"), Engines(policy)) as client:
        stream = iter(ask(client, model="restmcts:cot", stream=True, temperature=0))
        assert next(stream).choices[0].delta.content == ""
        assert next(stream).choices[0].delta.content == "4 * 2 = 8"
        assert policy.running == 1  # the second step is not there yet
        policy.depth = 2
        assert next(stream).choices[0].delta.content == "\n3 + 8 = 11"
        policy.hold = False
        rest = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == "\n11 - 5 = 6\nAnswer: 6"
        assert rest[-1].restmcts["answer"] == "6"


def test_a_silent_stream_says_how_far_it_is():
    policy = Counted()
    policy.hold, policy.depth = True, 2
    config = config_of("serve.heartbeat=0.05")
    with client_of(config, Engines(policy, ScriptedValue(check_steps))) as client:
        body = json.dumps({"model": "restmcts", "stream": True, "messages": [{"role": "user", "content": QUESTION}]})
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            connection.sendall((head + "Content-Type: application/json\r\n\r\n" + body).encode())
            said = b""
            while said.count(b"tokens in") < 3:
                said += connection.recv(4096)
            policy.hold = False
            while b"[DONE]" not in said:
                said += connection.recv(4096)
        assert re.search(rb"^: [1-9]\d* tokens in [1-9]\d* requests so far\r?$", said, re.MULTILINE)
        assert b'"finish_reason":"stop"' in said


def test_methods_and_budgets_by_name_and_by_section():
    with client_of(config_of("search.iterations=50", "search.threshold=2")) as client:
        by_name = ask(client, model="restmcts:best_of_n@60")
        assert by_name.restmcts["method"] == "best_of_n"
        assert by_name.model == "restmcts:best_of_n@60"
        assert by_name.usage.completion_tokens <= 60
        by_section = ask(client, extra={"restmcts": {"method": "best_of_n", "policy_tokens": 60}})
        assert by_section.choices == by_name.choices
        variant = ask(
            client, model="restmcts:mcts_star_no_rollout", extra={"restmcts": {"iterations": 2, "tree": True}}
        )
        assert variant.restmcts["tree"]["settings"]["rollout_steps"] == 0
        assert variant.restmcts["tree"]["settings"]["iterations"] == 2
        short = ask(client, max_completion_tokens=40)
        assert short.usage.completion_tokens <= 40
        assert short.restmcts["stop"] == "budget"
        timed = ask(client, extra={"restmcts": {"seconds": 0.001}})
        assert timed.restmcts["stop"] == "budget"
        names = [model.id for model in client.models.list()]
        assert {"restmcts", "restmcts:mcts_star", "restmcts:best_of_n_min"} <= set(names)
        assert client.models.retrieve("restmcts:sample").restmcts["policy"] == "scripted-solver"


def test_what_the_policy_says_without_an_answer_is_said():
    with client_of(config_of("search.method=sample", "search.samples=2")) as client:
        found = ask(client, "Hello!", temperature=0)
        assert found.choices[0].message.content == "There is nothing to work out here."
        assert (found.choices[0].finish_reason, found.restmcts["answer"]) == ("stop", None)
        cut = ask(client, max_tokens=7, model="restmcts:cot", temperature=0)
        assert cut.choices[0].message.content == "4 * 2 = 8"
        assert (cut.choices[0].finish_reason, cut.restmcts["answer"]) == ("length", None)


def test_stop_texts_end_the_text():
    with client_of(config_of("search.method=cot"), Engines(ScriptedPolicy(solve_step))) as client:
        options: dict[str, Any] = {"model": "restmcts:cot", "temperature": 0, "stop": ["11 -", "\n\n"]}
        assert ask(client, **options).choices[0].message.content == "4 * 2 = 8\n3 + 8 = 11\n"
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True, **options)]
        assert "".join(pieces) == "4 * 2 = 8\n3 + 8 = 11\n"


def test_a_conversation_becomes_one_question():
    with client_of() as client:
        found = client.chat.completions.create(
            model="restmcts",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 1 + 1?"},
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            ],
            extra_body={"restmcts": {"tree": True}},
        )
    asked = found.restmcts["tree"]["problem"]["question"]
    assert asked == (
        f"Be brief.\n\nEarlier in this conversation:\nUser: What is 1 + 1?\nAssistant: 2\n\nNow:\n{QUESTION}"
    )


# ---------------------------------------------------------------- crowds


def test_hundreds_at_once_and_none_is_lost():
    """Whole and streamed, each with the answer that it gets alone; never more open than there are places."""
    policy = Counted(latency=0.01)
    config = config_of("engine.concurrency=24", "serve.queue=400", "search.iterations=4")
    questions = [f"What is {i} + {i + 3} * 2?" for i in range(400)]
    alone = [restmcts.solve(q, scripted_engines(), config.search, seed=i) for i, q in enumerate(questions)]

    async def one(client: Any, number: int) -> Any:
        messages = [{"role": "user", "content": questions[number]}]
        options: dict[str, Any] = {"model": "restmcts", "messages": messages, "seed": number}
        if number % 2:
            found = await client.chat.completions.create(**options)
            return found.choices[0].message.content, found.restmcts
        pieces = [c async for c in await client.chat.completions.create(stream=True, **options)]
        return "".join(c.choices[0].delta.content or "" for c in pieces), pieces[-1].restmcts

    async def all_of_them(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(one(client, number) for number in range(len(questions))))

    engines = Engines(policy, ScriptedValue(check_steps))
    with serving(config, engines) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        found = asyncio.run(all_of_them(url))
        assert gauge(client, "requests_total") == len(questions)
        assert gauge(client, "policy_tokens_total") == sum(own["usage"]["policy_tokens"] for _, own in found)
        assert gauge(client, "searches_open") == gauge(client, "requests_waiting") == 0
    for (text, own), tree in zip(found, alone, strict=True):
        assert own["answer"] == tree.final_answer
        assert text == "\n".join(step.text for step in tree.path(tree.result))
    assert 12 <= policy.most_running <= 24


def test_a_full_queue_says_when_to_come_again():
    policy = Counted()
    policy.hold = True
    config = config_of("engine.concurrency=2", "serve.queue=1")
    with client_of(config, Engines(policy, ScriptedValue(check_steps))) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: gauge(client, "searches_open") == 2 and gauge(client, "requests_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as full:
            ask(client)
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        assert full.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            ask(client, stream=True)
        policy.hold = False
        for thread in threads:
            thread.join()
        assert ask(client).restmcts["answer"] == "6"


# ---------------------------------------------------------------- those who leave


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_searched_for_no_longer(stream):
    """Also one who still waits for a place; and whoever stays is answered."""
    policy = Counted()
    policy.hold = True
    config = config_of("engine.concurrency=2")
    body = json.dumps({"model": "restmcts", "stream": stream, "messages": [{"role": "user", "content": QUESTION}]})
    with client_of(config, Engines(policy, ScriptedValue(check_steps))) as client:
        address = client.base_url.host, client.base_url.port
        gone = []
        for _ in range(5):
            gone.append(http.client.HTTPConnection(*address))
            gone[-1].request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        until(lambda: policy.running == 2 and gauge(client, "requests_waiting") == 3)
        stays: list[Any] = []
        patient = threading.Thread(target=lambda: stays.append(ask(client)))
        patient.start()
        until(lambda: gauge(client, "requests_waiting") == 4)
        for connection in reversed(gone):
            connection.close()
        until(lambda: policy.begun == 3 and policy.running == 1)  # the one who stays
        policy.hold = False
        patient.join()
        assert stays[0].restmcts["answer"] == "6"
        until(lambda: gauge(client, "searches_open") == 0)
        text = raw(client, method="GET", path="/metrics")[2].decode()
        assert 'restmcts_requests_total{method="mcts_star",status="499"} 5' in text
        assert policy.running == 0


# ---------------------------------------------------------------- what is refused


def refused(client: Any, status: int, *parts: str, body: Any = None, **options: Any) -> Any:
    """The error's object: every refusal has the protocol's form."""
    if body is None:
        given = {"model": "restmcts", "messages": [{"role": "user", "content": QUESTION}], **options}
        body = json.dumps({name: value for name, value in given.items() if value != "absent"})
    code, _, said = raw(client, body)
    error = json.loads(said)["error"]
    assert code == status, said
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    for part in parts:
        assert part in error["message"], error
    return error


def test_what_is_no_request_is_refused_in_the_protocols_form():
    config = config_of("serve.body_kb=8", "serve.most_policy_tokens=1000", "serve.most_samples=50")
    with client_of(config) as client:
        for body in (
            b"",
            b"{",
            b"[1]",
            b'"a"',
            b"\xff\xfe",
            b"[" * 3000,
            b'{"model": NaN}',
            b'{"seed": %s}' % (b"9" * 5000),
        ):
            assert refused(client, 400, "body", body=body)["code"] == "invalid_json"
        assert refused(client, 413, "8 KiB", body=b'{"user": "%s"}' % (b"a" * 9000))["code"] == "body_too_large"
        assert refused(client, 404, "mcts_star", model="restmcts:mctsstar")["code"] == "model_not_found"
        refused(client, 404, "gpt-4", model="gpt-4")
        refused(client, 400, "number of tokens", model="restmcts@many")
        refused(client, 400, "at most 1,000", model="restmcts@1001")
        assert refused(client, 400, "at most 1,000", max_tokens=1001)["param"] == "max_tokens"
        assert refused(client, 400, "greater than", max_tokens=0)["param"] == "max_tokens"
        refused(client, 400, "model", model=7)
        refused(client, 400, "model", model="absent")
        refused(client, 400, "messages", messages="absent")
        refused(client, 400, "temperature", temperature=2.5)
        refused(client, 400, "temperature", temperature="warm")
        refused(client, 400, "n: a search cannot", n=2)
        refused(client, 400, "tools", tools=[{"type": "function"}])
        refused(client, 400, "response_format", response_format={"type": "json_object"})
        assert refused(client, 400, "did you mean 'temperature'?", temprature=1)["code"] == "unknown_parameter"
        refused(client, 400, "did you mean 'restmcts.iterations'?", restmcts={"iteration": 3})
        refused(client, 400, "restmcts.iterations", restmcts={"iterations": 0})
        refused(client, 400, "unknown search method 'mcts_tsar'", restmcts={"method": "mcts_tsar"})
        refused(client, 400, "say one", model="restmcts:cot", restmcts={"method": "sample"})
        refused(client, 400, "restmcts.seconds", restmcts={"seconds": -1})
        refused(client, 400, "restmcts.value_tokens", restmcts={"value_tokens": 3_000_000})
        refused(client, 400, "at most 50", restmcts={"samples": 51})
        refused(client, 400, "restmcts.tree", restmcts={"tree": "yes"})
        refused(client, 400, "no task", restmcts={"task": "chess"})
        refused(
            client,
            400,
            "no finite number",
            body=b'{"model":"restmcts","messages":[{"role":"user","content":"1?"}],"restmcts":{"exploration":1e999}}',
        )
        refused(client, 400, "half a character", messages=[{"role": "user", "content": "\ud800"}])
        refused(client, 400, "empty", messages=[{"role": "user", "content": " "}])
        refused(client, 400, "the user's", messages=[])
        refused(client, 400, "the user's", messages=[{"role": "assistant", "content": "a"}])
        refused(client, 400, "role", messages=[{"role": "tool", "content": "a"}])
        refused(client, 400, "text", messages=[{"role": "user", "content": [{"type": "image_url"}]}])
        assert raw(client, "{}", Content_Type="text/plain")[0] == 415
        for method, path, status in (
            ("GET", "/v1/chat/completions", 405),
            ("GET", "/v2", 404),
            ("POST", "/health", 405),
        ):
            code, _, said = raw(client, method=method, path=path)
            assert (code, json.loads(said)["error"]["type"]) == (status, "invalid_request_error")
        assert raw(client, method="GET", path="/v1/models", Host="elsewhere.example")[0] == 403
        assert raw(client, method="GET", path="/v1/models", Host="[::1]:8400")[0] == 200
        assert ask(client, max_tokens=1000).restmcts["answer"] == "6"


def test_a_method_that_needs_values_is_refused_where_there_are_none(monkeypatch):
    with client_of(config_of("search.method=cot"), Engines(ScriptedPolicy(solve_step))) as client:
        refused(client, 404, "needs a value model", model="restmcts:mcts_star")
        refused(client, 400, "needs a value model", restmcts={"method": "mcts_star"})
        assert [model.id for model in client.models.list()] == ["restmcts", "restmcts:cot", "restmcts:sample"]
    with pytest.raises(ConfigError, match="'mcts_star' needs a value model"), client_of(engines=Engines(Counted())):
        pass


def test_limits_hold_for_requests_that_ask_for_none():
    config = config_of("serve.most_policy_tokens=45", "search.iterations=1000", "search.threshold=2")
    with client_of(config) as client:
        found = ask(client)
        assert found.restmcts["stop"] == "budget"
        assert found.usage.completion_tokens <= 45


def test_only_who_knows_the_key_is_answered(monkeypatch, capfd):
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(ConfigError, match=f"set a key in {KEY}"), client_of(config_of("serve.host=0.0.0.0")):
        pass
    monkeypatch.setenv(KEY, "sk-S3cret")
    with client_of(api_key="sk-S3cret") as client:
        assert ask(client).restmcts["answer"] == "6"
        for wrong in ("sk-S3cre", "sk-S3crett", "sk-geheimé"):
            code, headers, said = raw(client, "{}", Authorization=f"Bearer {wrong}".encode().decode("latin-1"))
            assert (code, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(said)["error"]["code"] == "invalid_api_key"
        assert [raw(client, method="GET", path=path)[0] for path in ("/v1/models", "/metrics", "/health")] == [
            401,
            401,
            200,
        ]
        with pytest.raises(openai.AuthenticationError):
            ask(client.with_options(api_key="wrong"))
        # By whatever name: who knows the key is no page in somebody's browser.
        assert raw(client, method="GET", path="/metrics", Host="a.b", Authorization="Bearer sk-S3cret")[0] == 200
    assert "S3cret" not in "".join(capfd.readouterr())


# ---------------------------------------------------------------- engines that fail


class Broken(Counted):
    """Fails as it is told to."""

    error: Exception | None = None

    async def propose(self, request: Propose) -> Proposals:
        if self.error is not None:
            raise self.error
        return await super().propose(request)


def test_a_failing_engine_is_no_answer(caplog):
    policy = Broken()
    with client_of(engines=Engines(policy, ScriptedValue(check_steps))) as client:
        for error in (EngineError("it is gone"), TransientError("not now", again=False), ZeroDivisionError("oh")):
            policy.error = error
            for stream in (False, True):
                with pytest.raises(openai.APIError) as failed:
                    list(ask(client, stream=stream))
                if isinstance(error, ZeroDivisionError):
                    assert "a bug in restmcts" in failed.value.message
                else:
                    assert str(error) in failed.value.message
                    assert failed.value.code == "engine_failed"
        assert raw(client, method="GET", path="/health")[0] == 503
        policy.error = None
        assert ask(client).restmcts["answer"] == "6"
        assert json.loads(raw(client, method="GET", path="/health")[2]) == {"status": "ok"}
        text = raw(client, method="GET", path="/metrics")[2].decode()
        assert 'restmcts_requests_total{method="mcts_star",status="503"} 4' in text
        assert 'restmcts_requests_total{method="mcts_star",status="500"} 2' in text


# ---------------------------------------------------------------- with a model


@pytest.mark.model
def test_a_tiny_model_serves_a_crowd(tiny_model_dir, tiny_value_dir, one_thread):
    """All are answered, those who leave free their rows, and strange settings hurt nobody else."""
    pytest.importorskip("torch")
    from restmcts.engines.opening import load_engines

    config = config_of("search.iterations=2", "search.step_tokens=12", "search.max_depth=3", "engine.concurrency=8")
    engines = load_engines(tiny_model_dir, tiny_value_dir, config.prompt, config.engine)
    policy: Any = engines.policy

    async def crowd(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:

            async def one(number: int) -> Any:
                messages: Any = [{"role": "user", "content": f"What is {number} + 1?"}]
                options: dict[str, Any] = {"temperature": 1e-320} if number == 3 else {}
                create = client.chat.completions.create(model="restmcts", messages=messages, seed=number, **options)
                if number % 5 == 4:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(create, 0.05)
                    return None
                return await create

            return await asyncio.gather(*map(one, range(40)))

    with serving(config, engines) as url:
        found = [reply for reply in asyncio.run(crowd(url)) if reply is not None]
        until(lambda: not policy._rows and not policy._mail.taken and not len(policy._mail))
        assert len(found) == 32
        assert all(reply.usage.completion_tokens > 0 for reply in found)
        assert all(reply.restmcts["usage"]["value_tokens"] > 0 for reply in found if reply.restmcts["nodes"] > 9)
        with openai.OpenAI(base_url=url, api_key="none") as client:
            chunks = list(ask(client, "1 + 1?", model="restmcts:cot", stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
            long = ask(client, "1 + " * 3000 + "1?", model="restmcts:cot")  # more than its context holds
            assert (long.choices[0].message.content, long.choices[0].finish_reason) == ("", "length")
    asyncio.run(engines.close())


# ---------------------------------------------------------------- the command


@contextmanager
def command(tmp_path: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`restmcts serve` in a process of its own, and its base URL."""
    ours = {"PYTHONPATH": str(Path(restmcts.__file__).parents[1]), **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "restmcts", "serve", "--policy", "scripted", "--port", "0", *words],
        env={**os.environ, **ours},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_when_it_is_told_to(tmp_path, sent):
    with (
        command(tmp_path, "--set", "search.method=cot") as (process, url),
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        assert ask(client, temperature=0).restmcts["answer"] == "6"
        process.send_signal(sent)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_at_the_end_what_is_open_is_answered():
    """What ends within the grace is a solution, what does not is told so, and nobody new is let in."""
    for grace, solved in ((20, True), (0.2, False)):
        policy = Counted()
        policy.hold = True
        config = config_of(f"serve.grace={grace}", "engine.concurrency=1")
        found: list[Any] = []

        def keep(client: Any, stream: bool, into: list[Any] = found) -> None:
            try:
                reply = ask(client, stream=stream)
                into.append(list(reply)[-1] if stream else reply)
            except openai.APIError as error:
                into.append(error)

        with serving(config, Engines(policy, ScriptedValue(check_steps))) as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            threads = [threading.Thread(target=keep, args=(client, stream)) for stream in (False, True, False)]
            for thread in threads:
                thread.start()
            until(lambda client=client: gauge(client, "requests_waiting") == 2)
            if solved:
                threading.Timer(0.3, lambda policy=policy: setattr(policy, "hold", False)).start()
        for thread in threads:
            thread.join()
        client.close()
        assert len(found) == 3
        if solved:
            assert [reply.restmcts["answer"] for reply in found] == ["6"] * 3
        else:
            assert ["the server is ending" in reply.message for reply in found] == [True] * 3
        assert policy.running == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "set a key in RESTMCTS_SERVE_KEY"),
        (("--port", "99999"), "serve.port = 99999"),
        (("--set", "serve.prot=1"), "did you mean 'serve.port'"),
        (("--policy", "nowhere"), "needs a value model"),
        (("--host", "203.0.113.7"), "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, said, monkeypatch, capsys):
    from restmcts import cli
    from restmcts.shell import guarded

    monkeypatch.setenv(KEY, "" if "0.0.0.0" in words else "key")
    assert guarded(cli._dispatch, ["serve", "--policy", "scripted", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_taken_port_is_one_line():
    config = config_of()
    with serving(config, scripted_engines()) as url:
        taken = config_of(f"serve.port={url.rpartition(':')[2].partition('/')[0]}")
        with pytest.raises(ConfigError, match="in use.*another --port"), serving(taken, scripted_engines()):
            pass
