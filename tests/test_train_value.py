"""The value model: labels at step ends, the losses by hand, heads that last, one forward pass for all prefixes."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

from restmcts.datasets import ValueRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.engines.settings import EngineSettings
from restmcts.engines.transformers import load_value
from restmcts.errors import TrainError
from restmcts.models import load_token_classifier, load_tokenizer, read_prompt
from restmcts.train.packing import IGNORED
from restmcts.train.settings import ValueTraining
from restmcts.train.value import encode, score_traces, train_value, value_loss
from restmcts.types import Problem, Score, Scores, Step
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = PromptSettings(instruction="Solve.")
QUICK = ValueTraining(epochs=3, learning_rate=1e-2, head_learning_rate=None, batch_tokens=512, lora_rank=4)


def traces(count: int = 10) -> list[ValueRow]:
    """Right and wrong solutions of sums; whether a step is right can be seen by its last word."""
    rows = []
    for i in range(count):
        for right in (True, False):
            steps = [f"{i} + 3 = {i + 3} {'yes' if right else 'no'}", f"Answer: {i + 3} {'yes' if right else 'no'}"]
            labels = [0.5, 1.0] if right else [0.25, 0.0]
            rows.append(
                ValueRow(f"p{i}", f"What is {i} + 3?", steps, [None] * 2, None, list(labels), [1.0 - right] * 2)
            )
    return rows


def run(base: Path, out: Path, settings: ValueTraining = QUICK, **options: Any) -> dict[str, Any]:
    return train_value(options.pop("rows", traces()), base=base, out=out, prompt=PROMPT, settings=settings, **options)


def encoder_of(folder: Path) -> Encoder:
    return Encoder(load_tokenizer(folder), PROMPT)


def scores(folder: Path, rows: list[ValueRow]) -> list[list[float]]:
    encoder = encoder_of(folder)
    inputs = [(row.problem(), row.path(encoder.tokenizer_id)) for row in rows]
    return score_traces(load_token_classifier(folder), encoder, inputs)


def error(folder: Path) -> float:
    pairs = [
        (score, label)
        for row, values in zip(traces(), scores(folder, traces()), strict=True)
        for score, label in zip(values, row.labels, strict=True)
    ]
    return sum((score - label) ** 2 for score, label in pairs if label is not None) / len(pairs)


# ---------------------------------------------------------------- inputs


def test_labels_stand_at_the_last_token_of_their_step(tiny_model_dir: Path) -> None:
    encoder = encoder_of(tiny_model_dir)
    row = ValueRow("p", "?", ["1 + 2", "3", "Answer: 3"], [None] * 3, None, [0.25, None, 1.0], [0.0, None, 0.0])
    example = encode(row, encoder, 1024)
    trace = encoder.trace(row.problem(), row.path(None))
    assert example.ids == trace.ids
    labelled = {at: label for at, label in enumerate(example.labels) if label != IGNORED}
    assert labelled == {trace.ends[0]: 0.25, trace.ends[2]: 1.0}
    assert encoder.tokenizer.decode(example.ids[trace.prompt_length : trace.ends[0] + 1]) == "1 + 2\n"


def test_steps_beyond_the_longest_length_are_left_out(tiny_model_dir: Path) -> None:
    encoder = encoder_of(tiny_model_dir)
    row = ValueRow("p", "?", ["1 + 2", "3", "Answer: 3"], [None] * 3, None, [0.25, 0.5, 1.0], [0.0] * 3)
    ends = encoder.trace(row.problem(), row.path(None)).ends
    cut = encode(row, encoder, ends[1] + 2)
    assert len(cut.ids) == ends[1] + 1
    assert [label for label in cut.labels if label != IGNORED] == [0.25, 0.5]
    assert encode(row, encoder, 3).ids == []


# ---------------------------------------------------------------- losses


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.5])
    once, twice = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0])
    # sigmoid: 1/2 against 1, 3/4 against 1/2
    assert value_loss(logits, labels, once, "mse").item() == pytest.approx(0.5**2 + 0.25**2)
    assert value_loss(logits, labels, twice, "mse").item() == pytest.approx(2 * 0.5**2 + 0.25**2)
    expected = -math.log(0.5) - (0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    assert value_loss(logits, labels, once, "bce").item() == pytest.approx(expected)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("method", "loss"), [("lora", "mse"), ("lora", "bce"), ("full", "mse")])
def test_training_lowers_the_error(tiny_model_dir: Path, tmp_path: Path, method: str, loss: str) -> None:
    seen: list[float] = []
    settings = QUICK.model_copy(update={"method": method, "loss": loss, "epochs": 16})
    metrics = run(tiny_model_dir, tmp_path / "v", settings, on_progress=lambda _s, _t, value, _n: seen.append(value))
    assert metrics["loss_last"] < metrics["loss_first"]
    assert error(tmp_path / "v") < 0.08  # 0.14 is the mean's
    assert (metrics["rows"], metrics["labelled_steps"], len(seen)) == (20, 40, metrics["steps"])


def test_a_new_head_says_one_half(tiny_model_dir: Path, tmp_path: Path) -> None:
    first: list[float] = []
    settings = QUICK.model_copy(update={"batch_tokens": 100_000, "micro_tokens": 256, "epochs": 1})
    run(tiny_model_dir, tmp_path / "v", settings, on_progress=lambda _s, _t, loss, _n: first.append(loss))
    labels = [0.5, 1.0, 0.25, 0.0]
    assert first == [pytest.approx(sum((0.5 - label) ** 2 for label in labels) / 4)]


def test_the_checkpoint_is_a_plain_token_classifier(tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForTokenClassification

    run(tiny_model_dir, tmp_path / "v")
    config = json.loads((tmp_path / "v" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForTokenClassification"]
    assert len(config["id2label"]) == 1
    stored = load_file(tmp_path / "v" / "model.safetensors")
    assert stored["score.weight"].shape == (1, 32)
    assert not {name for name in stored if "lora" in name or "bias" in name or "lm_head" in name}
    assert read_prompt(tmp_path / "v") == PROMPT
    _, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "v", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert {path.name for path in (tmp_path / "v").iterdir()}.isdisjoint({"checkpoints", "adapter_config.json"})


def test_going_on_from_a_value_model_keeps_its_head(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path / "first", QUICK.model_copy(update={"epochs": 8}))
    run(tmp_path / "first", tmp_path / "second", QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-7}))
    before, after = scores(tmp_path / "first", traces()), scores(tmp_path / "second", traces())
    for a, b in zip(before, after, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert max(max(values) for values in before) - min(min(values) for values in before) > 0.2


def test_going_on_from_a_value_model_with_a_bias_keeps_it(tiny_value_dir: Path, tmp_path: Path) -> None:
    run(tiny_value_dir, tmp_path / "v", QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-7}))
    for a, b in zip(scores(tiny_value_dir, traces()), scores(tmp_path / "v", traces()), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_every_family_is_trained(family: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", family)
    run(base, tmp_path / "v", QUICK.model_copy(update={"epochs": 16}))
    assert error(tmp_path / "v") < 0.08


def test_the_head_has_a_learning_rate_of_its_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    slow = QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    run(tiny_model_dir, tmp_path / "slow", slow)
    run(tiny_model_dir, tmp_path / "fast", slow.model_copy(update={"head_learning_rate": 1e-2}))
    head = [load_token_classifier(tmp_path / name).score.weight.abs().max().item() for name in ("slow", "fast")]
    assert head[0] < 1e-7
    assert head[1] > 1e-3


def test_a_bfloat16_base_gives_a_bfloat16_value_model(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "llama", dtype="bfloat16")
    for name, settings in {
        "lora": QUICK.model_copy(update={"precision": "bfloat16", "epochs": 16}),
        "full": QUICK.model_copy(update={"precision": "bfloat16", "epochs": 16, "method": "full"}),
        "recomputed": QUICK.model_copy(update={"gradient_checkpointing": True, "epochs": 16}),
    }.items():
        run(base, tmp_path / name, settings)
        assert {parameter.dtype for parameter in load_token_classifier(tmp_path / name).parameters()} == {
            torch.bfloat16
        }
        assert error(tmp_path / name) < 0.08


def test_a_head_of_several_labels_is_refused(tiny_value_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(tiny_value_dir, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "three")
    load_tokenizer(tiny_value_dir).save_pretrained(tmp_path / "three")
    with pytest.raises(TrainError, match="the head of .* does not fit"):
        run(tmp_path / "three", tmp_path / "v")


def test_one_forward_pass_gives_what_separate_ones_give(tiny_value_dir: Path) -> None:
    encoder, model = encoder_of(tiny_value_dir), load_token_classifier(tiny_value_dir)
    problem, path = Problem("p", "What is 1 + 2?"), (Step("1 + 2 = 3"), Step("so"), Step("Answer: 3"))
    [together] = score_traces(model, encoder, [(problem, path)])
    separate = [score_traces(model, encoder, [(problem, path[: k + 1])])[0][-1] for k in range(3)]
    mixed = score_traces(model, encoder, [(problem, path[:1]), (problem, path), (Problem("q", "?" * 90), path[:2])])
    assert together == pytest.approx(separate, abs=1e-6)
    assert mixed[1] == pytest.approx(together, abs=1e-6)
    assert [len(values) for values in mixed] == [1, 3, 2]


def test_serving_builds_the_inputs_that_training_built(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path / "v")
    engine = load_value(tmp_path / "v", PromptSettings(instruction="Not what it was trained with."), EngineSettings())
    encoder = encoder_of(tmp_path / "v")
    odd = [encoder.tokenizer.encode(character)[0] for character in "1+2\n"]
    ids: list[list[int] | None] = [odd, None]
    row = ValueRow("p", "What is 1 + 2?", ["1+2", "Answer: 3"], ids, encoder.tokenizer_id, [0.5, 1.0], [0.0, 0.0])
    path = row.path(engine.tokenizer_id)
    chain = engine._chain(row.problem(), path)
    example = encode(row, encoder, 1024)
    assert chain.ids == example.ids
    assert [at for at, label in enumerate(example.labels) if label != IGNORED] == [end - 1 for end in chain.ends[-2:]]

    async def ask() -> Scores:
        try:
            return await engine.score(Score(row.problem(), (path[:1], path)))
        finally:
            await engine.close()

    [expected] = score_traces(load_token_classifier(tmp_path / "v", dtype="float32"), encoder, [(row.problem(), path)])
    assert list(asyncio.run(ask()).values) == pytest.approx(expected, abs=0.02)  # the engine may serve in bfloat16


def test_equal_seeds_give_equal_models(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in "ab":
        run(tiny_model_dir, tmp_path / name, seed=1)
    assert scores(tmp_path / "a", traces()) == scores(tmp_path / "b", traces())


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_training_goes_on_where_it_was(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    settings = QUICK.model_copy(update={"method": method, "checkpoint_seconds": 0.0, "head_learning_rate": 2e-2})
    straight = run(tiny_model_dir, tmp_path / "straight", settings)

    def kill(step: int, *_: Any) -> None:
        if step == straight["steps"] - 2:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_model_dir, tmp_path / "resumed", settings, on_progress=kill)
    resumed = run(tiny_model_dir, tmp_path / "resumed", settings)
    assert resumed["resumed_at"] == straight["steps"] - 3
    for a, b in zip(scores(tmp_path / "straight", traces()), scores(tmp_path / "resumed", traces()), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# ---------------------------------------------------------------- validation, bad input


def test_questions_kept_out_measure_the_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    metrics = run(tiny_model_dir, tmp_path / "v", QUICK.model_copy(update={"epochs": 8, "validation": 0.4}))
    assert metrics["validation_steps"] % 4 == 0  # whole questions, two traces of two steps each
    assert metrics["labelled_steps"] + metrics["validation_steps"] == 40
    assert 0 < metrics["validation_mse"] < 0.1
    assert 0 <= metrics["validation_within_0.1"] <= 1


def test_nothing_to_train_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="none of 0 value rows has a labelled step"):
        run(tiny_model_dir, tmp_path / "v", rows=[])
    blank = ValueRow("p", "?", ["a"], [None], None, [None], [None])
    with pytest.raises(TrainError, match="none of 1 value rows"):
        run(tiny_model_dir, tmp_path / "v", rows=[blank])
