"""The training itself: from the newest checkpoint on, with progress, up to the whole trained model."""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from restmcts import ranks
from restmcts.errors import StoreError, TrainError
from restmcts.files import damage, inventory, read_json, sync_tree, write_atomic, write_json
from restmcts.train.common import OnProgress
from restmcts.train.packing import Example, Plan
from restmcts.train.settings import RowTraining, Training

WHOLE = "whole.json"
"""in a checkpoint that is on the disk: its files (`files.inventory`); written last"""
KEPT = 2
"""checkpoints that are kept: one for the case that the newest turns out to be damaged"""

log = logging.getLogger("restmcts")

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
"""ways of training in which a process may hold a part of the model only"""


class Watch(TrainerCallback):
    """Reports progress, stops on a loss that is not finite, and asks for a checkpoint when it is time for one.

    `tokens` says how many are trained by the end of each step; without it the trainer's own count is reported. `shown`
    names what is reported of a step.
    """

    def __init__(
        self,
        steps: int,
        settings: Training,
        on_progress: OnProgress | None,
        *,
        tokens: Sequence[int] | None = None,
        shown: str = "loss",
    ) -> None:
        self.steps, self.settings, self.on_progress = steps, settings, on_progress
        self.tokens, self.shown = tokens, shown
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = ranks.agreed(lambda: time.monotonic() - self.saved >= self.settings.checkpoint_seconds)
        control.should_save |= due and state.global_step < self.steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the checkpoint on the disk; then those that are older than is needed go, by number and not by date."""
        ranks.wait()  # each process has written its part
        if ranks.is_first():
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            sync_tree(folder)
            write_json(folder / WHOLE, inventory(folder))
            for old in sorted(folder.parent.glob("checkpoint-*"), key=_number)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if logs is None or loss is None:
            return
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss is {loss} at step {state.global_step} of {self.steps}: "
                f"lower learning_rate (now {self.settings.learning_rate:g}) or train in precision float32"
            )
        if self.on_progress is not None and ranks.is_first():
            tokens = logs.get("num_tokens", 0) if self.tokens is None else self.tokens[state.global_step - 1]
            self.on_progress(state.global_step, self.steps, logs[self.shown], int(tokens))


def check_divisible(plan: Plan, settings: RowTraining) -> None:
    """Raise TrainError where no step has something to do for every process: questions go to them whole."""
    most = max(len(step) for step in plan.steps)
    if ranks.count() > most:
        raise TrainError(
            f"{ranks.count()} processes cannot share steps of at most {most} questions: raise batch_tokens "
            f"(now {settings.batch_tokens}) or start fewer processes"
        )


def fit(
    trainer: Trainer,
    plan: Plan,
    examples: Sequence[Example],
    settings: RowTraining,
    fingerprint: str,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Train, going on from a checkpoint of the training of this `fingerprint` if there is one. Returns metrics."""
    tokens = _step_tokens(plan, examples)
    watch = Watch(len(plan.steps), settings, on_progress, tokens=list(accumulate(tokens)))
    done, seconds = go_on(trainer, watch, fingerprint)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
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


def go_on(trainer: Trainer, watch: Watch, fingerprint: str) -> tuple[int, float]:
    """Train from the newest checkpoint of this very training, if there is one; the step it was made at, and seconds."""
    folder = Path(trainer.args.output_dir)
    started = time.monotonic()
    how = trainer.accelerator.distributed_type
    if how in SHARDED:  # what such a training writes, only one that is divided alike can read
        fingerprint += f" {how.value} {ranks.count()}"
    resumed = ranks.agreed(lambda: _checkpoint(folder, fingerprint))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    done = 0 if resumed is None else _number(resumed)
    return done, time.monotonic() - started


def whole_model(trainer: Trainer, build: Callable[[], Any]) -> Any | None:
    """The trained model in the first process, None in the others.

    Where each process held a part of it, the parts are gathered in a model that `build` makes as the first one was.
    """
    if trainer.accelerator.distributed_type not in SHARDED:
        return trainer.model if ranks.is_first() else None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not ranks.is_first():
        return None
    unset_hf_deepspeed_config()  # else the new model would be divided too
    model = build()
    model.load_state_dict(weights)
    return model


def _step_tokens(plan: Plan, examples: Sequence[Example]) -> list[int]:
    """Tokens of every optimizer step, shared ones counted in every trace."""
    return [sum(len(examples[row].ids) for row in plan.step(index)) for index in range(len(plan.steps))]


def _checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """The newest whole checkpoint of this very training. Those of another one go; damaged ones are set aside."""
    mark = folder / "training.sha256"
    if not mark.is_file() or mark.read_text(encoding="utf-8", errors="replace") != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(mark, fingerprint)
    for path in sorted(folder.glob("checkpoint-*"), key=_number, reverse=True):
        try:
            problem = damage(path, read_json(path / WHOLE))
        except (StoreError, AttributeError) as error:  # it was cut short, or its list is no list
            problem = str(error)
        if problem is None:
            return path
        path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        log.warning("a checkpoint is set aside: %s", problem)
    return None


def _number(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1
