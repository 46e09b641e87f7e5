"""The transformers engines against plain transformers, on every model family."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restmcts import models  # noqa: E402
from restmcts.encoding import Encoder, PromptSettings, steps_of  # noqa: E402
from restmcts.engines.generate import draw, inverse_cdf  # noqa: E402
from restmcts.engines.graphs import Graphs  # noqa: E402
from restmcts.engines.kv import Rows  # noqa: E402
from restmcts.engines.prefixes import Chain, PrefixCache, PrefixModel  # noqa: E402
from restmcts.engines.settings import EngineSettings  # noqa: E402
from restmcts.engines.transformers import identify, load_engines, load_policy, load_value  # noqa: E402
from restmcts.errors import ConfigError, EngineError  # noqa: E402
from restmcts.types import Critique, Problem, Propose, Score, Step  # noqa: E402
from restmcts.types import Path as StepPath  # noqa: E402
from tests.tiny import tiny_model, tiny_tokenizer, tiny_value  # noqa: E402

PROBLEM = Problem("p", "What is 3 + 4 - 2?")
PATH = steps_of("3 + 4 = 7\n7 - 2 = 5")
SETTINGS = EngineSettings(dtype="float32", device="cpu", max_rows=8)


def propose(
    path: StepPath = (), *, n: int = 3, seed: int = 1, temperature: float = 1.0, max_tokens: int = 12
) -> Propose:
    return Propose(PROBLEM, path, n, seed, temperature, max_tokens)


async def closing(engine: Any, *requests: Any) -> list[Any]:
    calls = {Propose: "propose", Critique: "critique", Score: "score"}
    try:
        return list(await asyncio.gather(*(getattr(engine, calls[type(r)])(r) for r in requests)))
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def policy_dir(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def value_dir(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_value(tmp_path_factory.mktemp(family + "-value"), family)


def plain_greedy(folder: Path, ids: list[int], ends: frozenset[int], limit: int, encoder: Encoder) -> list[int]:
    """The model's own greedy continuation up to the first delimiter after text, by full forward passes."""
    model = models.load_causal(folder, dtype="float32")
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < limit:
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token in ends:
                break
            new.append(token)
            if encoder.delimiter in encoder.decode(new).lstrip():
                break
    return new


def test_greedy_equals_plain_forward_for_every_family(policy_dir: Path) -> None:
    policy = load_policy(policy_dir, PromptSettings(), SETTINGS)
    encoder = policy.encoder
    for path in ((), PATH[:1], PATH):
        ids = encoder.trace(PROBLEM, path).ids
        expected = plain_greedy(policy_dir, ids, encoder.end_ids, 12, encoder)
        (reply,) = asyncio.run(
            closing(load_policy(policy_dir, PromptSettings(), SETTINGS), propose(path, n=2, temperature=0))
        )
        assert [list(s.step.ids or ()) for s in reply.samples] == [expected, expected]
        assert reply.usage.prompt_tokens == len(ids)
    asyncio.run(policy.close())


def test_values_equal_plain_forward_for_every_family(value_dir: Path) -> None:
    value = load_value(value_dir, PromptSettings(), SETTINGS)
    trace = value.encoder.trace(PROBLEM, PATH)
    model = models.load_token_classifier(value_dir, dtype="float32")
    with torch.inference_mode():
        logits = model(torch.tensor([trace.ids])).logits[0, :, 0]
    expected = torch.sigmoid(logits[torch.tensor(trace.ends)]).tolist()
    scores, again = asyncio.run(closing(value, Score(PROBLEM, (PATH[:1], PATH)), Score(PROBLEM, (PATH,))))
    assert scores.values == pytest.approx(expected, abs=1e-5)
    assert again.values == pytest.approx(expected[1:], abs=1e-5)
    assert scores.usage.value_tokens <= len(trace.ids)


def test_prefix_is_computed_once(tiny_model_dir: Path) -> None:
    async def grow() -> list[Any]:
        policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
        first = await policy.propose(propose(n=4, max_tokens=40))
        steps = [s.step for s in first.samples if s.finish == "step"] or [PATH[0]]
        second = await policy.propose(propose((steps[0],), seed=2))
        await policy.close()
        return [first, second, steps[0] is not PATH[0]]

    first, second, grown = asyncio.run(grow())
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    if grown:
        assert second.usage.cached_tokens == second.usage.prompt_tokens - 1


def same_draws(one: Any, other: Any) -> bool:
    """Equal steps; log-probabilities as equal as the shape of the batch lets them be."""
    pairs = list(zip(one.samples, other.samples, strict=True))
    assert all(a.logprob == pytest.approx(b.logprob, abs=1e-3) for a, b in pairs)
    return all((a.step, a.finish) == (b.step, b.finish) for a, b in pairs)


