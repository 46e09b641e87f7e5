"""The engine on real servers with the embedded model, started and stopped here, on loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("openai")

import benchmarks.serving
from restmcts import drive, models
from restmcts.encoding import Encoder, PromptSettings
from restmcts.engines import Engines
from restmcts.engines.openai import ServerPolicy, load_engines
from restmcts.engines.scripted import ScriptedValue, check_steps
from restmcts.engines.settings import EngineSettings, ServerSettings
from restmcts.search import SEARCHES, SearchSettings
from restmcts.tasks import get_task
from restmcts.types import Problem, Propose, Tree

pytestmark = [pytest.mark.model, pytest.mark.slow]
PROBLEMS = [Problem(f"q{i}", f"What is {i} + 4 - 2?", str(i + 2)) for i in (3, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, told to draw its samples: `transformers serve` asks the model's folder whether to."""
    made = tmp_path_factory.mktemp("served") / "smol"
    made.mkdir()
    for file in models.embedded_model().iterdir():
        (made / file.name).symlink_to(file)
    config = json.loads((made / "generation_config.json").read_text())
    (made / "generation_config.json").unlink()
    (made / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "top_k": 0}))
    return made


def serving(log: Path, *command: str) -> AbstractContextManager[str]:
    """A server's URL. It has one thread: on a busy machine two of them wait for each other."""
    return benchmarks.serving.serving(log, command, {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"})


def opened(url: str, name: str, **settings: object) -> tuple[Engines, ServerPolicy]:
    chosen = ServerSettings(**({"base_url": url, "timeout": 60, "retries": 1} | settings))
    policy = load_engines(name, settings=EngineSettings(server=chosen)).policy
    assert isinstance(policy, ServerPolicy)
    return Engines(policy, ScriptedValue(check_steps)), policy


def search(engines: Engines, method: str, **settings: object) -> list[Tree]:
    trees: list[Tree] = []
    drive.run(
        PROBLEMS,
        SEARCHES[method],
        SearchSettings(**({"step_tokens": 24, "temperature": 0.8} | settings)),
        engines,
        task_of=lambda _: get_task("math"),
        seed=1,
        concurrency=2,
        on_tree=trees.append,
    )
    asyncio.run(engines.close())
    return trees


def check(trees: list[Tree], most_tokens: int) -> None:
    """Every tree grew by what the model said, and what that cost is counted."""
    assert len(trees) == len(PROBLEMS)
    for tree in trees:
        assert not tree.failures
        assert len(tree) > 2
        assert any(text.strip() for text in tree.text)
        assert 0 < tree.usage.policy_tokens <= most_tokens
        assert tree.usage.prompt_tokens > 20 * (tree.usage.requests - tree.usage.value_requests)
        assert not any("\n" in text for text in tree.text)


def test_transformers_serve(folder: Path, tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}")
    start = ("-c", "from transformers.cli.transformers import app; app()", "serve", str(folder), "--device", "cpu")
    with serving(tmp_path / "log", *start) as url:
        # The model is a folder here, so its tokenizer is at hand and prompts go as text.
        engines, policy = opened(url, str(folder))
        assert policy._way.kind == "completions"
        assert not policy._way.as_ids
        encoder = Encoder(models.load_tokenizer(folder), PromptSettings())
        reply = asyncio.run(policy.propose(Propose(PROBLEMS[0], (), 3, 1, 0.8, 24)))
        assert len({sample.step.text for sample in reply.samples}) > 1
        assert reply.usage.requests == 3, "it makes one sample at a time"
        assert reply.usage.prompt_tokens == 3 * len(encoder.prompt(PROBLEMS[0]))
        assert reply.usage.policy_tokens <= 3 * 24
        check(search(engines, "mcts_star", iterations=2, branch=2, rollout_steps=1), 2 * 3 * 24)
        engines, policy = opened(url, str(folder), ask="chat")
        check(search(engines, "sample", samples=2, max_depth=3), 2 * 3 * 24)
    assert not benchmarks.serving.healthy(url.removesuffix("/v1") + "/health")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serve(tmp_path: Path) -> None:
    model = str(models.embedded_model())
    start = ("-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "smol")
    options = ("--enforce-eager", "--max-model-len", "1024", "--enable-prompt-tokens-details")
    with serving(tmp_path / "log", *start, *options) as url:
        engines, policy = opened(url, "smol", tokenizer="embedded")
        assert (policy._way.kind, policy._way.as_ids) == ("completions", True)
        trees = search(engines, "mcts_star", iterations=3, branch=2, rollout_steps=1)
        check(trees, 3 * 3 * 24)
        encoder = policy._asker.encoder
        assert encoder is not None
        for tree in trees:
            assert tree.models["tokenizer"] == encoder.tokenizer_id
            assert all(p is not None and p <= 0 for p in tree.logprob[1:])
            assert sum(ids is not None for ids in tree.ids[1:]) > len(tree) // 2
            for text, ids in zip(tree.text[1:], tree.ids[1:], strict=True):
                assert ids is None or encoder.decode(ids).strip() == text
        engines, policy = opened(url, "smol")
        assert policy._way.kind == "continue"
        trees = search(engines, "sample", samples=3, max_depth=3)
        check(trees, 3 * 3 * 24)
        assert not any(any(ids or ()) for tree in trees for ids in tree.ids)
