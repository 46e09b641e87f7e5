"""What both trainings through trl need: the policy as it is trained, batches that fit, progress and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import is_value_model, load_causal, load_tokenizer
from restmcts.trackers import Tracking
from restmcts.train.common import (
    OnProgress,
    Precision,
    base_identity,
    device_of,
    in_precision,
    lora_config,
    micro_tokens_of,
    on_one_device,
    precision_of,
    usual_arguments,
)
from restmcts.train.fast import fuse_lora
from restmcts.train.fitting import Watch, go_on
from restmcts.train.settings import Training

WINDOW = 5
"""metrics are means over the first and the last fifth of the steps"""


@dataclass(frozen=True, slots=True)
class Opened:
    """A policy about to be trained by trl."""

    model: Any
    tokenizer: Any
    encoder: Encoder
    precision: Precision
    lora: Any
    """how trl is to wrap the model; None where every weight is trained"""


def open_policy(base: str | Path, prompt: PromptSettings, settings: Training) -> Opened:
    """Load `base` in training precision. Raises TrainError for a value model, EngineError for what is no model."""
    if is_value_model(base):
        raise TrainError(f"{str(base)!r} is a value model, which cannot become a policy: give a language model")
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, prompt)
    model = load_causal(base)
    precision = precision_of(model.dtype, settings, device_of(settings))
    model = in_precision(model, precision)
    model.generation_config.eos_token_id = sorted(encoder.end_ids)
    lora = lora_config(model, settings, task_type="CAUSAL_LM") if settings.method == "lora" else None
    return Opened(model, tokenizer, encoder, precision, lora)


def trl_arguments(
    settings: Training,
    steps: int,
    out: Path,
    seed: int,
    mixed: bool,
    tracking: Tracking,
    *,
    per_pass: int,
    passes: int,
) -> dict[str, Any]:
    """Arguments of a trl trainer, with `passes` of `per_pass` rows in an optimizer step."""
    return {
        **usual_arguments(settings, steps, out, seed, mixed, tracking),
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": passes,
    }


def rows_of_a_pass(settings: Training, longest: int, most: int) -> int:
    """How many rows of up to `longest` tokens a forward pass takes: a divisor of `most`."""
    fitting = max(1, min(most, micro_tokens_of(settings) // max(1, longest)))
    return max(n for n in range(1, fitting + 1) if most % n == 0)


def train_with(
    trainer: Any,
    opened: Opened,
    settings: Training,
    steps: int,
    *,
    training: str,
    on_progress: OnProgress | None,
    shown: str,
) -> dict[str, Any]:
    """Run a trl trainer, going on from a checkpoint of the same `training` (its fingerprint). Returns metrics; `shown`
    names what progress shows."""
    on_one_device(trainer.args)
    if opened.lora is not None:
        fuse_lora(trainer.model)
    watch = Watch(steps, settings, on_progress, shown=shown)
    done, seconds = go_on(trainer, watch, training)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": steps,
        "tokens": int(logs[-1].get("num_tokens", 0)),
        **first_and_last(logs, "loss"),
        "seconds": seconds,
        "resumed_at": done,
    }


def first_and_last(logs: Sequence[dict[str, Any]], name: str, called: str | None = None) -> dict[str, float]:
    """The mean of a logged number over the first and over the last fifth of the steps."""
    values = [float(entry[name]) for entry in logs if name in entry]
    some = max(1, len(values) // WINDOW)
    called = called or name
    return {f"{called}_first": fmean(values[:some]), f"{called}_last": fmean(values[-some:])} if values else {}


def name_of(base: str | Path, what: str, seed: int) -> tuple[str, str, int]:
    """What, beside rows and settings, makes a training what it is."""
    return what, base_identity(base), seed
