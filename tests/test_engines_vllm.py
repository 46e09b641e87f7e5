"""The vLLM engine: its process and its client with a stand-in for vLLM, and all of it with vLLM where that is."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from restmcts.encoding import Encoder, PromptSettings
from restmcts.engines import opening, vllm, vllm_client
from restmcts.engines.settings import EngineSettings
from restmcts.engines.transformers import load_policy as load_transformers
from restmcts.engines.vllm_client import VllmProcess, end_kept, keep_process, open_process
from restmcts.errors import ConfigError, EngineError
from restmcts.types import Critique, Problem, Proposals, Propose, Step
from tests import fake_vllm
from tests.tiny import tiny_tokenizer

PROBLEM = Problem("p", "What is 3 + 4 - 2?")


# ---------------------------------------------------------------- what needs no vLLM


def encoder(delimiter: str = "\n") -> Encoder:
    return Encoder(tiny_tokenizer(), PromptSettings(delimiter=delimiter))


def test_a_step_ends_at_every_token_that_holds_the_delimiter() -> None:
    coder = encoder()
    rule = vllm.stop_rule(coder, frozenset({1}))
    assert rule["detokenize"] is False
    texts = {token: coder.decode([token]) for token in coder.tokenizer.get_vocab().values()}
    assert set(rule["stop_token_ids"]) == {token for token, text in texts.items() if "\n" in text} | {1}
    assert len(rule["stop_token_ids"]) > 1
    other = vllm.stop_rule(encoder("\n\n"), frozenset({1}))
    assert (other["stop"], other["include_stop_str_in_output"], other["stop_token_ids"]) == (["\n\n"], True, [1])


@pytest.mark.parametrize(
    ("text", "reason", "step", "finish", "kept"),
    [
        ("3 + 4 = 7\n", "stop", "3 + 4 = 7", "step", True),
        ("3 + 4", "length", "3 + 4", "length", True),
        ("\n 3 + 4\n", "stop", "3 + 4", "step", True),
        ("3 + 4 = 7\n7", "stop", "3 + 4 = 7", "step", False),  # as if the last token reached into the next step
    ],
)
def test_samples_of_tokens(text: str, reason: str, step: str, finish: str, kept: bool) -> None:
    coder = encoder()
    ids = tuple(coder.tokenizer.encode(text, add_special_tokens=False))
    sample = vllm.as_sample(coder, ids, reason, coder.end_ids, -2.0)
    assert sample is not None
    assert (sample.step.text, sample.finish, sample.logprob) == (step, finish, -2.0)
    assert sample.step.ids == (ids if kept else None)


def test_a_turn_that_ends_and_a_step_that_has_not_begun() -> None:
    coder = encoder()
    (end,) = coder.end_of_turn
    ids = tuple(coder.tokenizer.encode("Answer: 5", add_special_tokens=False))
    sample = vllm.as_sample(coder, (*ids, end), "stop", coder.end_ids, -1.0)
    assert sample is not None
    assert (sample.step, sample.finish) == (Step("Answer: 5", ids), "end")
    assert vllm.as_sample(coder, tuple(coder.tokenizer.encode("\n")), "stop", coder.end_ids, -1.0) is None


def test_options_for_a_cpu(tiny_model_dir: Path) -> None:
    from restmcts.models import load_config

    config = load_config(tiny_model_dir)
    options, environment = vllm.engine_options(config, EngineSettings(device="cpu", cache_mb=64, max_rows=7))
    assert options["kv_cache_memory_bytes"] == 64 << 20
    assert options["max_num_seqs"] == 7
    assert options["max_model_len"] <= config.max_position_embeddings
    assert options["max_num_batched_tokens"] >= options["max_model_len"]  # a prompt is never computed in pieces
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    gpu, _ = vllm.engine_options(config, EngineSettings(device="cuda", dtype="bfloat16", gpu_memory=0.4))
    assert gpu["gpu_memory_utilization"] == 0.4
    assert gpu["enable_sleep_mode"]


# ---------------------------------------------------------------- with the stand-in


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return fake_vllm.install(tmp_path)


@pytest.fixture
def process(environment: dict[str, str]) -> Iterator[VllmProcess]:
    opened = VllmProcess({"model": "m"}, environment, "w")
    yield opened
    opened.end()


def journal(process: VllmProcess) -> list[str]:
    path = Path(process._folder.name, "journal")
    return path.read_text().splitlines() if path.exists() else []


def sample(process: VllmProcess, last: int) -> Any:
    return process.ask("sample", {"ids": [1, last], "n": 2, "max_tokens": 3})


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_replies_reach_every_event_loop(process: VllmProcess) -> None:
    async def many() -> list[Any]:
        return list(await asyncio.gather(*(sample(process, i) for i in range(20))))

    for _ in range(2):
        replies = asyncio.run(many())
        assert [r["samples"][1][0] for r in replies] == [[i + 1, i + 2, i + 3] for i in range(20)]
    assert process.context == 100
    assert not process._open


def test_a_refused_request_leaves_the_others_alone(process: VllmProcess) -> None:
    async def both() -> list[Any]:
        return list(await asyncio.gather(sample(process, 668), sample(process, 5), return_exceptions=True))

    refused, served = asyncio.run(both())
    assert isinstance(refused, EngineError)
    assert "not this one" in str(refused)
    assert served["cached"] == 1


def test_cancelling_aborts_the_request(process: VllmProcess) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(sample(process, 669))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sample(process, 1)

    asyncio.run(cancel())
    assert journal(process) == ["abort"]
    assert not process._open


@pytest.mark.parametrize(("last", "said"), [(666, "was killed"), (667, "RuntimeError: the model is ill; details are")])
def test_death_reaches_every_caller(process: VllmProcess, last: int, said: str) -> None:
    async def waiting() -> list[Any]:
        return list(await asyncio.gather(sample(process, 669), sample(process, last), return_exceptions=True))

    for error in asyncio.run(waiting()):
        assert isinstance(error, EngineError)
        assert said in str(error)
        assert "\n" not in str(error)
    if "details" in said:
        kept = Path(str(error).partition("details are in ")[2].partition(";")[0])
        assert "Traceback" in kept.read_text()
        kept.unlink()
    assert not process.alive
    with pytest.raises(EngineError, match=r"killed|failed"):
        asyncio.run(sample(process, 1))


def test_what_cannot_start_says_why_and_is_not_tried_again(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "_failed", {})
    with pytest.raises(EngineError, match="no such architecture") as first:
        open_process({"model": "broken"}, environment, fits="f", weights="w")
    Path(str(first.value).partition("details are in ")[2].partition(";")[0]).unlink()
    begin = time.monotonic()
    with pytest.raises(EngineError, match="no such architecture"):
        open_process({"model": "broken"}, environment, fits="f", weights="w")
    assert time.monotonic() - begin < 0.02


def test_a_kept_process_serves_the_next_policy(environment: dict[str, str]) -> None:
    first = open_process({"model": "a"}, environment, fits="one", weights="wa")
    keep_process(first, "one")
    assert open_process({"model": "a"}, environment, fits="one", weights="wa") is first
    assert journal(first) == []
    keep_process(first, "one")
    assert open_process({"model": "b"}, environment, fits="one", weights="wb") is first
    assert journal(first) == ["reload_weights b", "_pack_again", "reset"]
    second = open_process({"model": "b"}, environment, fits="one", weights="wb")  # the first is in use
    assert second is not first
    keep_process(first, "one")
    keep_process(second, "one")
    assert gone(first._process.pid)
    third = open_process({"model": "c"}, environment, fits="other", weights="wc")
    assert gone(second._process.pid)
    keep_process(third, "other")
    end_kept()
    assert gone(third._process.pid)
    assert not Path(third._folder.name).exists()


def test_a_gpu_is_given_back_while_the_process_is_kept(environment: dict[str, str]) -> None:
    process = open_process({"model": "a", "enable_sleep_mode": True}, environment, fits="one", weights="wa")
    asyncio.run(process.sleep())
    keep_process(process, "one")
    assert open_process({"model": "a"}, environment, fits="one", weights="wa") is process
    assert journal(process) == ["reset", "sleep", "wake"]
    process.end()


@pytest.mark.parametrize("how", ["exit", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_however_the_program_ends(environment: dict[str, str], how: str) -> None:
    code = f"""
