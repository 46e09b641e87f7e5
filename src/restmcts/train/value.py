"""Value training: a backbone with a scalar head learns v of every labelled step (paper: Eq. 37).

The value of a partial solution is the sigmoid of the head's output at the last token of its last step. The backbone is
causal, so one forward pass of a trace holds the values of all its prefixes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from restmcts.datasets import ValueRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import is_value_model, load_token_classifier, load_tokenizer
from restmcts.seeds import derive_seed
from restmcts.train.common import (
    IGNORED,
    Example,
    OnProgress,
    add_lora,
    base_identity,
    collate,
    device_of,
    fit,
    on_one_device,
    one_line_errors,
    pad_id_of,
    plan_batches,
    precision_of,
    prepare,
    save_trained,
    training_arguments,
)
from restmcts.train.settings import ValueTraining
from restmcts.types import Path, Problem

_INPUTS = ("input_ids", "attention_mask", "position_ids")


def train_value(
    rows: Sequence[ValueRow],
    *,
    base: str | FilePath,
    out: FilePath,
    prompt: PromptSettings,
    settings: ValueTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a value model on `rows` and write it to `out`: plain safetensors, tokenizer, prompt format.

    `base` is a causal LM, which gets a new head, or an earlier value model, which keeps its own. Called again after
    having been killed, it goes on from its last checkpoint. Returns metrics. Raises TrainError when there is nothing
    to train on, the loss is not finite, or memory runs out; EngineError when `base` is no model.
    """
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, prompt)
    trained, kept_out = _split(rows, settings.validation, seed)
    examples = _encode_all(trained, encoder, settings)
    if not examples:
        raise TrainError(
            f"none of {len(rows)} value rows has a labelled step within max_length = {settings.max_length} tokens: "
            "search more questions, or raise max_length"
        )
    plan = plan_batches([len(example.ids) for example in examples], settings, seed)
    with one_line_errors(settings, out):
        model = _load(base)
        precision = precision_of(model.dtype, settings, device_of(settings))
        model = prepare(model, settings, precision, max(len(example.ids) for example in examples))
        model.score.float()  # so that the copy peft trains is float32 too
        if settings.method == "lora":
            model = add_lora(model, settings, seed, task_type="TOKEN_CLS", modules_to_save=["score"])
        trainer = _ValueTrainer(
            model=model,
            args=on_one_device(TrainingArguments(**training_arguments(settings, plan, out, seed, precision.mixed))),
            train_dataset=Dataset.from_dict({"rows": plan.batches}),
            data_collator=lambda items: collate(
                [examples[row] for item in items for row in item["rows"]], pad_id_of(tokenizer), torch.float32
            ),
            processing_class=tokenizer,
            settings=settings,
        )
        metrics = fit(trainer, plan, examples, settings, ("value", base_identity(base), seed), on_progress)
        model = save_trained(trainer.model, out, precision.stored, tokenizer, prompt, seed)
        if kept_out:
            metrics |= _errors(model, _encode_all(kept_out, encoder, settings), pad_id_of(tokenizer))
    labelled = sum(label != IGNORED for example in examples for label in example.labels)
    return {"rows": len(trained), "packed_rows": len(examples), "labelled_steps": labelled, **metrics}


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


def pack(examples: Sequence[tuple[Example, Sequence[int]]], max_length: int) -> list[Example]:
    """Traces of one question, each with the lengths of its prefixes (prompt, steps), as few rows of shared tokens.

    A prompt or step that several traces begin with is one run of tokens, trained once. Where two traces label the same
    token, the mean is learned. A row ends before it exceeds `max_length` tokens.
    """
    packed: list[Example] = []
    known: dict[tuple[int, ...], int] = {}
    for example, cuts in examples:
        if not packed or len(packed[-1].ids) + len(example.ids) > max_length:
            packed.append(Example([], [], []))
            known, votes = {}, Counter[int]()
        row, at, start = packed[-1], -1, 0
        assert row.parent is not None
        labels: list[Any] = row.labels
        for cut in cuts:
            prefix = tuple(example.ids[:cut])
            if prefix not in known:
                for token in example.ids[start:cut]:
                    row.parent.append(at)
                    at = len(row.ids)
                    row.ids.append(token)
                    labels.append(IGNORED)
                known[prefix] = at
            at, start = known[prefix], cut
            label = example.labels[cut - 1]
            if label != IGNORED:
                votes[at] += 1
                so_far = labels[at] if votes[at] > 1 else 0.0
                labels[at] = so_far + (label - so_far) / votes[at]
    return packed


