"""Models that run out of memory, whose outputs are no numbers, or whose tokenizers lose text; processes that die."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from restmcts import drive
from restmcts.encoding import Encoder, PromptSettings, steps_of
from restmcts.engines import Engines, TransientError
from restmcts.engines.kv import Rows
from restmcts.engines.settings import EngineSettings
from restmcts.engines.transformers import load_engines, load_policy, load_value
from restmcts.errors import EngineError
from restmcts.search import SEARCHES, SearchSettings
from restmcts.store import JsonlWriter, read_jsonl
from restmcts.tasks import get_task
from restmcts.train import steps
from restmcts.types import Problem, Propose, Score, Tree
from tests.adder import Adder
from tests.test_train_policy import QUICK, weights
from tests.test_train_policy import run as train
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PROBLEM = Problem("p", "What is 3 + 4 - 2?", "5")
PATH = steps_of("3 + 4 = 7\n7 - 2 = 5")
SETTINGS = EngineSettings(dtype="float32", device="cpu", max_rows=8, cache_mb=0)
NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
)


def propose(seed: int, n: int = 2) -> Propose:
    return Propose(PROBLEM, PATH[: seed % 3], n, seed, 1.0, 8)


def ask(engine: Any, *requests: Any) -> list[Any]:
    async def run() -> list[Any]:
        name = {Propose: "propose", Score: "score"}
        try:
            calls = (getattr(engine, name[type(request)])(request) for request in requests)
            return list(await asyncio.gather(*calls, return_exceptions=True))
        finally:
            await engine.close()

    return asyncio.run(run())


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException) -> list[int]:
    """A device that holds so many rows at a time; the widths that were tried."""
    forward, tried = Rows.states, []

    def limited(self: Rows, first: int, new: Any) -> Any:
        tried.append(len(self))
        if len(self) > rows:
            raise error
        return forward(self, first, new)

    monkeypatch.setattr(Rows, "states", limited)
    return tried


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("error", NO_MEMORY, ids=["host", "GPU", "torch on a CPU"])
def test_generation_goes_on_with_fewer_rows(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [propose(seed) for seed in range(6)]
    expected = ask(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), *requests)
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
    tried = short_of_memory(monkeypatch, 3, error)
    found = ask(policy, *requests)
    assert max(tried) > 3
    assert [[s.step for s in reply.samples] for reply in found] == [
        [s.step for s in reply.samples] for reply in expected
    ], "what is begun again draws the same"
    assert "out of memory: the engine goes on with less at once" in caplog.text


def test_scoring_goes_on_with_fewer_paths(tiny_value_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Score(PROBLEM, (steps_of(f"{i} + 4 = 7"),)) for i in range(12)]
    expected = ask(load_value(tiny_value_dir, PromptSettings(), SETTINGS), *requests)
    value = load_value(tiny_value_dir, PromptSettings(), SETTINGS)
    tried = short_of_memory(monkeypatch, 2, NO_MEMORY[1])
    found = ask(value, *requests)
    assert max(tried) > 2
    assert [reply.values[0] for reply in found] == pytest.approx([reply.values[0] for reply in expected], abs=1e-5)


def test_no_memory_for_even_one_row_ends_it(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
    tried = short_of_memory(monkeypatch, 0, NO_MEMORY[0])
    errors = ask(policy, *(propose(seed) for seed in range(3)))
    assert all(isinstance(error, EngineError) and "out of memory; lower" in str(error) for error in errors)
    assert len(tried) < 20


def test_training_goes_on_in_smaller_passes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight = train(tiny_model_dir, tmp_path / "straight", QUICK)
    loss, longest = steps.StepTrainer._loss, 120

    def limited(self: Any, model: Any, one: Any) -> Any:
        found = loss(self, model, one)
        if one["inputs"]["input_ids"].shape[1] > longest:  # only after the forward pass: gradients are on their way
            raise NO_MEMORY[1]
        return found

    monkeypatch.setattr(steps.StepTrainer, "_loss", limited)
    short = train(tiny_model_dir, tmp_path / "short", QUICK)
    assert "training goes on with micro_tokens" in caplog.text
    assert short["loss_last"] == pytest.approx(straight["loss_last"], rel=1e-4)
    ours, theirs = weights(tmp_path / "short"), weights(tmp_path / "straight")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


# ---------------------------------------------------------------- outputs that are no numbers


def spoil(model: Any, which: Callable[[Any], bool]) -> None:
    """Let the model's last layer give NaN for batches of which that is true."""
    norm = model.base_model.norm

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        return output * float("nan") if which(output) else output

    norm.register_forward_hook(hook)


def test_scores_that_are_no_numbers_fail_alone(tiny_value_dir: Path) -> None:
    value = load_value(tiny_value_dir, PromptSettings(), SETTINGS)
    calls = iter([True])
    spoil(value._prefixes._model, lambda output: next(calls, False))
    bad, *_ = ask_kept(value, Score(PROBLEM, (PATH,)))
    assert isinstance(bad, TransientError)
    assert not bad.again
    (good,) = ask(value, Score(PROBLEM, (PATH,)))
    assert 0 <= good.values[0] <= 1


def ask_kept(engine: Any, *requests: Any) -> list[Any]:
    async def run() -> list[Any]:
        calls = (engine.propose(r) if isinstance(r, Propose) else engine.score(r) for r in requests)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(run())


