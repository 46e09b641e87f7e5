"""Preference training: DPO of a causal LM on pairs of continuations (Rafailov et al. 2023, arXiv 2305.18290).

The loss of a pair is −log σ(β · (log π(y⁺)/π_ref(y⁺) − log π(y⁻)/π_ref(y⁻))), where y⁺ and y⁻ follow the same question
and steps and π_ref is the policy as it was before. trl computes it; the token ids are ours, so that what is compared is
what the search sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import load_causal
from restmcts.rows import PreferenceRow
from restmcts.trackers import Tracking
from restmcts.train.common import (
    OnProgress,
    fingerprint_of,
    in_precision,
    mark_trained,
    one_line_errors,
    save_trained,
    trained_before,
)
from restmcts.train.rl import first_and_last, name_of, open_policy, rows_of_a_pass, train_with, trl_arguments
from restmcts.train.settings import PreferenceTraining


def train_preference(
    rows: Sequence[PreferenceRow],
    *,
    base: str | Path,
    out: Path,
    prompt: PromptSettings,
    settings: PreferenceTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    tracking: Tracking = Tracking(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Train the policy `base` on pairs and write it to the folder `out`, as `policy.train_policy` does.

    Called again after having been killed, it goes on from its last checkpoint. Returns metrics; `accuracy_last` is the
    share of pairs, near the end, whose better side the policy had come to prefer more than the reference does. Raises
    TrainError when there is nothing to train on, the loss is not finite, or memory runs out.
    """
    with one_line_errors(settings, out):
        opened = open_policy(base, prompt, settings)
        pairs = [encode(row, opened.encoder) for row in rows]
        lengths = [len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in pairs]
        fitting = [p for p, length in zip(pairs, lengths, strict=True) if length <= settings.max_length]
        if not fitting:
            raise TrainError(_nothing(len(rows), settings))
        longest = max(length for length in lengths if length <= settings.max_length)
        per_pass = rows_of_a_pass(settings, 2 * longest, settings.batch_pairs)
        passes = settings.batch_pairs // per_pass
        steps = settings.epochs * math.ceil(math.ceil(len(fitting) / per_pass) / passes)
        training = fingerprint_of(steps, settings, name_of(base, "preference", seed), fitting)
        done = trained_before(out, training)
        if done is not None:
            return done
        arguments = trl_arguments(
            settings, steps, out, seed, opened.precision.mixed, tracking, per_pass=per_pass, passes=passes
        )
        reference = None if opened.lora is not None else in_precision(load_causal(base), opened.precision)
        trainer = PairTrainer(
            model=opened.model,
            ref_model=reference,
            args=_dpo(settings, arguments),
            train_dataset=Dataset.from_list(fitting),
            processing_class=opened.tokenizer,
            peft_config=opened.lora,
        )
        metrics = train_with(trainer, opened, settings, steps, training=training, on_progress=on_progress, shown="loss")
        logs = trainer.state.log_history
        metrics |= first_and_last(logs, "rewards/accuracies", "accuracy") | first_and_last(
            logs, "rewards/margins", "margin"
        )
        save_trained(trainer.model, out, opened.precision.stored, opened.tokenizer, prompt, seed)
        facts = {"rows": len(fitting), "rows_too_long": len(rows) - len(fitting)}
        return mark_trained(out, training, facts | metrics)


def _dpo(settings: PreferenceTraining, arguments: dict[str, Any]) -> DPOConfig:
    return DPOConfig(
        **arguments,
        num_train_epochs=settings.epochs,
        beta=settings.beta,
        loss_type=["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if settings.sft_weight else None,
        max_length=None,
    )


def encode(row: PreferenceRow, encoder: Encoder) -> dict[str, list[int]]:
    """The ids of what both sides share, and of each side, with the end of the turn after a side that is a solution."""
    identity = encoder.tokenizer_id
    better, worse = row.sides(identity)
    ids: dict[str, list[int]] = {"prompt_ids": encoder.trace(row.problem(), row.path(identity)).ids}
    for name, side, ends in (("chosen_ids", better, row.chosen_ends), ("rejected_ids", worse, row.rejected_ends)):
        ids[name] = [token for step in side for token in encoder.step(step)] + (
            list(encoder.end_of_turn) if ends else []
        )
    return ids


def _nothing(rows: int, settings: PreferenceTraining) -> str:
    if rows:
        return f"all {rows} pairs are longer than max_length = {settings.max_length} tokens: raise max_length"
    return "there are no pairs to train the policy on: search more questions, or lower preference.margin"


class PairTrainer(DPOTrainer):
    """trl's trainer on token ids that are there already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: checkpoints are for going on, not for publishing."""