def _encode_all(rows: Sequence[ValueRow], encoder: Encoder, settings: ValueTraining) -> list[Example]:
    """The rows, those of one question packed together: its prompt and shared steps are computed once."""
    by_question: dict[str, list[tuple[Example, Sequence[int]]]] = {}
    for row in rows:
        example = encode(row, encoder, settings.max_length)
        if any(label != IGNORED for label in example.labels):
            trace = encoder.trace(row.problem(), row.path(encoder.tokenizer_id))
            cuts = [trace.prompt_length, *(end + 1 for end in trace.ends if end < len(example.ids))]
            by_question.setdefault(row.question, []).append((example, cuts))
    return [packed for traces in by_question.values() for packed in pack(traces, settings.max_length)]


def _split(rows: Sequence[ValueRow], share: float, seed: int) -> tuple[list[ValueRow], list[ValueRow]]:
    """Rows to train on and rows kept out, by question; each question's side depends on it and the seed alone."""
    out = {row.problem_id: derive_seed(seed, "validation", row.problem_id) < share * 2**63 for row in rows}
    return [row for row in rows if not out[row.problem_id]], [row for row in rows if out[row.problem_id]]


# ---------------------------------------------------------------- model, loss, values


def _load(base: str | FilePath) -> Any:
    """The token classifier in `base`, or its causal LM with a new head that says 0.5 to everything."""
    try:
        model = load_token_classifier(base)
    except RuntimeError as error:  # a head of another shape
        raise TrainError(f"the head of {str(base)!r} does not fit: give a language model or a value model") from error
    if not is_value_model(base):
        # No bias: servers that load such heads (vLLM's pooling models) have none, and a bias would be lost there.
        model.score = torch.nn.Linear(model.score.in_features, 1, bias=False, dtype=model.dtype)
        torch.nn.init.zeros_(model.score.weight)
        model.config.token_classification_bias = False
        model.config.classifier_dropout = 0.0
    return model


def value_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Summed loss of the labelled positions: squared error of sigmoid(logit), or cross-entropy with a soft label."""
    labelled = labels != IGNORED
    z, v = logits[labelled].float(), labels[labelled].float()
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(z, v, reduction="sum")
    return F.mse_loss(z.sigmoid(), v, reduction="sum")


class _ValueTrainer(Trainer):
    def __init__(self, *, settings: ValueTraining, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.model_accepts_loss_kwargs = True  # the loss below divides by the labels of the whole optimizer step
        self._loss_shifts_labels = False

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a learning rate of its own for the head."""
        head: list[Any] = []
        rest: list[Any] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (head if "score" in name.split(".") else rest).append(parameter)
        rate = self.settings.learning_rate
        groups = [
            {"params": rest, "lr": rate},
            {"params": head, "lr": self.settings.head_learning_rate or rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        hook = _head(self.accelerator.unwrap_model(model)).register_forward_hook(_in_float32)
        try:
            seen = {name: inputs[name] for name in _INPUTS if name in inputs}
            output = model(**seen, use_cache=False)
        finally:
            hook.remove()
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = value_loss(output.logits[..., 0], labels, self.settings.loss) / count
        return (loss, output) if return_outputs else loss


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
    examples = [Example(trace.ids, [0.0] * len(trace.ids)) for trace in encoded]
    scores: list[list[float]] = [[] for _ in traces]
    for rows, values in _forward(model, examples, pad_id_of(encoder.tokenizer), micro_tokens):
        for i, row in enumerate(rows):
            scores[row] = values[i, encoded[row].ends].tolist()
    return scores


def _forward(
    model: Any, examples: Sequence[Example], pad_id: int, micro_tokens: int = 4096
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of row indices with the sigmoid of the head's output, of shape (rows, tokens)."""
    settings = ValueTraining(epochs=1, batch_tokens=micro_tokens, micro_tokens=micro_tokens)
    for rows in plan_batches([len(example.ids) for example in examples], settings, 0).batches:
        batch = collate([examples[row] for row in rows], pad_id, torch.float32)
        with torch.inference_mode():
            seen = {name: batch[name].to(model.device) for name in _INPUTS if name in batch}
            output = model(**seen, use_cache=False)
        yield rows, output.logits[..., 0].float().sigmoid().cpu()


def _errors(model: Any, examples: Sequence[Example], pad_id: int) -> dict[str, Any]:
    """Mean squared error and the share within 0.1 (Eq. 38) on rows kept out of training."""
    errors: list[float] = []
    for rows, values in _forward(model, examples, pad_id):
        for i, row in enumerate(rows):
            labels = torch.tensor(examples[row].labels)
            labelled = labels != IGNORED
            errors += (values[i, : len(labels)][labelled] - labels[labelled]).abs().tolist()
    n = max(1, len(errors))
    return {
        "validation_steps": len(errors),
        "validation_mse": sum(e * e for e in errors) / n,
        "validation_within_0.1": sum(e <= 0.1 + 1e-6 for e in errors) / n,
    }
