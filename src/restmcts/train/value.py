"""Value training: a backbone with a scalar head learns v of every labelled step (paper: Eq. 37).

The value of a partial solution is the sigmoid of the head's output at the last token of its last step. The backbone is
causal, so one forward pass of a trace holds the values of all its prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from restmcts import ranks
from restmcts.datasets import ValueRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import FixedModelError, TrainError
from restmcts.models import is_value_model, load_token_classifier, load_tokenizer, one_thread, prm_style
from restmcts.seeds import derive_seed
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
from restmcts.train.settings import ValueTraining
from restmcts.train.steps import StepTrainer
from restmcts.types import Path, Problem


def train_value(
    rows: Sequence[ValueRow],
    *,
    base: str | FilePath,
    out: FilePath,
    prompt: PromptSettings,
    settings: ValueTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    tracking: Tracking = Tracking(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Train a value model on `rows` and write it to `out`: plain safetensors, tokenizer, prompt format.

    `base` is a causal LM, which gets a new head, or an earlier value model, which keeps its own. Called again after
    having been killed, it goes on from its last checkpoint. Returns metrics. Raises TrainError when there is nothing
    to train on, the loss is not finite, or memory runs out; FixedModelError when `base` is a public process reward
    model; EngineError when it is no model.
    """
    check_trainable(base)
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, prompt)
    trained, kept_out = _split(rows, settings.validation, seed)
    examples, questions = _encode_all(trained, encoder, settings)
    if not examples:
        raise TrainError(
            f"none of {len(rows)} value rows has a labelled step within max_length = {settings.max_length} tokens: "
            "search more questions, or raise max_length"
        )
    plan = plan_steps([len(example.ids) for example in examples], questions, settings, seed)
    training = fingerprint_of_rows(plan, examples, settings, ("value", base_identity(base), seed))
    check_divisible(plan, settings)
    done = ranks.agreed(lambda: trained_before(out, training))
    if done is not None:
        return done
    with one_thread(), one_line_errors(settings, out):
        model, precision, blocked = _open(base, settings, seed)
        check_ids(examples, model)
        arguments = training_arguments(settings, plan, out, seed, precision.mixed, tracking)
        trainer = ValueTrainer(
            model=model,
            args=on_one_device(TrainingArguments(**arguments)),
            processing_class=tokenizer,
            settings=settings,
            examples=examples,
            plan=plan,
            limit=micro_tokens_of(settings),
            shift=False,
            label_dtype=torch.float32,
            blocked=blocked,
        )
        metrics = fit(trainer, plan, examples, settings, training, on_progress)
        whole = whole_model(trainer, lambda: _open(base, settings, seed)[0])
        if whole is None:
            return metrics
        model = save_trained(whole, out, precision.stored, tokenizer, prompt, seed)
        if kept_out:
            metrics |= _errors(model, _encode_all(kept_out, encoder, settings)[0])
        labelled = sum(label != IGNORED for example in examples for label in example.labels)
        return mark_trained(out, training, {"rows": len(trained), "labelled_steps": labelled, **metrics})


def check_trainable(base: str | FilePath) -> None:
    """Raise FixedModelError for a public process reward model."""
    if prm_style(base) is not None:
        raise FixedModelError(
            f"{str(base)!r} is a public process reward model: it scores and is not trained here; give a language model "
            "or a value model that restmcts trained"
        )


# ---------------------------------------------------------------- rows to inputs


def encode(row: ValueRow, encoder: Encoder, max_length: int) -> Example:
    """A trace with its labels at the last token of every step. Steps that end beyond `max_length` are left out."""
    trace = encoder.trace(row.problem(), row.path(encoder.tokenizer_id))
    length = max((end + 1 for end in trace.ends if end < max_length), default=0)
    labels = [float(IGNORED)] * length
    for end, label in zip(trace.ends, row.labels, strict=True):
        if end < length and label is not None:
            labels[end] = label
    return Example(trace.ids[:length], labels)


def _encode_all(rows: Sequence[ValueRow], encoder: Encoder, settings: ValueTraining) -> tuple[list[Example], list[str]]:
    """The rows that have a label, and their questions."""
    encoded = [(encode(row, encoder, settings.max_length), row.question) for row in rows]
    kept = [one for one in encoded if any(label != IGNORED for label in one[0].labels)]
    return [example for example, _ in kept], [question for _, question in kept]


def _split(rows: Sequence[ValueRow], share: float, seed: int) -> tuple[list[ValueRow], list[ValueRow]]:
    """Rows to train on and rows kept out, by question; each question's side depends on it and the seed alone."""
    out = {row.problem_id: derive_seed(seed, "validation", row.problem_id) < share * 2**63 for row in rows}
    return [row for row in rows if not out[row.problem_id]], [row for row in rows if out[row.problem_id]]


# ---------------------------------------------------------------- model, loss, values


