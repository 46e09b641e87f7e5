"""Policy training: SFT of a causal LM on correct traces, through trl.

The loss is the negative log likelihood of the solution: its steps and the end of the turn, never the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from restmcts.datasets import PolicyRow
from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import is_value_model, load_causal, load_tokenizer
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
from restmcts.train.settings import PolicyTraining


def train_policy(
    rows: Sequence[PolicyRow],
    *,
    base: str | Path,
    out: Path,
    prompt: PromptSettings,
    settings: PolicyTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train the policy `base` on `rows` and write it to the folder `out`: plain safetensors, tokenizer, prompt format.

    Called again after having been killed, it goes on from its last checkpoint. Returns metrics. Raises TrainError when
    there is nothing to train on, the loss is not finite, or memory runs out; EngineError when `base` is no model.
    """
    if is_value_model(base):
        raise TrainError(f"{str(base)!r} is a value model, which cannot become a policy: give a language model")
    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, prompt)
    everything = [encode(row, encoder) for row in rows]
    examples = [example for example in everything if len(example.ids) <= settings.max_length]
    if not examples:
        raise TrainError(_nothing(len(rows), settings))
    longest = max(len(example.ids) for example in examples)
    plan = plan_batches([len(example.ids) for example in examples], settings, seed)
    with one_line_errors(settings, out):
        model = load_causal(base)
        precision = precision_of(model.dtype, settings, device_of(settings))
        model = prepare(model, settings, precision, longest)
        if settings.method == "lora":
            model = add_lora(model, settings, seed, task_type="CAUSAL_LM")
        arguments = training_arguments(settings, plan, out, seed, precision.mixed)
        trainer = _SolutionTrainer(
            model=model,
            args=on_one_device(SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})),
            train_dataset=Dataset.from_dict({"rows": plan.batches}),
            data_collator=lambda items: collate(
                [examples[row] for item in items for row in item["rows"]], pad_id_of(tokenizer), torch.long
            ),
            processing_class=tokenizer,
        )
        metrics = fit(trainer, plan, examples, settings, ("policy", base_identity(base), seed), on_progress)
        save_trained(trainer.model, out, precision.stored, tokenizer, prompt, seed)
    solution = sum(label != IGNORED for example in examples for label in example.labels)
    return {"rows": len(examples), "rows_too_long": len(rows) - len(examples), "solution_tokens": solution, **metrics}


def encode(row: PolicyRow, encoder: Encoder) -> Example:
    """A trace with the end of the turn after its last step; labels on both, none on the prompt."""
    trace = encoder.trace(row.problem(), row.path(encoder.tokenizer_id))
    ids = [*trace.ids, *encoder.end_of_turn]
    return Example(ids, [IGNORED] * trace.prompt_length + ids[trace.prompt_length :])


def _nothing(rows: int, settings: PolicyTraining) -> str:
    if rows:
        return f"all {rows} policy rows are longer than max_length = {settings.max_length} tokens: raise max_length"
    return "there are no correct traces to train the policy on: search more questions, longer, or easier ones"


class _SolutionTrainer(SFTTrainer):
    """trl's trainer; on a CPU, logits are computed for the solution alone, not for the prompt and the padding."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None in checkpoints, which live only until the training ends."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if inputs["labels"].device.type != "cpu":  # there, trl's own fused head does the same
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        trained = labels != IGNORED
        positions = F.pad(trained, (0, 1))
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
        try:
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
        finally:
            hook.remove()
        loss = F.cross_entropy(logits.float(), labels[trained], reduction="sum")
        return loss / (trained.sum() if num_items_in_batch is None else num_items_in_batch)
