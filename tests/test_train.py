"""What both trainings share: batches, precision, LoRA, checkpoints, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from restmcts.errors import TrainError
from restmcts.train.common import (
    Precision,
    add_lora,
    device_of,
    one_line_errors,
    precision_of,
    prepare,
    round_to_bfloat16,
)
from restmcts.train.settings import PolicyTraining, Training, ValueTraining
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- models


def test_trained_weights_are_float32_whatever_is_stored() -> None:
    bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16
    lora, full = PolicyTraining(precision="bfloat16"), PolicyTraining(precision="bfloat16", method="full")
    assert precision_of(bf16, lora, "cpu").weights == bf16  # frozen: LoRA's own weights are float32
    assert precision_of(bf16, full, "cpu").weights == fp32
    assert precision_of(fp16, lora, "cpu").weights == fp32
    assert precision_of(bf16, PolicyTraining(precision="float32"), "cpu").weights == fp32
    plain = precision_of(fp32, PolicyTraining(), "cpu")
    assert (plain.weights, plain.stored, plain.mixed) == (fp32, fp32, False)


@pytest.mark.parametrize(("share", "layers"), [(1.0, {0, 1}), (0.5, {1}), (0.1, {1})])
def test_lora_goes_to_the_upper_layers(tiny_model_dir: Path, share: float, layers: set[int]) -> None:
    from restmcts.models import load_causal

    model = add_lora(load_causal(tiny_model_dir), Training(lora_layers=share), 0, task_type="CAUSAL_LM")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in trained} == layers
    assert len(trained) == len(layers) * 7 * 2
    assert all("lora_" in name for name in trained)


def test_rounding_by_chance_keeps_small_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(400, 300).to(torch.bfloat16)
    update = torch.randn(400, 300) * 1e-4
    nearest = (weights.float() + update).to(torch.bfloat16).float() - weights.float()
    chance = round_to_bfloat16(weights.float() + update, generator).float() - weights.float()
    kept = [((applied * update).sum() / (update * update).sum()).item() for applied in (nearest, chance)]
    assert kept[0] < 0.5
    assert kept[1] == pytest.approx(1, abs=0.2)
    assert torch.equal(round_to_bfloat16(weights.float(), generator), weights)
    negative = round_to_bfloat16(torch.full((10_000,), -1.001), generator).float()
    assert negative.mean().item() == pytest.approx(-1.001, abs=2e-4)
    assert set(negative.tolist()) == {-1.0, -1.0078125}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_preparing_leaves_rotary_frequencies_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    from restmcts.models import load_causal

    model = load_causal(tiny_model(tmp_path, dtype="bfloat16"))
    model, _ = prepare(model, Precision(dtype, torch.bfloat16, True))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainError, match="no GPU that torch can use"):
        device_of(Training(device="cuda"))


# ---------------------------------------------------------------- settings and errors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_is_one_line_with_a_remedy(tmp_path: Path, error: BaseException) -> None:
    with (
        pytest.raises(TrainError, match=r"out of memory.*lower micro_tokens \(now 512\)") as caught,
        one_line_errors(ValueTraining(micro_tokens=512), tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainError, match=r"cannot write .*No space left on device; free some space"),
        one_line_errors(ValueTraining(), tmp_path),
    ):
        raise OSError(28, "No space left on device")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), one_line_errors(ValueTraining(), tmp_path):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"learning_rate": 0}, {"lora_layers": 0}, {"rank": 3}, {"warmup": 1}])
def test_settings_refuse_what_makes_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        PolicyTraining(**bad)