def _open(base: str | FilePath, settings: ValueTraining, seed: int) -> tuple[Any, Precision, bool]:
    """The model as it is trained, in which precision, and whether its attention goes block by block."""
    model = _load(base)
    precision = precision_of(model.dtype, settings, device_of(settings))
    model, blocked = prepare(model, precision)
    model.score.float()  # so that the copy peft trains is float32 too
    if settings.method == "lora":
        model = add_lora(model, settings, seed, task_type="TOKEN_CLS", modules_to_save=["score"])
    return model, precision, blocked


def _load(base: str | FilePath) -> Any:
    """The value model in `base`, or a new one on its causal LM."""
    try:
        return load_token_classifier(base) if is_value_model(base) else new_value_model(base)
    except RuntimeError as error:  # a head of another shape
        raise TrainError(f"the head of {str(base)!r} does not fit: give a language model or a value model") from error


def new_value_model(base: str | FilePath) -> Any:
    """The backbone of a causal LM with a new head: a token classifier with one label, which says 0.5 to everything."""
    model = load_token_classifier(base)
    # No bias: servers that load such heads (vLLM's pooling models) have none, and a bias would be lost there.
    model.score = torch.nn.Linear(model.score.in_features, 1, bias=False, dtype=model.dtype)
    torch.nn.init.zeros_(model.score.weight)
    model.config.token_classification_bias = False
    model.config.classifier_dropout = 0.0
    return model


def value_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, kind: str) -> torch.Tensor:
    """Weighted sum of each label's loss: squared error of sigmoid(logit), or cross-entropy with a soft label."""
    z = logits.float()
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(z, labels, reduction="none") @ weights
    return (z.sigmoid() - labels).square() @ weights


class ValueTrainer(StepTrainer):
    def __init__(self, *, settings: ValueTraining, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        _head(self.model).register_forward_hook(_in_float32)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a learning rate of its own for the head."""
        head: list[Any] = []
        rest: list[Any] = []
        for name, parameter in (self.model if model is None else model).named_parameters():
            if parameter.requires_grad:
                (head if "score" in name.split(".") else rest).append(parameter)
        rate = self.settings.learning_rate
        groups = [
            {"params": rest, "lr": rate},
            {"params": head, "lr": self.settings.head_learning_rate or rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=True)
        return self.optimizer

    def pass_loss(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return value_loss(logits[..., 0], labels, weights, self.settings.loss)


def _head(model: Any) -> Any:
    """The linear map being trained: the model's own, or the copy that peft trains in its place."""
    score = (model.get_base_model() if hasattr(model, "get_base_model") else model).score
    return score.modules_to_save[score.active_adapters[0]] if hasattr(score, "modules_to_save") else score


def _in_float32(head: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
    """The head's output without autocast's bfloat16, which would round logits to steps of 0.4 %."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return F.linear(inputs[0].float(), head.weight.float(), None if head.bias is None else head.bias.float())


def score_traces(
    model: Any, encoder: Encoder, traces: Sequence[tuple[Problem, Path]], *, micro_tokens: int = 4096
) -> list[list[float]]:
    """v in [0, 1] of every prefix of every trace, by plain forward passes: `scores[i][k]` is read after step k."""
    encoded = [encoder.trace(problem, path) for problem, path in traces]
    scores: list[list[float]] = [[] for _ in traces]
    for row, values in _forward(model, [trace.ids for trace in encoded], micro_tokens):
        scores[row] = values[encoded[row].ends].tolist()
    return scores


def _forward(
    model: Any, sequences: Sequence[Sequence[int]], micro_tokens: int = 4096
) -> Iterator[tuple[int, torch.Tensor]]:
    """Every sequence's index and the sigmoid of the head's output at its tokens, in batches padded on the right."""
    waiting = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    while waiting:
        longest = len(sequences[waiting[-1]])
        rows = [waiting.pop() for _ in range(min(len(waiting), max(1, micro_tokens // longest)))]
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(sequences[row])] = torch.tensor(sequences[row])
            mask[i, : len(sequences[row])] = 1
        with torch.inference_mode():
            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        for row, values in zip(rows, output.logits[..., 0].float().sigmoid().cpu(), strict=True):
            yield row, values[: len(sequences[row])]


def _errors(model: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """Mean squared error and the share within 0.1 (Eq. 38) on rows kept out of training."""
    errors: list[float] = []
    for row, values in _forward(model, [example.ids for example in examples]):
        labels = torch.tensor(examples[row].labels)
        labelled = labels != IGNORED
        errors += (values[labelled] - labels[labelled]).abs().tolist()
    n = max(1, len(errors))
    return {
        "validation_steps": len(errors),
        "validation_mse": sum(e * e for e in errors) / n,
        "validation_within_0.1": sum(e <= 0.1 + 1e-6 for e in errors) / n,
    }