def test_logits_that_are_no_numbers_fail_alone_and_leave_nothing_behind(tiny_model_dir: Path) -> None:
    expected = ask(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), propose(1), propose(2))
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
    ill = iter([True])
    spoil(policy._model, lambda output: output.shape[1] == 1 and next(ill, False))
    (bad,) = ask_kept(policy, propose(5))
    assert isinstance(bad, TransientError)
    assert "no numbers" in str(bad)
    found = ask(policy, propose(1), propose(2))
    assert [[s.step for s in reply.samples] for reply in found] == [[s.step for s in r.samples] for r in expected]


def search(engines: Engines, on_tree: Callable[[Tree], None], count: int = 3, **settings: Any) -> None:
    chosen = SearchSettings(**({"iterations": 2, "branch": 2, "step_tokens": 8, "max_depth": 3} | settings))
    try:
        drive.run(
            [Problem(f"q{i}", f"What is {i} + 3?", str(i + 3)) for i in range(count)],
            SEARCHES["mcts_star"],
            chosen,
            engines,
            task_of=lambda _: get_task("math"),
            seed=0,
            concurrency=count,
            on_tree=on_tree,
        )
    finally:
        asyncio.run(engines.close())


def test_a_search_with_a_broken_value_model_has_failures_and_no_values(tiny_value_dir: Path, tmp_path: Path) -> None:
    value = load_value(tiny_value_dir, PromptSettings(), SETTINGS)
    spoil(value._prefixes._model, lambda output: True)
    engines = Engines(Adder(0.9), value)
    with JsonlWriter(tmp_path / "trees.jsonl") as writer:
        search(engines, lambda tree: writer.write(tree.to_record()))
    trees = [Tree.from_record(record) for record in read_jsonl(tmp_path / "trees.jsonl")]
    assert len(trees) == 3
    assert all(tree.failures and tree.raw_value == [None] * len(tree) for tree in trees)


def test_a_probability_of_nothing_has_a_logarithm() -> None:
    from restmcts.engines.generate import draw

    tokens, logprobs = draw(torch.tensor([[0.0, -500.0]]), [500.0], [0.999])
    assert tokens.tolist() == [1]
    assert math.isfinite(logprobs[0])
    tokens, logprobs = draw(torch.full((1, 70), float("nan")), [1.0], [0.9])
    assert 0 <= tokens[0] < 70
    assert math.isnan(logprobs[0])


# ---------------------------------------------------------------- tokenizers that lose text


@pytest.fixture
def lossy() -> Any:
    """No capital letters, no line ends, no sign but letters and digits: nothing comes back as it was."""
    from tokenizers import Regex, normalizers

    tokenizer = tiny_tokenizer("qwen")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z0-9<|>_]"), "")]
    )
    return tokenizer


def test_a_tokenizer_that_cannot_round_trip(
    lossy: Any, tiny_model_dir: Path, tiny_value_dir: Path, tmp_path: Path
) -> None:
    """Steps are kept as they were said, empty ones are scored too, and what is stored can be read and trained on."""
    import shutil

    folders = []
    for folder in (tiny_model_dir, tiny_value_dir):
        folders.append(tmp_path / folder.name)
        shutil.copytree(folder, folders[-1])
        lossy.save_pretrained(folders[-1])
    encoder = Encoder(lossy, PromptSettings())
    trace = encoder.trace(PROBLEM, (*steps_of("A!\nB"), *steps_of("?!\n.")))
    assert len(trace.ends) == 4
    assert sorted(trace.ends) == trace.ends
    value = load_value(folders[1], PromptSettings(), SETTINGS)
    paths = (steps_of("A\n?!"), steps_of("?!"), steps_of("?!\n!?\nAnswer: 5"))
    (scores,) = ask(value, Score(PROBLEM, paths))
    assert all(0 <= v <= 1 for v in scores.values)
    found: list[Tree] = []
    search(load_engines(folders[0], folders[1], PromptSettings(), SETTINGS), found.append)
    assert len(found) == 3
    assert train(folders[0], tmp_path / "trained")["steps"] > 0


# ---------------------------------------------------------------- a process that dies


def test_what_was_found_before_an_engine_died_is_on_the_disk(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)

    class Dying:
        identity, tokenizer_id, busy_seconds, asked = "dying", None, 0.0, 0

        async def propose(self, request: Propose) -> Any:
            self.asked += 1
            if self.asked > 9:
                raise EngineError("vLLM was killed")
            return await policy.propose(request)

        critique, close = policy.critique, policy.close

    with JsonlWriter(tmp_path / "trees.jsonl") as writer, pytest.raises(EngineError, match="was killed"):
        drive.run(
            [Problem(f"q{i}", f"What is {i} + 3?", str(i + 3)) for i in range(20)],
            SEARCHES["cot"],
            SearchSettings(step_tokens=4, max_depth=2),
            Engines(Dying()),
            task_of=lambda _: get_task("math"),
            seed=0,
            concurrency=2,
            on_tree=lambda tree: writer.write(tree.to_record()),
        )
    asyncio.run(policy.close())
    found = [Tree.from_record(record) for record in read_jsonl(tmp_path / "trees.jsonl")]
    assert 0 < len(found) < 20
    assert not any(tree.failures for tree in found)
