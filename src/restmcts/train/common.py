"""What both trainings need: precision, LoRA, checkpoints to go on from, progress, errors on one line."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from restmcts.encoding import PromptSettings
from restmcts.errors import TrainError
from restmcts.models import pick_device, pick_dtype, resolve_model, save_prompt
from restmcts.train.fast import BLOCKS, attend_in_blocks, fuse_lora
from restmcts.train.packing import Example, Plan
from restmcts.train.settings import Training

CHECKPOINTS = "checkpoints"
"""folder, inside the output folder, that a killed training goes on from"""

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
    for parameter in model.parameters():  # not the buffers: rotary frequencies must stay float32
        parameter.data = parameter.data.to(precision.weights)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model, attend_in_blocks(model)


def add_lora(model: Any, settings: Training, seed: int, **options: Any) -> Any:
    """The model with LoRA updates on the linear maps of its upper layers; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    layer = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
    found = [
        (int(match.group(1)), name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (match := layer.search(name))
    ]
    layers = 1 + max((index for index, _ in found), default=-1)
    first = layers - math.ceil(layers * settings.lora_layers)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=[name for index, name in found if index >= first] or "all-linear",
        **options,
    )
    model = get_peft_model(model, config)
    fuse_lora(model)
    return model


def save_trained(model: Any, out: Path, stored: torch.dtype, tokenizer: Any, prompt: PromptSettings, seed: int) -> Any:
    """Merge LoRA updates and write a plain checkpoint: weights, tokenizer, prompt format. Returns the plain model.

    The checkpoints of the way there are no longer needed and go.
    """
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
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return model


def round_to_bfloat16(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 to bfloat16, up or down by chance, so that the expectation is `x`; what bfloat16 can hold stays as it is.

    Rounding to the nearest undoes small updates of weights that lie on bfloat16's grid: of a short LoRA training of
    SmolLM2-135M, 45 % of the update were left (measured as the merged update's projection on the learned one).
    """
    noise = torch.randint(1 << 16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


# ---------------------------------------------------------------- the run itself


def training_arguments(settings: Training, plan: Plan, out: Path, seed: int, mixed: bool) -> dict[str, Any]:
    """Arguments of transformers' trainer, for both trainings. The plan's steps are their data set's items."""
    on_cpu = device_of(settings) == "cpu"
    return {
        "output_dir": str(out / CHECKPOINTS),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": math.ceil(settings.warmup * len(plan.steps)) if len(plan.steps) > 1 else 0,
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
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }


def on_one_device(arguments: Any) -> Any:
    """The arguments, without the data parallelism inside one process that transformers chooses on several GPUs."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class _Watch(TrainerCallback):
    """Reports progress, stops on a loss that is not finite, and asks for a checkpoint when it is time for one."""

    def __init__(self, plan: Plan, examples: Sequence[Example], settings: Training, on_progress: OnProgress | None):
        self.plan, self.settings, self.on_progress = plan, settings, on_progress
        self.tokens = list(accumulate(_step_tokens(plan, examples)))
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.saved >= self.settings.checkpoint_seconds
        control.should_save |= due and state.global_step < len(self.plan.steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss is {loss} at step {state.global_step} of {len(self.plan.steps)}: "
                f"lower learning_rate (now {self.settings.learning_rate:g}) or train in precision float32"
            )
        if self.on_progress is not None:
            self.on_progress(state.global_step, len(self.plan.steps), loss, self.tokens[state.global_step - 1])


def fit(
    trainer: Trainer,
    plan: Plan,
    examples: Sequence[Example],
    settings: Training,
    identity: Sequence[object],
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Train, going on from a checkpoint of the same training if there is one. Returns metrics.

    `identity` is what, beside the rows, the plan and the settings, makes this training what it is.
    """
    folder = Path(trainer.args.output_dir)
    started = time.monotonic()
    resumed = _checkpoint(folder, _fingerprint(plan, examples, settings, identity))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(plan, examples, settings, on_progress))
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    done = 0 if resumed is None else int(resumed.name.rpartition("-")[2])
    seconds = time.monotonic() - started
    tokens = _step_tokens(plan, examples)
    per_epoch = max(1, len(plan.steps) // settings.epochs)
    return {
        "steps": len(plan.steps),
        "tokens": sum(tokens),
        "loss_first": sum(losses[:per_epoch]) / len(losses[:per_epoch]),
        "loss_last": sum(losses[-per_epoch:]) / len(losses[-per_epoch:]),
        "seconds": seconds,
        "tokens_per_second": sum(tokens[done:]) / seconds,
        "resumed_at": done,
    }


def _step_tokens(plan: Plan, examples: Sequence[Example]) -> list[int]:
    """Tokens of every optimizer step, shared ones counted in every trace."""
    return [sum(len(examples[row].ids) for row in plan.step(index)) for index in range(len(plan.steps))]


def _fingerprint(plan: Plan, examples: Sequence[Example], settings: Training, identity: Sequence[object]) -> str:
    chosen = settings.model_dump(exclude={"checkpoint_seconds", "start"})
    parts = [plan.steps, chosen, [str(part) for part in identity]]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.ids, example.labels]).encode())
    return digest.hexdigest()


def _checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """The newest whole checkpoint of this very training; checkpoints of another one are removed."""
    mark = folder / "training.sha256"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(fingerprint, encoding="utf-8")
    # trainer_state.json is written last: a checkpoint without it was cut short.
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if path.stat().st_size]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@contextmanager
def one_line_errors(settings: Training, out: Path) -> Iterator[None]:
    """Turn running out of memory or disk into a TrainError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise TrainError(
            f"out of memory in training: lower micro_tokens (now {micro_tokens_of(settings)}) or max_length "
            f"(now {settings.max_length}), or train with method lora and gradient_checkpointing"
        ) from error
    except OSError as error:
        raise TrainError(f"cannot write {out}: {error.strerror or error}; free some space and run again") from error


def base_identity(base: str | Path) -> str:
    """Names a base model and, for a local folder, the state of its weights."""
    name = resolve_model(base)
    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    return name + "".join(f" {file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