def test_samples_do_not_depend_on_batch_mates(tiny_model_dir: Path) -> None:
    request = propose(PATH[:1], n=3, seed=11)
    (alone,) = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), request))
    mates = [propose(PATH[: i % 3], n=1 + i % 5, seed=100 + i) for i in range(12)]
    crowd = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), *mates, request, *mates))
    assert same_draws(crowd[12], alone)
    assert [len(r.samples) for r in crowd] == [m.n for m in (*mates, request, *mates)]
    assert len({s.step.ids for s in alone.samples}) > 1, "samples of one request differ"


def test_samples_can_be_asked_for_bit_by_bit(tiny_model_dir: Path, tiny_value_dir: Path) -> None:
    whole = propose(PATH[:1], n=5, seed=11)
    parts = [replace(whole, first=3, n=2), replace(whole, n=3)]
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
    found, last, first = asyncio.run(closing(policy, whole, *parts))
    assert same_draws(replace(first, samples=first.samples + last.samples), found)
    assert sum(s.tokens for s in found.samples) == found.usage.policy_tokens
    value = load_value(tiny_value_dir, PromptSettings(), SETTINGS)
    (scores,) = asyncio.run(closing(value, Score(PROBLEM, (PATH[:1], PATH))))
    assert len(scores.tokens) == 2
    assert sum(scores.tokens) == scores.usage.value_tokens


def test_small_cache_changes_nothing(tiny_model_dir: Path, tiny_value_dir: Path) -> None:
    tight = EngineSettings(dtype="float32", device="cpu", max_rows=2, cache_mb=0)
    requests = [propose(PATH[:i], n=3, seed=i, temperature=0) for i in range(3)]
    wide = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), *requests))
    narrow = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), tight), *requests))
    assert all(map(same_draws, wide, narrow))
    score = Score(PROBLEM, (PATH[:1], PATH))
    one = asyncio.run(closing(load_value(tiny_value_dir, PromptSettings(), SETTINGS), score))[0]
    other = asyncio.run(closing(load_value(tiny_value_dir, PromptSettings(), tight), score))[0]
    assert one.values == pytest.approx(other.values, abs=1e-5)


def test_steps_of_a_path_that_are_known_are_scored_again_together(tiny_value_dir: Path) -> None:
    """Each continues the one before, and the keys and values of all are cached."""
    path = steps_of("3 + 4 = 7\n7 - 2 = 5\n5 = 5\n5 + 0 = 5")
    score = Score(PROBLEM, tuple(path[:n] for n in range(1, 5)))

    async def twice() -> tuple[Any, Any]:
        value = load_value(tiny_value_dir, PromptSettings(), SETTINGS)
        try:
            return await value.score(score), await value.score(score)
        finally:
            await value.close()

    once, again = asyncio.run(twice())
    assert again.values == pytest.approx(once.values, abs=1e-5)


