"""What all trainings need: precision, LoRA, checkpoints to go on from, progress, errors on one line."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from restmcts import ranks
from restmcts.encoding import PromptSettings
from restmcts.errors import StoreError, TrainError, is_out_of_memory
from restmcts.files import damage, inventory, read_json, sync_tree, write_json
from restmcts.manifest import BEGUN, CARD, fingerprint
from restmcts.models import pick_device, pick_dtype, resolve_model, save_prompt
from restmcts.trackers import Tracking
from restmcts.train.fast import BLOCKS, attend_in_blocks, fuse_lora
from restmcts.train.packing import Example, Plan
from restmcts.train.settings import Training

CHECKPOINTS = "checkpoints"
"""folder, inside the output folder, that a killed training goes on from"""
TRAINED = "training.json"
"""in a trained model that is on the disk: which training made it, its metrics and its files; written last"""
OnProgress = Callable[[int, int, float, int], None]
"""called after every optimizer step with: step (from 1), total steps, loss of the step, tokens trained so far"""


def micro_tokens_of(settings: Training) -> int:
    """Tokens of a forward pass: beyond these, speed hardly rises."""
    return settings.micro_tokens or (1024 if device_of(settings) == "cpu" else 16384)


# ---------------------------------------------------------------- models


def device_of(settings: Training) -> str:
    """`cpu` or `cuda`. Raises TrainError for a GPU that is not there."""
    device = pick_device(settings.device)
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainError("there is no GPU that torch can use for device 'cuda': use device auto or cpu")
    return device


@dataclass(frozen=True, slots=True)
class Precision:
    """`weights`: of the frozen base while training; `stored`: of the checkpoint; `mixed`: bfloat16 arithmetic."""

    weights: torch.dtype
    stored: torch.dtype
    mixed: bool


def precision_of(stored: torch.dtype, settings: Training, device: str) -> Precision:
    """Trained weights are always float32: bfloat16 would lose small updates."""
    if settings.precision == "auto":
        mixed = stored != torch.float32 and pick_dtype("auto", device) == torch.bfloat16
    else:
        mixed = settings.precision == "bfloat16"
    frozen = settings.method == "lora" and mixed and stored == torch.bfloat16
    return Precision(torch.bfloat16 if frozen else torch.float32, stored, mixed)


def prepare(model: Any, precision: Precision) -> tuple[Any, bool]:
    """The model in training precision, without dropout, and whether its attention can go block by block."""
    plain = in_precision(model, precision)
    return plain, attend_in_blocks(plain)


def in_precision(model: Any, precision: Precision) -> Any:
    """The model in training precision, without dropout."""
    for parameter in model.parameters():  # not the buffers: rotary frequencies must stay float32
        parameter.data = parameter.data.to(precision.weights)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def lora_config(model: Any, settings: Training, **options: Any) -> Any:
    """LoRA updates on the linear maps of the model's upper layers."""
    from peft import LoraConfig

    layer = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
    found = [
        (int(match.group(1)), name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (match := layer.search(name))
    ]
    layers = 1 + max((index for index, _ in found), default=-1)
    first = layers - math.ceil(layers * settings.lora_layers)
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=[name for index, name in found if index >= first] or "all-linear",
        **options,
    )


def add_lora(model: Any, settings: Training, seed: int, **options: Any) -> Any:
    """The model with LoRA updates (`lora_config`); everything else is frozen."""
    from peft import get_peft_model

    config = lora_config(model, settings, **options)
    torch.manual_seed(seed)
    model = get_peft_model(model, config)
    fuse_lora(model)
    return model


def save_trained(model: Any, out: Path, stored: torch.dtype, tokenizer: Any, prompt: PromptSettings, seed: int) -> Any:
    """Merge LoRA updates and write a plain checkpoint: weights, tokenizer, prompt format. Returns the plain model."""
    model = model.to("cpu")
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        bfloat16 = stored == torch.bfloat16
        parameter.data = round_to_bfloat16(parameter.data, generator) if bfloat16 else parameter.data.to(stored)
    model.eval()
    model.config.use_cache = True
    if model.config._attn_implementation == BLOCKS:
        model.set_attn_implementation("sdpa")
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    save_prompt(out, prompt)
    return model


