"""The engine on servers: ways of asking, counting, and every fault that a server can make."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from restmcts import cli, drive
from restmcts.encoding import PromptSettings, steps_of
from restmcts.engines import Engines, TransientError
from restmcts.engines import server as server_module
from restmcts.engines.judging import read_score
from restmcts.engines.openai import ServerPolicy, load_engines
from restmcts.engines.settings import EngineSettings, ServerSettings
from restmcts.errors import ConfigError, EngineError
from restmcts.search import SEARCHES, SearchSettings
from restmcts.shell import guarded
from restmcts.tasks import get_task
from restmcts.types import Critique, Problem, Propose, Score, Step, Tree
from tests.fake_server import FakeServer, Fault, pooled, squashed

PROBLEM = Problem("p", "What is 3 + 4 - 2?", "5")
PATH = steps_of("3 + 4 = 7")
PLAIN = PromptSettings(chat=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESTMCTS_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_module, "FIRST_PAUSE", 0.01)


def connect(
    fake: FakeServer, value: str | None = None, prompt: PromptSettings | None = None, **settings: Any
) -> Engines:
    chosen = ServerSettings(**({"base_url": fake.url, "timeout": 5, "retries": 2} | settings))
    return load_engines(fake.model, value, prompt, EngineSettings(server=chosen))


def propose(path: Any = (), *, n: int = 3, seed: int = 1, temperature: float = 0.8, **more: Any) -> Propose:
    return Propose(PROBLEM, path, n, seed, temperature, 32, **more)


def ask(engines: Engines, *requests: Any, raises: bool = True) -> list[Any]:
    """The replies, asked for all at once; the engines are closed."""

    async def run() -> list[Any]:
        names = {Propose: "propose", Critique: "critique", Score: "score"}
        whom = {Score: engines.value}
        calls = (getattr(whom.get(type(r), engines.policy), names[type(r)])(r) for r in requests)
        try:
            return list(await asyncio.gather(*calls, return_exceptions=not raises))
        finally:
            await engines.close()

    return asyncio.run(run())


def search(engines: Engines, count: int = 6, method: str = "mcts_star", **settings: Any) -> list[Tree]:
    trees: list[Tree] = []
    try:
        drive.run(
            [Problem(f"q{i}", f"What is {i} + {i + 3} - 2?", str(2 * i + 1)) for i in range(count)],
            SEARCHES[method],
            SearchSettings(**({"iterations": 3, "rollout_steps": 2, "step_tokens": 32} | settings)),
            engines,
            task_of=lambda _: get_task("math"),
            seed=3,
            concurrency=count,
            on_tree=trees.append,
        )
    finally:
        asyncio.run(engines.close())
    return trees


# ---------------------------------------------------------------- ways of asking


@pytest.mark.parametrize(
    ("knows", "kind"),
    [
        ({"continues": "flags"}, "continue"),
        ({"continues": "prefix"}, "continue"),
        ({"continues": "always"}, "continue"),
        ({"continues": "always", "refuses": {"continue_final_message"}}, "continue"),
        ({"continues": None}, "chat"),
        ({"continues": "flags", "usage": False}, "chat"),
    ],
)
def test_a_server_is_asked_as_it_understands(knows: dict[str, Any], kind: str) -> None:
    with FakeServer(**knows) as fake:
        engines = connect(fake)
        assert isinstance(engines.policy, ServerPolicy)
        assert engines.policy._way.kind == kind
        probes = len(fake.requests)
        assert probes <= 9
        first, second, again = ask(engines, propose(), propose(PATH), propose(PATH))
        assert len(fake.requests) == probes + 3, "found out once"
    assert all(len(reply.samples) == 3 for reply in (first, second))
    assert {s.finish for s in second.samples} <= {"step", "end"}
    assert any("7 - 2" in s.step.text for s in second.samples)
    assert all("\n" not in s.step.text and s.step.ids is None for s in second.samples)
    assert again == second, "equal seeds, equal samples"


def test_plain_prompts_go_as_text() -> None:
    with FakeServer() as fake:
        engines = connect(fake, prompt=PLAIN)
        (reply,) = ask(engines, propose(PATH, temperature=0))
        path, body, _ = fake.requests[-1]
    assert path == "/v1/completions"
    assert body["prompt"].endswith(f"Question: {PROBLEM.question}\nSolution:\n3 + 4 = 7\n")
    assert body["stop"] == ["\n"]
    (text,) = {s.step.text for s in reply.samples}
    assert text.startswith("7 - 2 = ")
    assert body["n"] == 1, "greedy samples are all the same"
    assert reply.usage.requests == 1


@pytest.mark.parametrize(
    "refuses", [{"n"}, {"seed", "logprobs"}, {"include_stop_str_in_output", "top_k"}, {"max_tokens"}]
)
def test_what_a_server_refuses_is_left_out(refuses: set[str]) -> None:
    with FakeServer(refuses=refuses) as fake:
        engines = connect(fake)
        (reply,) = ask(engines, propose(PATH))
        assert not refuses & fake.requests[-1][1].keys()
    assert len(reply.samples) == 3
    assert reply.usage.requests == (3 if "n" in refuses else 1)


def test_a_server_that_makes_one_sample_at_a_time_is_asked_for_each() -> None:
    with FakeServer(several=False) as fake:
        (reply,) = ask(connect(fake), propose(PATH, n=4))
        assert len({body["seed"] for _, body, _ in fake.requests[-4:]}) == 4
    assert len(reply.samples) == 4
    assert reply.usage.requests == 4


def test_samples_can_be_asked_for_bit_by_bit() -> None:
    with FakeServer(several=False) as fake:
        whole, part = ask(connect(fake), propose(PATH, n=4), propose(PATH, n=2, first=2))
    assert part.samples == whole.samples[2:]
    with FakeServer() as fake:
        first, further = ask(connect(fake), propose(PATH, n=2), propose(PATH, n=3, first=2))
        assert fake.requests[-1][1]["seed"] != fake.requests[-2][1]["seed"], "drawn independently"
    assert (len(first.samples), len(further.samples)) == (2, 3)


def test_a_system_message_that_is_refused_leads_the_question() -> None:
    with FakeServer(refuses={"system"}) as fake:
        ask(connect(fake), propose(PATH))
        messages = fake.requests[-1][1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert PromptSettings().instruction in messages[0]["content"]


@pytest.mark.parametrize(("keeps", "tells"), [(True, False), (False, True), (False, False)])
def test_an_ending_is_never_invented(keeps: bool, tells: bool) -> None:
    """A server that cannot tell a step from an ending leaves the solution open."""
    with FakeServer(keeps_stop=keeps, tells_stop=tells) as fake:
        step, end = ask(
            connect(fake), propose(n=1, temperature=0), propose(steps_of("3 + 4 = 7\n7 - 2 = 5"), n=1, temperature=0)
        )
    assert (step.samples[0].finish, step.samples[0].step.text) == ("step", "3 + 4 = 7")
    assert end.samples[0].step.text == "Answer: 5"
    assert end.samples[0].finish == ("end" if keeps or tells else "step")


def test_a_repeated_turn_is_taken_off() -> None:
    with FakeServer(echoes=True) as fake:
        (reply,) = ask(connect(fake), propose(PATH, n=1, temperature=0))
    assert reply.samples[0].step.text.startswith("7 - 2 = ")


def test_a_step_that_begins_with_the_delimiter_goes_on_after_it() -> None:
    def blank_first(number: int, path: str, body: dict[str, Any]) -> Any:
        last = body["messages"][-1]["content"]
        if last == "3 + 4 = 7\n":
            choices = [
                {"index": i, "finish_reason": "stop", "stop_reason": "\n", "message": {"content": "\n"}} for i in (0, 1)
            ]
            return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
        return None

    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = blank_first
        (reply,) = ask(engines, propose(PATH, n=2, temperature=0.1))
    assert all("7 - 2" in s.step.text for s in reply.samples)
    assert reply.usage.requests == 2


def test_counts_are_the_servers() -> None:
    with FakeServer() as fake:
        (reply, verdict) = ask(connect(fake), propose(PATH), Critique(PROBLEM, PATH, 1, 16))
    words = sum(len(s.step.text.split()) + 2 for s in reply.samples)
    assert words - 3 <= reply.usage.policy_tokens <= words
    assert reply.usage.cached_tokens == reply.usage.prompt_tokens // 2 > 0
    assert all(s.logprob == pytest.approx(-0.25 * round(-4 * s.logprob)) and s.logprob < 0 for s in reply.samples)
    assert (verdict.solved, verdict.advice) == (False, "Work on.")


def test_no_counts_are_estimated_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer(usage=False, logprobs=False) as fake:
        (one, _) = ask(connect(fake), propose(PATH, n=1), propose(PATH))
    assert one.usage.policy_tokens >= math.ceil(len(one.samples[0].step.text) / 3)
    assert one.usage.prompt_tokens > 20
    assert one.samples[0].logprob is None, "absent is None"
    assert sum("estimated" in record.message for record in caplog.records) == 1


def test_advice_and_verdict() -> None:
    with FakeServer() as fake:
        _, verdict = ask(
            connect(fake), propose(PATH, advice="Subtract."), Critique(PROBLEM, steps_of("3 + 4 = 7\nAnswer: 5"), 1, 16)
        )
        assert any("(Hint: Subtract.)" in json.dumps(body) for _, body, _ in fake.requests)
    assert verdict.solved


def test_the_limit_on_requests_in_flight_holds() -> None:
    with FakeServer(latency=0.02) as fake:
        engines = connect(fake, concurrency=3)
        ask(engines, *(propose(PATH, seed=i) for i in range(12)))
        assert fake.most_running == 3


@pytest.mark.parametrize("knows", [{}, {"continues": None, "several": False}])
def test_a_search_through_a_server(knows: dict[str, Any]) -> None:
    with FakeServer(judge=lambda question: "9" if "= " in question else "4", **knows) as fake:
        trees = search(connect(fake, "judge:solver"), self_critic=True)
        asked = sum(tree.usage.requests for tree in trees)
        probes = len(fake.requests) - asked
    assert 0 < probes <= 12
    assert not any(tree.failures for tree in trees)
    assert any(tree.final_answer == tree.problem.answer for tree in trees)
    for tree in trees:
        assert tree.models["policy"] == f"solver at 127.0.0.1:{fake.port}"
        assert min(tree.usage.policy_tokens, tree.usage.prompt_tokens, tree.usage.value_tokens) > 0


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("said", "score"),
    [("7", 0.7), (" 10.\n", 1.0), ("0", 0.0), ("**8**", 0.8), ("Score: 6/10", 0.6), ("7.5", 0.75)]
    + [(said, None) for said in ("", "11", "-3", "seven", "7 or 8", "nan", "I think 7", "7%", "1e1", "inf", "٧")],
)
def test_a_score_is_read_strictly(said: str, score: float | None) -> None:
    assert read_score(said) == score


def test_a_judge_scores_what_is_given_without_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"gsm8k-{i}", "problem": "What is 3 + 4?", "steps": ["3 + 4 = 7", f"7 + {i} = {7 + i}"], "label": i - 1}
        for i in range(2)
    ]
    Path("bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeServer(judge=lambda question: "9" if "7 + " in question else "4") as fake:
        words = [
            "evaluate",
            "value",
            "--value",
            f"judge:{fake.model}",
            "--processbench",
            "bench.jsonl",
            "--out",
            "lens",
        ]
        words += ["-q", "--set", f"engine.server.base_url={fake.url}"]
        assert guarded(cli._dispatch, words) == 0, capsys.readouterr()
    kept = [json.loads(line)["values"] for line in Path("lens/values/processbench.jsonl").read_text().splitlines()]
    assert kept == [[None, 0.4, 0.9]] * 2


def test_a_judge_without_a_score_has_failed() -> None:
    score = Score(PROBLEM, (PATH, PATH))
    with FakeServer(judge=lambda question: "It looks quite right to me.") as fake:
        engines = connect(fake, "judge:solver")
        before = len(fake.requests)
        (error,) = ask(engines, score, raises=False)
        assert len(fake.requests) == before + 6
    assert isinstance(error, TransientError)
    assert not error.again
    assert error.usage.value_tokens > 0
    with FakeServer(judge=lambda question: "8") as fake:
        (scores,) = ask(connect(fake, "judge:solver"), score)
    assert scores.values == (0.8, 0.8)


@pytest.fixture
def tokenizer_dir(tmp_path: Any) -> str:
    pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    from tests.tiny import tiny_tokenizer

    tiny_tokenizer("qwen").save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.model
@pytest.mark.parametrize("honest", [True, False])
def test_values_at_step_ends(tokenizer_dir: str, honest: bool) -> None:
    """Also of a server that gives values, not logits, whatever it is asked for."""

    def shuffled(number: int, path: str, body: dict[str, Any]) -> Any:
        if path != "/pooling":
            return None
        rows = [pooled(ids) for ids in body["input"]]
        rows = rows if honest and not body["use_activation"] else [squashed(row) for row in rows]
        data = [{"index": i, "data": row} for i, row in enumerate(rows)]
        return {"data": data[::-1], "usage": {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 40}}}

    with FakeServer(shuffled) as fake:
        engines = connect(fake, "pooling:v", tokenizer=tokenizer_dir)
        assert engines.value is not None
        encoder = engines.value._encoder  # type: ignore[attr-defined]
        paths = (PATH, (*PATH, Step("7 - 2 = 5")))
        (scores,) = ask(engines, Score(PROBLEM, paths))
    expected = [squashed(pooled(encoder.trace(PROBLEM, path).ids))[-1][0] for path in paths]
    assert scores.values == pytest.approx(expected)
    assert scores.usage.value_tokens == 60


@pytest.mark.model
@pytest.mark.parametrize(
    "broken",
    [
        lambda rows: [[[float("nan")] for _ in rows[0]], *rows[1:]],
        lambda rows: [[[None] for _ in rows[0]], *rows[1:]],
        lambda rows: [rows[0][:-1], *rows[1:]],
        lambda rows: rows[:1],
        lambda rows: [[[0.1, 0.2] for _ in row] for row in rows],
        lambda rows: [[["0.5"] for _ in row] for row in rows],
    ],
)
def test_a_value_is_never_invented(tokenizer_dir: str, broken: Any) -> None:
    with FakeServer(pooling=pooled) as fake:
        engines = connect(fake, "pooling:v", tokenizer=tokenizer_dir)
        fake.hook = lambda number, path, body: {
            "data": [{"index": i, "data": row} for i, row in enumerate(broken([pooled(ids) for ids in body["input"]]))]
        }
        (error,) = ask(engines, Score(PROBLEM, (PATH, PATH)), raises=False)
    assert isinstance(error, TransientError)
    assert "broken reply" in str(error)


@pytest.mark.model
def test_token_ids_go_out_and_come_back(tokenizer_dir: str) -> None:
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer("qwen")
    step, end = tokenizer.encode("7 - 2 = 5\n"), tokenizer.eos_token_id

    def vllm(number: int, path: str, body: dict[str, Any]) -> Any:
        said = [(step, "\n"), ([*step[:-1], end], None), (step[:3], None), ([1, 2, 3], "\n")]
        texts = ["7 - 2 = 5\n", "7 - 2 = 5", tokenizer.decode(step[:3]), "something else\n"]
        choices = [
            {"index": i, "text": text, "token_ids": ids, "stop_reason": reason, "finish_reason": finish}
            for i, ((ids, reason), text, finish) in enumerate(
                zip(said, texts, ("stop", "stop", "length", "stop"), strict=True)
            )
        ]
        return {"choices": choices[: body["n"]], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}

    with FakeServer(vllm) as fake:
        engines = connect(fake, tokenizer=tokenizer_dir)
        encoder = engines.policy._asker.encoder  # type: ignore[attr-defined]
        (reply,) = ask(engines, propose((Step("3 + 4 = 7", (5, 6, 7)),), n=4))
        body = fake.requests[-1][1]
    assert body["prompt"] == [*encoder.prompt(PROBLEM), 5, 6, 7]
    assert engines.policy.tokenizer_id == encoder.tokenizer_id
    assert [s.finish for s in reply.samples] == ["step", "end", "length", "step"]
    assert [s.step.ids for s in reply.samples] == [tuple(step), tuple(step[:-1]), tuple(step[:3]), None]


# ---------------------------------------------------------------- faults


def ok(*texts: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": i, "finish_reason": "stop", "message": {"content": text}} for i, text in enumerate(texts)]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 9}} | more


PASSING = {
    "429": Fault(429, '{"error": {"message": "slow down"}}'),
    "500": Fault(500, "oops", kind="text/plain"),
    "503": Fault(503),
    "half a body": Fault(body=json.dumps(ok("7 - 2 = 5\n")), cut=20),
    "no body": Fault(body="x" * 50, cut=0),
    "wrong JSON": Fault(body='{"choices": ['),
    "another shape": Fault(body='{"choices": {"0": "x"}}'),
    "a list": Fault(body="[]"),
    "HTML": Fault(body="<html>gateway</html>", kind="text/html"),
    "not UTF-8": Fault(body=b'{"choices": "\xff\xfe'),
    "deep": Fault(body="[" * 100_000),
    "no choices": Fault(body='{"choices": []}'),
    "filtered": Fault(body=json.dumps({"choices": [{"index": 0, "finish_reason": "content_filter", "message": {}}]})),
    "10 MB of text": Fault(body=json.dumps(ok("7" * (10 << 20)))),
    "a number for a text": Fault(body=json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": 7}}]})),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_changes_nothing(fault: Fault) -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        fails = iter([fault, fault])
        fake.hook = lambda number, path, body: next(fails, None)
        (reply,) = ask(engines, propose(PATH, n=2))
    with FakeServer() as sound:
        (expected,) = ask(connect(sound), propose(PATH, n=2))
    assert reply.samples == expected.samples


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_stays_is_a_recorded_failure(fault: Fault) -> None:
    """The policy answers, the judge does not: the trees grow and have no values."""
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver", retries=1)
        fake.hook = lambda number, path, body: fault if "0 (it is wrong)" in json.dumps(body) else None
        (tree,) = search(engines, 1)
    assert tree.failures
    assert tree.raw_value == [None] * len(tree)
    assert all("score: " in failure for failure in tree.failures)
    assert tree.stop == "failed"
    assert all(tree.answer[n] is not None for n in tree.finished())


def test_empty_completions_are_no_answers() -> None:
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver")
        fake.hook = lambda number, path, body: ok("", "", "") if "0 (it is wrong)" not in json.dumps(body) else None
        (tree,) = search(engines, 1)
    assert tree.final_answer is None
    assert set(tree.reason[1:]) == {"empty"}


def test_a_server_that_hangs_is_waited_for_so_long() -> None:
    with FakeServer() as fake:
        engines = connect(fake, timeout=0.2, retries=1)
        fake.hook = lambda number, path, body: Fault(delay=30)
        begin = time.monotonic()
        (error,) = ask(engines, propose(), raises=False)
        took = time.monotonic() - begin
        time.sleep(0.05)
        assert fake.disconnects == 2
        assert fake.running == 0
    assert isinstance(error, TransientError)
    assert "no reply within 0.2 s" in str(error)
    assert 0.4 <= took < 3


def test_a_slow_server_is_not_a_broken_one() -> None:
    with FakeServer(latency=0.3) as fake:
        (reply,) = ask(connect(fake, timeout=2), propose(PATH))
    assert len(reply.samples) == 3


@pytest.mark.parametrize("how", ["seconds", "date", "milliseconds"])
def test_retry_after_holds_everybody_back(how: str) -> None:
    times: list[float] = []
    with FakeServer() as fake:
        engines = connect(fake)

        def once(number: int, path: str, body: dict[str, Any]) -> Any:
            times.append(time.monotonic())
            if len(times) > 1:
                return None
            value = {"seconds": "0.7", "date": formatdate(time.time() + 2, usegmt=True), "milliseconds": "700"}[how]
            return Fault(429, headers={"retry-after-ms" if how == "milliseconds" else "Retry-After": value})

        fake.hook = once

        async def run() -> None:
            first = asyncio.create_task(engines.policy.propose(propose()))
            await asyncio.sleep(0.2)
            await asyncio.gather(first, engines.policy.propose(propose(seed=2)))
            await engines.close()

        asyncio.run(run())
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.65


def test_fewer_choices_than_asked_are_asked_for_again() -> None:
    def two_at_most(number: int, path: str, body: dict[str, Any]) -> Any:
        body["n"] = min(body.get("n", 1), 2)
        return None

    with FakeServer(two_at_most) as fake:
        (reply,) = ask(connect(fake), propose(PATH, n=5))
    assert len(reply.samples) == 5
    assert reply.usage.requests == 3


def test_choices_out_of_order_are_put_in_order() -> None:
    texts = ["a = 1\n", "b = 2\n", "c = 3\n"]
    mixed = ok(*texts)
    mixed["choices"] = [mixed["choices"][i] for i in (2, 0, 1)]
    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = lambda number, path, body: mixed
        (reply,) = ask(engines, propose())
    assert [s.step.text for s in reply.samples] == [text.strip() for text in texts]


def test_half_a_character_is_none() -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = lambda number, path, body: Fault(
            body='{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x\\ud800 = 1\\n"}}]}'
        )
        (reply,) = ask(engines, propose(n=1))
        assert reply.samples[0].step.text == "x\ufffd = 1"
        fake.hook = None
        engines = connect(fake)
        (error,) = ask(engines, Propose(Problem("s", "1 + \ud800"), (), 1, 1, 0.5, 8), raises=False)
    assert isinstance(error, TransientError)


def test_a_prompt_beyond_the_context_is_an_empty_sample() -> None:
    said = {"error": {"message": "This model's maximum context length is 1024 tokens.", "code": 400}}
    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = lambda number, path, body: Fault(400, json.dumps(said))
        (reply,) = ask(engines, propose(PATH, n=2))
    assert [(s.step.text, s.finish) for s in reply.samples] == [("", "length")] * 2


def test_a_request_that_is_refused_fails_alone() -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        bad = Propose(Problem("bad", "What is 1 + 1, really?"), (), 1, 1, 0.5, 8)
        fake.hook = lambda number, path, body: Fault(400, '{"error": "no"}') if "really" in json.dumps(body) else None
        before = len(fake.requests)
        good, failed = ask(engines, propose(), bad, raises=False)
        assert len(fake.requests) == before + 2, "it is not asked again"
    assert len(good.samples) == 3
    assert isinstance(failed, TransientError)
    assert not failed.again


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match=rf"no server at {url} .*asked 2 times.*; start it"):
        load_engines("m", settings=EngineSettings(server=ServerSettings(base_url=url, retries=1)))


def test_a_server_that_goes_away_ends_the_search() -> None:
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver", retries=1)
    with pytest.raises(EngineError, match="no server at"):
        search(engines, 4)


def test_a_server_that_answers_nothing_any_more_ends_the_search() -> None:
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver", retries=0)
        fake.hook = lambda number, path, body: Fault(500)
        with pytest.raises(EngineError, match="answered none of the last 16 requests; the last: 500"):
            search(engines, 40)


def test_wrong_model_wrong_address_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as fake:
        settings = EngineSettings(server=ServerSettings(base_url=fake.url, retries=0))
        with pytest.raises(EngineError, match=rf"^{fake.url} does not serve 'other'; it serves solver$"):
            load_engines("other", settings=settings)
        with pytest.raises(EngineError, match="does not serve 'other'"):
            load_engines("solver", "judge:other", settings=settings)
        nowhere = EngineSettings(server=ServerSettings(base_url=fake.url + "/v2", retries=0))
        with pytest.raises(EngineError, match=r"/v1/v2/chat/completions .*404.*check engine\.server\.base_url"):
            load_engines("solver", settings=nowhere)
        with pytest.raises(ConfigError, match="neither pooling:NAME nor judge:NAME"):
            load_engines("solver", "other", settings=settings)
        with pytest.raises(ConfigError, match=r"engine\.server\.tokenizer"):
            load_engines("solver", "pooling:v", settings=settings)
        fake.hook = lambda number, path, body: Fault(401, '{"error": {"message": "Incorrect API key: sk-s3cret"}}')
        with pytest.raises(EngineError, match="wants a key .*RESTMCTS_API_KEY"):
            load_engines("solver", settings=settings)
        monkeypatch.setenv("RESTMCTS_API_KEY", "sk-s3cret")
        with pytest.raises(EngineError, match="refused the key") as refused:
            load_engines("solver", settings=settings)
        assert "s3cret" not in str(refused.value)


def test_addresses_that_are_none_are_not_repeated() -> None:
    for url in (
        "ftp://x/v1",
        "127.0.0.1:8000",
        "http://u:s3cret@h/v1",
        "http://h/v1?key=s3cret",
        "http://h:99999/v1",
        "",
    ):
        with pytest.raises(ConfigError, match=r"engine\.server\.base_url") as error:
            load_engines("m", settings=EngineSettings(server=ServerSettings(base_url=url)))
        assert "s3cret" not in str(error.value)


def test_the_key_is_sent_and_never_seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("RESTMCTS_API_KEY", "sk-s3cret")
    caplog.set_level("DEBUG")
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver", retries=0)
        fake.hook = lambda number, path, body: Fault(500, '{"error": "sk-s3cret"}') if number % 3 == 0 else None
        trees = search(engines, 2)
        assert {headers["authorization"] for _, _, headers in fake.requests} == {"Bearer sk-s3cret"}
    assert any(tree.failures for tree in trees)
    assert "s3cret" not in json.dumps([tree.to_record() for tree in trees]) + caplog.text


# ---------------------------------------------------------------- stopping


def test_cancelling_closes_the_connection() -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = lambda number, path, body: Fault(delay=30)

        async def run() -> None:
            tasks = [asyncio.create_task(engines.policy.propose(propose(seed=i))) for i in range(5)]
            while fake.running < 5:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert not engines.policy._server._running  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)
            assert (fake.running, fake.disconnects) == (0, 5)
            fake.hook = None
            assert len((await engines.policy.propose(propose())).samples) == 3
            await engines.close()

        asyncio.run(run())


def test_closing_answers_those_who_wait() -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        fake.hook = lambda number, path, body: Fault(delay=30)

        async def run() -> Any:
            task = asyncio.create_task(engines.policy.propose(propose()))
            while not fake.running:
                await asyncio.sleep(0.01)
            await engines.close()
            await engines.close()
            return (await asyncio.gather(task, return_exceptions=True))[0]

        error = asyncio.run(run())
        assert isinstance(error, EngineError)
        assert "closed" in str(error)
        time.sleep(0.1)
        assert (fake.running, fake.disconnects) == (0, 1)


def test_a_budget_of_seconds_cuts_a_hanging_server_off() -> None:
    with FakeServer() as fake:
        engines = connect(fake, "judge:solver")
        fake.hook = lambda number, path, body: Fault(delay=30)
        begin = time.monotonic()
        (tree,) = search(engines, 1, budget_seconds=0.3)
        assert tree.stop == "budget"
        assert time.monotonic() - begin < 3
        time.sleep(0.1)
        assert (fake.running, fake.disconnects) == (0, 1)


# ---------------------------------------------------------------- the command line


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = guarded(cli._dispatch, list(map(str, words)))
    return (code, *capsys.readouterr())


def test_the_commands_take_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"question": "What is {i} + 3 - 2?", "answer": "{i + 1}"}}\n' for i in range(4)))
    with FakeServer() as fake:
        words = ("--policy", "solver", "--value", "judge:solver", "--set", "engine.kind=openai")
        words += ("--set", f"engine.server.base_url={fake.url}", "--set", "search.iterations=3")
        code, out, err = command(capsys, "solve", "What is 2 + 3?", *words)
        assert (code, err) == (0, "")
        assert "answer: " in out
        code, _, err = command(capsys, "search", "-q", "--problems", problems, "--out", tmp_path / "s", *words)
        assert (code, err) == (0, "")
        code, out, err = command(capsys, "evaluate", "-q", "--problems", problems, "--out", tmp_path / "e", *words)
        assert (code, err) == (0, "")
        asked = len(fake.requests)
        code, out, err = command(capsys, "run", "--problems", problems, "--out", tmp_path / "r", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert "behind a server cannot be trained" in err
        assert len(fake.requests) == asked
        code, _, err = command(capsys, "solve", "What is 2 + 3?", *words, "--policy", "other")
        assert (code, err) == (2, f"error: {fake.url} does not serve 'other'; it serves solver\n")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["metrics"]["engine"] == "openai"
    assert manifest["metrics"]["answered"] > 0


def test_engines_outlive_an_event_loop() -> None:
    with FakeServer() as fake:
        engines = connect(fake)
        replies = [asyncio.run(engines.policy.propose(propose())) for _ in range(3)]
        asyncio.run(engines.close())
    assert replies[0] == replies[1] == replies[2]
