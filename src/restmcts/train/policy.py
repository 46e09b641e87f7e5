"""Policy training: SFT of a causal LM on correct traces.

The loss is the negative log likelihood of the solution: its steps and the end of the turn, never the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from restmcts import ranks
from restmcts.datasets import PolicyRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import is_value_model, load_causal, load_tokenizer, one_thread
from restmcts.trackers import Tracking
from restmcts.train.common import (
    OnProgress,
    Precision,
    add_lora,
    base_identity,
    check_ids,
    device_of,
    fingerprint_of_rows,
    mark_trained,
    micro_tokens_of,
    on_one_device,
    one_line_errors,
    precision_of,
    prepare,
    save_trained,
    trained_before,
    training_arguments,
)
from restmcts.train.fitting import check_divisible, fit, whole_model
from restmcts.train.packing import IGNORED, Example, plan_steps
from restmcts.train.settings import PolicyTraining
from restmcts.train.steps import StepTrainer


def train_policy(
    rows: Sequence[PolicyRow],
    *,
    base: str | Path,
    out: Path,
    prompt: PromptSettings,
    settings: PolicyTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    tracking: Tracking = Tracking(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Train the policy `base` on `rows` and write it to the folder `out`: plain safetensors, tokenizer, prompt format.

    Called again after having been killed, it goes on from its last checkpoint. Returns metrics. Raises TrainError when
    there is nothing to train on, the loss is not finite, or memory runs out; EngineError when `base` is no model.
    """
    if is_value_model(base):
        raise TrainError(f"{str(base)!r} is a value model, which cannot become a policy: give a language model")
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, prompt)
    everything = [(encode(row, encoder), row.question) for row in rows]
    fitting = [(example, question) for example, question in everything if len(example.ids) <= settings.max_length]
    if not fitting:
        raise TrainError(_nothing(len(rows), settings))
    examples = [example for example, _ in fitting]
    plan = plan_steps([len(example.ids) for example in examples], [question for _, question in fitting], settings, seed)
    training = fingerprint_of_rows(plan, examples, settings, ("policy", base_identity(base), seed))
    check_divisible(plan, settings)
    done = ranks.agreed(lambda: trained_before(out, training))
    if done is not None:
        return done
    with one_thread(), one_line_errors(settings, out):
        model, precision, blocked = _open(base, settings, seed)
        check_ids(examples, model)
        arguments = training_arguments(settings, plan, out, seed, precision.mixed, tracking)
        trainer = PolicyTrainer(
            model=model,
            args=on_one_device(TrainingArguments(**arguments)),
            processing_class=tokenizer,
            examples=examples,
            plan=plan,
            limit=micro_tokens_of(settings),
            shift=True,
            label_dtype=torch.long,
            blocked=blocked,
        )
        metrics = fit(trainer, plan, examples, settings, training, on_progress)
        whole = whole_model(trainer, lambda: _open(base, settings, seed)[0])
        if whole is None:
            return metrics
        save_trained(whole, out, precision.stored, tokenizer, prompt, seed)
        solution = sum(label != IGNORED for example in examples for label in example.labels)
        facts = {"rows": len(examples), "rows_too_long": len(rows) - len(examples), "solution_tokens": solution}
        return mark_trained(out, training, facts | metrics)


def _open(base: str | Path, settings: PolicyTraining, seed: int) -> tuple[Any, Precision, bool]:
    """The model as it is trained, in which precision, and whether its attention goes block by block."""
    model = load_causal(base)
    precision = precision_of(model.dtype, settings, device_of(settings))
    model, blocked = prepare(model, precision)
    if settings.method == "lora":
        model = add_lora(model, settings, seed, task_type="CAUSAL_LM")
    return model, precision, blocked


def encode(row: PolicyRow, encoder: Encoder) -> Example:
    """A trace with the end of the turn after its last step; labels on both, none on the prompt."""
    trace = encoder.trace(row.problem(), row.path(encoder.tokenizer_id))
    ids = [*trace.ids, *encoder.end_of_turn]
    return Example(ids, [IGNORED] * trace.prompt_length + ids[trace.prompt_length :])


def _nothing(rows: int, settings: PolicyTraining) -> str:
    if rows:
        return f"all {rows} policy rows are longer than max_length = {settings.max_length} tokens: raise max_length"
    return "there are no correct traces to train the policy on: search more questions, longer, or easier ones"


class PolicyTrainer(StepTrainer):
    """Cross-entropy of the solutions' tokens."""

    def pass_loss(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="none") @ weights