def trained_before(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The metrics of this very training where its model is in `out` already, whole; else None."""
    try:
        record = read_json(out / TRAINED)
        if record["training"] == fingerprint and damage(out, record["files"]) is None:
            metrics = dict(record["metrics"])
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            return metrics
    except (StoreError, LookupError, TypeError, AttributeError):  # there is none, or it says nothing
        pass
    return None


def mark_trained(out: Path, fingerprint: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Put the model on the disk and say that it is there; the checkpoints of the way there go. Returns the metrics."""
    sync_tree(out)
    files = inventory(out, without=(CHECKPOINTS, TRAINED, BEGUN, CARD))
    write_json(out / TRAINED, {"training": fingerprint, "metrics": metrics, "files": files})
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return metrics


def round_to_bfloat16(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 to bfloat16, up or down by chance, so that the expectation is `x`; what bfloat16 can hold stays as it is.

    Rounding to the nearest undoes small updates of weights that lie on bfloat16's grid: of a short LoRA training of
    SmolLM2-135M, 45 % of the update were left (measured as the merged update's projection on the learned one).
    """
    noise = torch.randint(1 << 16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def check_ids(examples: Sequence[Example], model: Any) -> None:
    """Raise TrainError for a token that the model does not have: rows may come from anywhere."""
    size = model.get_input_embeddings().num_embeddings
    for example in examples:
        if not 0 <= min(example.ids) <= max(example.ids) < size:
            raise TrainError(
                f"a row holds token {max(example.ids, key=abs)}, and the model knows {size}: "
                "its step_ids are not this model's; label the trees again"
            )


# ---------------------------------------------------------------- the run itself


def training_arguments(
    settings: Training, plan: Plan, out: Path, seed: int, mixed: bool, tracking: Tracking
) -> dict[str, Any]:
    """Arguments of transformers' trainer for packed traces: the plan's steps are their data set's items."""
    return {
        **usual_arguments(settings, len(plan.steps), out, seed, mixed, tracking),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        # Of several processes: every pass uses all weights, and no pass changes a buffer.
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
    }


def usual_arguments(
    settings: Training, steps: int, out: Path, seed: int, mixed: bool, tracking: Tracking
) -> dict[str, Any]:
    """Arguments of transformers' trainer, for every training."""
    on_cpu = device_of(settings) == "cpu"
    return {
        "output_dir": str(out / CHECKPOINTS),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": math.ceil(settings.warmup * steps) if steps > 1 else 0,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": mixed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "seed": seed % 2**32,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        **tracking.arguments(),
        "disable_tqdm": True,
    }


def on_one_device(arguments: Any) -> Any:
    """The arguments, without the data parallelism inside one process that transformers chooses on several GPUs."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def fingerprint_of_rows(plan: Plan, examples: Sequence[Example], settings: Training, identity: Sequence[object]) -> str:
    """Tells this training of packed traces from every other one (`fingerprint_of`)."""
    return fingerprint_of(plan.steps, settings, identity, ([example.ids, example.labels] for example in examples))


def fingerprint_of(plan: Any, settings: Training, identity: Sequence[object], rows: Iterable[Any]) -> str:
    """Tells this training from every other one.

    `identity` is what, beside the rows, the plan and the settings, makes it what it is.
    """
    chosen = settings.model_dump(exclude={"checkpoint_seconds", "start", "accelerate"})
    digest = hashlib.sha256(json.dumps([plan, chosen, [str(part) for part in identity]], sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


@contextmanager
def one_line_errors(settings: Training, out: Path) -> Iterator[None]:
    """Turn running out of memory or disk into a TrainError that says what to do."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise TrainError(
                f"out of memory in training: lower micro_tokens (now {micro_tokens_of(settings)}) or max_length "
                f"(now {settings.max_length}), or train with method lora and gradient_checkpointing"
            ) from error
        if ranks.lost(error):
            raise TrainError(
                "another process of this training has ended, see what it said; run the same command again to go on"
            ) from error
        # The libraries that write weights have errors of their own, which do not always say why.
        if isinstance(error, OSError) or any(words in str(error) for words in _NOT_WRITTEN):
            said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise TrainError(f"cannot write {out}: {said}; free some space and run again") from error
        raise


_NOT_WRITTEN = ("os error 28", "No space left", "PytorchStreamWriter failed", "inline_container", "iostream error")


def base_identity(base: str | Path) -> str:
    """Names a base model and, for a local folder, what is in it."""
    name = resolve_model(base)
    return f"{name} {fingerprint(Path(name))}" if Path(name).is_dir() else name
