"""SFT on correct traces: what is trained on, what comes out, what survives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import torch.nn.functional as F

from restmcts.datasets import PolicyRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import load_causal, load_tokenizer, read_prompt
from restmcts.train.packing import IGNORED
from restmcts.train.policy import encode, train_policy
from restmcts.train.settings import PolicyTraining
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = PromptSettings(instruction="Solve.")
QUICK = PolicyTraining(epochs=2, learning_rate=3e-2, batch_tokens=256, lora_rank=4)


def sums(count: int = 12) -> list[PolicyRow]:
    rows = []
    for i in range(count):
        a, b = 11 + i, 3 * i
        steps = [f"{a} + {b} = {a + b}", *(["so it is"] if i % 3 == 0 else []), f"Answer: {a + b}"]
        rows.append(PolicyRow(f"p{i}", f"What is {a} + {b}?", steps, [None] * len(steps), None))
    return rows


def run(base: Path, out: Path, settings: PolicyTraining = QUICK, **options: Any) -> dict[str, Any]:
    return train_policy(options.pop("rows", sums()), base=base, out=out, prompt=PROMPT, settings=settings, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_causal(folder).state_dict())


def mean_loss(folder: Path) -> float:
    """Mean negative log likelihood of the solutions, by plain transformers."""
    encoder, model = Encoder(load_tokenizer(folder), PROMPT), load_causal(folder)
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in sums():
            example = encode(row, encoder)
            logits = model(torch.tensor([example.ids])).logits[0, :-1]
            total += F.cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="sum").item()
            count += sum(label != IGNORED for label in example.labels)
    return total / count


def test_the_loss_is_on_the_solution_and_the_end_of_turn(tiny_model_dir: Path) -> None:
    encoder = Encoder(load_tokenizer(tiny_model_dir), PROMPT)
    row = sums()[1]
    example = encode(row, encoder)
    trained = [token for token, label in zip(example.ids, example.labels, strict=True) if label != IGNORED]
    assert [label for label in example.labels if label != IGNORED] == trained
    assert encoder.tokenizer.decode(trained) == "12 + 3 = 15\nAnswer: 15\n<|im_end|>"
    prompt = example.ids[: len(example.ids) - len(trained)]
    assert prompt == encoder.prompt(row.problem())
    assert set(example.labels[: len(prompt)]) == {IGNORED}


def test_steps_are_trained_with_the_tokens_they_were_sampled_with(tiny_model_dir: Path) -> None:
    encoder = Encoder(load_tokenizer(tiny_model_dir), PROMPT)
    odd = [encoder.tokenizer.encode(character)[0] for character in "1+2\n"]
    row = PolicyRow("p", "?", ["1+2", "x"], [odd, None], encoder.tokenizer_id)
    ids = encode(row, encoder).ids
    start = len(encoder.prompt(row.problem()))
    assert ids[start : start + 4] == odd
    foreign = PolicyRow("p", "?", ["1+2", "x"], [[399, 398], None], "another vocabulary")
    assert encode(foreign, encoder).ids == encode(PolicyRow("p", "?", ["1+2", "x"], [None] * 2, None), encoder).ids


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss_and_the_checkpoint_is_plain(
    tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    seen: list[tuple[int, int, float, int]] = []
    settings = QUICK.model_copy(update={"method": method, "epochs": 4})
    metrics = run(tiny_model_dir, tmp_path / "out", settings, on_progress=lambda *step: seen.append(step))
    before, after = mean_loss(tiny_model_dir), mean_loss(tmp_path / "out")
    # Under LoRA the random embedding and head stay as they are, so there is less to gain.
    assert after < before - (0.15 if method == "lora" else 1.0)
    assert metrics["loss_first"] > metrics["loss_last"]
    assert metrics["loss_last"] == pytest.approx(after, rel=0.3)
    assert [step for step, *_ in seen] == list(range(1, metrics["steps"] + 1))
    assert seen[-1][3] == metrics["tokens"] == 4 * sum(len(encode(row, _encoder(tiny_model_dir)).ids) for row in sums())
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "restmcts.json"} <= files
    assert not {"checkpoints", "adapter_config.json", "README.md", "training_args.bin"} & files
    assert read_prompt(tmp_path / "out") == PROMPT
    assert load_tokenizer(tmp_path / "out").chat_template == load_tokenizer(tiny_model_dir).chat_template
    assert weights(tmp_path / "out").keys() == weights(tiny_model_dir).keys()


def _encoder(folder: Path) -> Encoder:
    return Encoder(load_tokenizer(folder), PROMPT)


def test_the_first_loss_is_the_bases_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    settings = QUICK.model_copy(update={"epochs": 1, "batch_tokens": 100_000, "micro_tokens": 256})
    run(tiny_model_dir, tmp_path / "out", settings, on_progress=lambda _s, _t, loss, _n: losses.append(loss))
    assert losses == [pytest.approx(mean_loss(tiny_model_dir), rel=1e-5)]


def test_every_family_is_trained(family: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", family)
    run(base, tmp_path / "out")
    assert mean_loss(tmp_path / "out") < mean_loss(base) - 0.1


def test_the_checkpoint_keeps_the_dtype_of_the_base(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", dtype="bfloat16")
    for method in ("lora", "full"):
        settings = QUICK.model_copy(update={"precision": "bfloat16", "method": method})
        run(base, tmp_path / method, settings)
        assert {tensor.dtype for tensor in weights(tmp_path / method).values()} == {torch.bfloat16}
        assert mean_loss(tmp_path / method) < mean_loss(base)


def test_a_float32_base_may_be_trained_in_bfloat16(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path / "out", QUICK.model_copy(update={"precision": "bfloat16"}))
    assert mean_loss(tmp_path / "out") < mean_loss(tiny_model_dir)
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float32}


def test_equal_seeds_give_equal_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tiny_model_dir, tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_training_goes_on_where_it_was(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    settings = QUICK.model_copy(update={"method": method, "checkpoint_seconds": 0.0})
    straight = run(tiny_model_dir, tmp_path / "straight", settings)

    def kill(step: int, *_: Any) -> None:
        if step == straight["steps"] - 2:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_model_dir, tmp_path / "resumed", settings, on_progress=kill)
    seen: list[int] = []
    resumed = run(tiny_model_dir, tmp_path / "resumed", settings, on_progress=lambda step, *_: seen.append(step))
    assert resumed["resumed_at"] == straight["steps"] - 3
    assert seen == list(range(straight["steps"] - 2, straight["steps"] + 1))
    assert resumed["loss_first"] == pytest.approx(straight["loss_first"])
    assert resumed["loss_last"] == pytest.approx(straight["loss_last"], rel=1e-4)
    ours, theirs = weights(tmp_path / "resumed"), weights(tmp_path / "straight")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_checkpoints_of_another_training_are_not_gone_on_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"checkpoint_seconds": 0.0})

    def kill(step: int, *_: Any) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_model_dir, tmp_path / "out", settings, on_progress=kill)
    assert run(tiny_model_dir, tmp_path / "out", settings, seed=7)["resumed_at"] == 0


def test_a_checkpoint_cut_short_is_passed_over(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"checkpoint_seconds": 0.0})

    def kill(step: int, *_: Any) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_model_dir, tmp_path / "out", settings, on_progress=kill)
    (tmp_path / "out" / "checkpoints" / "checkpoint-3" / "trainer_state.json").unlink()
    assert run(tiny_model_dir, tmp_path / "out", settings)["resumed_at"] == 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recomputing_activations_changes_nothing(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    settings = QUICK.model_copy(update={"method": method})
    run(tiny_model_dir, tmp_path / "a", settings)
    run(tiny_model_dir, tmp_path / "b", settings.model_copy(update={"gradient_checkpointing": True}))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


# ---------------------------------------------------------------- bad input


def test_a_value_model_is_no_base_for_a_policy(tiny_value_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="is a value model"):
        run(tiny_value_dir, tmp_path / "out")


def test_no_rows(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no correct traces"):
        run(tiny_model_dir, tmp_path / "out", rows=[])


def test_rows_too_long_are_left_out_and_counted(tiny_model_dir: Path, tmp_path: Path) -> None:
    long = PolicyRow("long", "?", ["1 + " * 400], [None], None)
    settings = QUICK.model_copy(update={"epochs": 1, "max_length": 256})
    metrics = run(tiny_model_dir, tmp_path / "out", settings, rows=[*sums(), long])
    assert (metrics["rows"], metrics["rows_too_long"]) == (12, 1)
    with pytest.raises(TrainError, match="raise max_length"):
        run(tiny_model_dir, tmp_path / "other", settings, rows=[long])


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    model = load_causal(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    model.save_pretrained(base)
    with pytest.raises(TrainError, match=r"the loss is nan at step 1 of \d+: lower learning_rate"):
        run(base, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