import asyncio, signal, time
from restmcts.engines.vllm_client import keep_process, open_process
process = open_process({{"model": "m"}}, {environment!r}, fits="f", weights="w")
keep_process(process, "f")
print(process._process.pid, process._folder.name, flush=True)
if {how!r} != "exit":
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        pid, folder = program.stdout.readline().split()
        if how != "exit":
            program.send_signal(getattr(signal, how))
        said = program.stderr.read()
        program.wait(20)
    assert gone(int(pid))
    assert not Path(folder).exists()
    assert "KeyboardInterrupt" in said if how == "SIGINT" else said == ""


# ---------------------------------------------------------------- which engine


def test_auto_says_once_why_it_is_not_vllm_on_a_gpu(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_said", set())
    monkeypatch.setattr(opening, "pick_device", lambda _: "cuda")
    settings, said = EngineSettings(device="cpu", dtype="float32"), []
    for _ in range(2):
        engines = opening.load_engines(tiny_model_dir, settings=settings, say=said.append)
        assert engines.kind == "transformers"
        asyncio.run(engines.close())
    assert len(said) == 1
    assert "served by transformers" in said[0]


def test_auto_is_transformers_on_a_cpu(tiny_model_dir: Path) -> None:
    said: list[str] = []
    engines = opening.load_engines(tiny_model_dir, settings=EngineSettings(device="cpu"), say=said.append)
    assert engines.kind == "transformers"
    assert not said
    asyncio.run(engines.close())


def test_engines_are_chosen_by_name() -> None:
    assert opening.load_engines("scripted").kind == "scripted"
    with pytest.raises(ConfigError, match="there are: auto, transformers, vllm, openai, scripted"):
        opening.load_engines("x", settings=EngineSettings(kind="vlm"))


# ---------------------------------------------------------------- with vLLM

with_vllm = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
"""marks of the tests that start vLLM; once for all of them"""

SETTINGS = EngineSettings(kind="vllm", device="cpu", cache_mb=256)


def served(spec: str | Path = "embedded") -> Any:
    """The policy `spec`; to be closed, which keeps vLLM for the next one."""
    return vllm.load_policy(spec, PromptSettings(), SETTINGS)


def ask(policy: Any, *requests: Propose) -> list[Proposals]:
    async def together() -> list[Proposals]:
        return list(await asyncio.gather(*(policy.propose(request) for request in requests)))

    return asyncio.run(together())


@pytest.fixture(scope="module")
def _vllm_ends() -> Iterator[None]:
    yield
    end_kept()


@pytest.fixture
def policy(_vllm_ends: None) -> Iterator[Any]:
    opened = served()
    yield opened
    asyncio.run(opened.close())


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with noise on every matrix: another model of the same architecture."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from restmcts.models import embedded_model

    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(embedded_model(), folder)
    noise = torch.Generator().manual_seed(1)
    (file,) = folder.glob("*.safetensors")
    weights = {
        name: tensor + 0.2 * tensor.std() * torch.randn(tensor.shape, generator=noise).to(tensor.dtype)
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def questions(count: int, **facts: Any) -> list[Propose]:
    options = {"path": (), "n": 1, "seed": 3, "temperature": 0.0, "max_tokens": 12, **facts}
    return [
        Propose(Problem(str(i), f"Tom has {i} apples and buys {i + 3} more. How many?"), **options)
        for i in range(count)
    ]


class TestWithVllm:
    pytestmark = with_vllm

    def test_prompts_are_those_of_the_transformers_engine(self, policy: Any) -> None:
        sent: list[dict[str, Any]] = []
        ask_it = policy._process.ask

        async def spy(kind: str, facts: Any = None) -> Any:
            sent.append(facts)
            return await ask_it(kind, facts)

        policy._process.ask = spy
        path = (Step("3 + 4 = 7"), Step("7 - 2 = 5", (37, 198)))
        try:
            (reply,) = ask(policy, Propose(PROBLEM, path, 2, 1, 1.0, 4, "Add first."))
        finally:
            del policy._process.ask
        other = load_transformers("embedded", PromptSettings(), EngineSettings(device="cpu"))
        assert sent[0]["ids"] == other._prefix(PROBLEM, path, "Add first.")[0]
        assert policy.tokenizer_id == other.tokenizer_id
        assert policy.identity == other.identity
        assert reply.usage.prompt_tokens == len(sent[0]["ids"])
        asyncio.run(other.close())

    def test_samples_can_be_asked_for_bit_by_bit(self, policy: Any) -> None:
        (request,) = questions(1, n=4, temperature=1.0, max_tokens=24)
        (whole,), (last,), (first,) = (
            ask(policy, part) for part in (request, replace(request, first=2, n=2), replace(request, n=2))
        )
        assert [s.step.text for s in (*first.samples, *last.samples)] == [s.step.text for s in whole.samples]
        assert sum(s.tokens for s in whole.samples) == whole.usage.policy_tokens
        (greedy,) = ask(policy, replace(request, temperature=0.0))
        assert [s.tokens for s in greedy.samples] == [greedy.usage.policy_tokens, 0, 0, 0]

    def test_steps_end_at_the_delimiter(self, policy: Any) -> None:
        replies = ask(policy, *questions(8, n=4, temperature=1.0, max_tokens=40))
        samples = [sample for reply in replies for sample in reply.samples]
        assert len(samples) == 32
        assert any(sample.finish == "step" for sample in samples)
        for sample in samples:
            assert "\n" not in sample.step.text
            assert sample.logprob is not None
            assert sample.logprob < 0
            if sample.finish == "step" and sample.step.ids is not None:
                assert policy.encoder.decode(sample.step.ids).endswith("\n")
        generated = sum(len(s.step.ids or ()) + (s.finish == "end") for s in samples)
        assert sum(reply.usage.policy_tokens for reply in replies) >= generated

    def test_samples_follow_the_seed_and_not_the_batch(self, policy: Any) -> None:
        (request,) = questions(1, n=3, temperature=1.0)
        (alone,) = ask(policy, request)
        crowd = ask(policy, *questions(20, n=2, temperature=1.0, seed=9), request)
        texts = [sample.step.text for sample in alone.samples]
        assert len(set(texts)) > 1
        assert [sample.step.text for sample in crowd[-1].samples] == texts
        (other_seed,) = ask(policy, *questions(1, n=3, temperature=1.0, seed=4))
        assert [sample.step.text for sample in other_seed.samples] != texts

    def test_a_long_prompt_that_waits_for_room_does_no_harm(self, policy: Any) -> None:
        """Seeded requests whose prompts are computed in pieces end vLLM's CPU engine."""
        long = [
            Propose(Problem(str(i), f"{i} + " * 400), (), 2, i, 1.0, 4) for i in range(policy._process.context // 800)
        ]
        assert all(len(reply.samples) == 2 for reply in ask(policy, *long))

    def test_prefixes_are_cached_and_greedy_samples_drawn_once(self, policy: Any) -> None:
        (request,) = questions(1, n=3)
        ask(policy, request)
        (again,) = ask(policy, request)
        assert again.usage.cached_tokens >= vllm._BLOCK
        assert len(again.samples) == 3
        assert len(set(again.samples)) == 1
        assert again.usage.policy_tokens <= 12

    def test_critique_and_a_full_context(self, policy: Any) -> None:
        verdict = asyncio.run(policy.critique(Critique(PROBLEM, (Step("3 + 4 = 7"),), seed=1, max_tokens=6)))
        assert verdict.usage.policy_tokens <= 6
        (reply,) = ask(policy, Propose(Problem("l", "1 + " * 9000), (), 2, 1, 0.7, 8))
        assert [(s.step.text, s.finish) for s in reply.samples] == [("", "length")] * 2

    def test_cancelling_frees_the_engine(self, policy: Any) -> None:
        async def cancel() -> float:
            (long,) = questions(1, n=8, temperature=1.0, max_tokens=4000)
            policy._stop, stop = {"stop_token_ids": [], "ignore_eos": True, "detokenize": False}, policy._stop
            task = asyncio.create_task(policy.propose(long))
            await asyncio.sleep(1.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            policy._stop = stop
            begin = time.monotonic()
            await policy.propose(questions(1)[0])
            return time.monotonic() - begin

        assert asyncio.run(cancel()) < 10
        assert not policy._process._open

    def test_greedy_answers_are_those_of_transformers(self, policy: Any) -> None:
        requests = questions(20, max_tokens=10)
        ours = [reply.samples[0].step.text for reply in ask(policy, *requests)]
        other = load_transformers("embedded", PromptSettings(), EngineSettings(device="cpu"))
        theirs = [reply.samples[0].step.text for reply in ask(other, *requests)]
        asyncio.run(other.close())
        assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 14

    def test_exchanged_weights_serve_as_in_a_fresh_process(self, policy: Any, other_weights: Path) -> None:
        requests = questions(8)
        before = [reply.samples for reply in ask(policy, *requests)]
        pid = policy._process._process.pid
        asyncio.run(policy.close())
        other = served(other_weights)
        assert other._process._process.pid == pid
        swapped = [reply.samples for reply in ask(other, *requests)]
        asyncio.run(other.close())
        end_kept()
        other = served(other_weights)
        assert other._process._process.pid != pid
        fresh = [reply.samples for reply in ask(other, *requests)]
        asyncio.run(other.close())
        assert swapped == fresh
        assert swapped != before
        back = served()
        assert [reply.samples for reply in ask(back, *requests)] == before
        asyncio.run(back.close())

    def test_an_idle_engine_costs_no_time(self, policy: Any) -> None:
        def busy() -> int:
            stat = Path(f"/proc/{policy._process._process.pid}/stat").read_text().rpartition(")")[2].split()
            return int(stat[11]) + int(stat[12])  # hundredths of a second

        ask(policy, *questions(1))
        time.sleep(1)
        begin = busy()
        time.sleep(3)
        assert busy() - begin < 30