def test_memory_of_the_rows_is_bounded(
    tiny_model_dir: Path, tiny_value_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows where they are long, and the same results."""
    largest: list[int] = [0]
    reserve = Rows._reserve

    def watched(self: Rows, rows: int, tokens: int) -> None:
        reserve(self, rows, tokens)
        largest[0] = max(largest[0], self._slab.nbytes)

    monkeypatch.setattr(Rows, "_reserve", watched)
    long = tuple(Step("1 + 1 = 2 " * 12) for _ in range(3))
    requests = [propose((*PATH[:1], *long[: i % 4]), n=3, seed=i, temperature=0, max_tokens=40) for i in range(24)]
    score = Score(PROBLEM, tuple((Step(f"{i} = {i}"), *long) for i in range(40)))
    replies, values, bytes_taken = [], [], []
    for rows_mb in (None, 1):
        settings = EngineSettings(dtype="float32", device="cpu", max_rows=64, rows_mb=rows_mb)
        largest[0] = 0
        replies.append(asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), settings), *requests)))
        values.append(asyncio.run(closing(load_value(tiny_value_dir, PromptSettings(), settings), score))[0].values)
        bytes_taken.append(largest[0])
    assert all(map(same_draws, *replies))
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert bytes_taken[1] <= 1 << 20 < bytes_taken[0]


@pytest.mark.parametrize("captured", [False, True])
def test_decoding_steps_that_are_replayed_draw_the_same(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """Steps of more rows than there are, over a span rounded up, as graphs on a GPU take them; and graphs."""
    if captured and not torch.cuda.is_available():
        pytest.skip("no GPU, where decoding steps are captured as graphs")
    settings = EngineSettings(dtype="float32", device="cuda" if captured else "cpu", max_rows=64)
    requests = [propose(n=3, seed=i, temperature=0.7, max_tokens=9) for i in range(7)]
    sizes: list[tuple[int, int]] = []
    known_step = Graphs.step

    def step(graphs: Graphs, size: tuple[int, int], ids: Sequence[int], positions: Sequence[int]) -> Any:
        sizes.append(size)
        if captured:
            return known_step(graphs, size, ids, positions)
        padding = [0] * (size[0] - len(ids))
        ids, positions = torch.tensor([*ids, *padding]), torch.tensor([*positions, *padding])
        return graphs._decode(ids, positions, size[1])[: -len(padding) or None]

    def replies() -> list[Any]:
        return asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), settings), *requests))

    monkeypatch.setattr(Graphs, "step", step)
    monkeypatch.setattr(Graphs, "usable", lambda _: False)
    one_by_one = replies()
    assert not sizes
    monkeypatch.setattr(Graphs, "usable", lambda _: True)
    assert all(map(same_draws, one_by_one, replies()))
    assert {rows for rows, _ in sizes} >= {8, 32}


def test_prompt_longer_than_the_context_is_an_empty_sample(tiny_model_dir: Path) -> None:
    long = Propose(Problem("l", "1 + " * 2000), (), 2, 1, 0.7, 8)
    (reply,) = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), long))
    assert [(s.step.text, s.finish) for s in reply.samples] == [("", "length")] * 2


def test_critique_replies_with_a_verdict(tiny_model_dir: Path) -> None:
    critique = Critique(PROBLEM, PATH, seed=1, max_tokens=6)
    (verdict,) = asyncio.run(closing(load_policy(tiny_model_dir, PromptSettings(), SETTINGS), critique))
    assert verdict.solved is False
    assert verdict.usage.policy_tokens <= 6


def test_cancelled_requests_leave_no_row_running(tiny_model_dir: Path) -> None:
    async def cancel() -> tuple[int, int]:
        policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
        task = asyncio.create_task(policy.propose(propose(n=4, max_tokens=900)))
        await asyncio.sleep(0.1)
        task.cancel()
        reply = await policy.propose(propose(n=1))
        await policy.close()
        return len(policy._rows), len(reply.samples)

    assert asyncio.run(cancel()) == (0, 1)


def test_a_search_cut_short_leaves_no_row_running_and_busy_stands_still(tiny_model_dir: Path) -> None:
    policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)

    async def cut() -> None:
        async with asyncio.timeout(0.2), asyncio.TaskGroup() as group:
            for i in range(6):  # more than there is room for
                group.create_task(policy.propose(propose(n=4, seed=i, max_tokens=900)))

    with pytest.raises(TimeoutError):
        asyncio.run(cut())
    deadline = time.monotonic() + 20
    while (policy._rows or policy._mail.taken or len(policy._mail)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(policy._rows), len(policy._mail.taken), len(policy._mail)) == (0, 0, 0)
    assert policy._kv.length == []
    time.sleep(0.1)
    busy = policy.busy_seconds
    assert busy > 0.05
    time.sleep(0.1)
    assert policy.busy_seconds == busy
    asyncio.run(policy.close())


def test_a_failing_model_reaches_every_caller(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    async def run() -> list[Any]:
        policy = load_policy(tiny_model_dir, PromptSettings(), SETTINGS)
        monkeypatch.setattr(Rows, "forward", broken)
        return list(await asyncio.gather(*(policy.propose(propose(seed=i)) for i in range(3)), return_exceptions=True))

    errors = asyncio.run(run())
    assert all(isinstance(error, EngineError) and "memory" in str(error) for error in errors)


def test_shared_parents_are_computed_once(tiny_model_dir: Path) -> None:
    model = models.load_causal(tiny_model_dir, dtype="float32")
    model.set_attn_implementation("restmcts_gqa")
    prefixes = PrefixModel(model, 1 << 20)
    parent = list(range(1, 21))
    chains = [Chain([*parent, last], [20, 21]) for last in (5, 6, 7)]
    hidden, computed = prefixes.extend(chains)
    assert sorted(computed) == [1, 1, 21]
    plain = models.load_causal(tiny_model_dir, dtype="float32")
    for chain, state in zip(chains, hidden, strict=True):
        expected = plain.base_model(torch.tensor([chain.ids])).last_hidden_state[0, -1]
        assert torch.allclose(state, expected, atol=1e-5)


def test_prefix_cache_forgets_the_least_recently_used() -> None:
    segment = torch.zeros(2, 1, 1, 2, 4)
    cache = PrefixCache(capacity_bytes=2 * 64)
    for prefix in ((1, 2), (3, 4)):
        cache.put(prefix, segment)
    assert cache.longest([1, 2], [2])[1] == 2
    cache.put((5, 6), segment)
    assert (3, 4) not in cache
    assert (1, 2) in cache
    assert cache.size == 128


def test_wrong_models_are_refused(tiny_model_dir: Path, tiny_value_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is a value model"):
        load_policy(tiny_value_dir, PromptSettings(), SETTINGS)
    with pytest.raises(EngineError, match="is a language model"):
        load_value(tiny_model_dir, PromptSettings(), SETTINGS)
    with pytest.raises(EngineError, match=r"no config\.json"):
        load_engines(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(EngineError, match="pickle"):
        load_engines(tmp_path)
    with pytest.raises(EngineError, match="no model folder"):
        load_engines("./nowhere")
    with pytest.raises(EngineError, match="is a file"):
        load_engines(tmp_path / "config.json")


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    one = identify(tiny_model(tmp_path / "a", seed=0))
    other = identify(tiny_model(tmp_path / "b", seed=1))
    assert one.split("@")[1] != other.split("@")[1]


# ---------------------------------------------------------------- encoding


def test_chat_format_round_trips_for_every_family(family: str) -> None:
    encoder = Encoder(tiny_tokenizer(family), PromptSettings(instruction="Think."))
    text = encoder.tokenizer.decode(encoder.prompt(PROBLEM))
    assert "Think." in text
    assert PROBLEM.question in text
    trace = encoder.trace(PROBLEM, PATH)
    assert trace.ids[: trace.prompt_length] == encoder.prompt(PROBLEM)
    assert encoder.decode(trace.ids[trace.prompt_length :]) == "3 + 4 = 7\n7 - 2 = 5\n"
    assert [encoder.decode([trace.ids[end]]) for end in trace.ends] == ["\n", "\n"]
    assert set(encoder.end_of_turn) <= encoder.end_ids
    assert 0 < encoder.shared_length < trace.prompt_length


def test_examples_lead_the_prompt(family: str) -> None:
    example = Problem("e", "What is 1 + 1?", "2", "1 + 1 = 2\nAnswer: 2")
    encoder = Encoder(tiny_tokenizer(family), PromptSettings(), [example])
    text = encoder.tokenizer.decode(encoder.prompt(PROBLEM))
    assert text.index(example.question) < text.index("Answer: 2") < text.index(PROBLEM.question)
    bare = Encoder(tiny_tokenizer(family), PromptSettings())
    assert encoder.shared_length > bare.shared_length


def test_steps_keep_their_own_ids() -> None:
    encoder = Encoder(tiny_tokenizer(), PromptSettings())
    odd = Step("34", (encoder.tokenizer.encode("3")[0], encoder.tokenizer.encode("4")[0]))
    assert encoder.step(odd) == list(odd.ids or ())
    assert encoder.step(Step("34"))[-1] == encoder.tokenizer.encode("\n")[0]


def test_tokenizer_without_chat_template_is_named_with_the_remedy() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"prompt\.chat=false"):
        Encoder(tokenizer, PromptSettings())
    encoder = Encoder(tokenizer, PromptSettings(chat=False))
    assert encoder.decode(encoder.prompt(PROBLEM)).endswith(f"Question: {PROBLEM.question}\nSolution:\n")


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("size", [5, 128, 1000])
def test_drawing_inverts_the_cdf(size: int):
    weights = torch.randn(64, size, generator=torch.Generator().manual_seed(size)).mul(4).softmax(-1)
    uniforms = torch.rand(64, generator=torch.Generator().manual_seed(1))
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-24])
    drawn = inverse_cdf(weights, uniforms)
    below = torch.stack([row[:at].double().sum() for row, at in zip(weights, drawn.tolist(), strict=True)])
    through = below + weights.double().gather(1, drawn[:, None])[:, 0]
    points = uniforms * weights.double().sum(-1)
    assert bool((below <= points + 1e-6).all())
    assert bool((points <= through + 1e-6).all())


def test_what_weighs_nothing_is_never_drawn():
    weights = torch.zeros(3, 300)
    weights[:, 140] = 0.1
    weights[:, 150] = 1e-9
    assert inverse_cdf(weights, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [140, 140, 140]


def test_rows_are_drawn_at_their_own_temperatures():
    logits = torch.tensor([[0.0, 2.0, 1.0]]).repeat(3, 1)
    tokens, logprobs = draw(logits, [0.0, 1.0, 0.1], [0.99, 0.99, 0.99])
    assert tokens.tolist() == [1, 2, 1]
    assert torch.allclose(logprobs, logits.log_softmax(-1)[0, tokens])
