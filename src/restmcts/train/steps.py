"""The trainer of both trainings: an item of its data is an optimizer step, computed in passes side by side."""

from __future__ import annotations

import gc
import inspect
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.training_args import ParallelMode

from restmcts.errors import is_out_of_memory
from restmcts.models import cores
from restmcts.train.packing import Example, Plan, pack_step, tensors

log = logging.getLogger("restmcts")

SMALLEST = 64
"""tokens of a forward pass below which it cannot be made smaller"""


class StepTrainer(Trainer, ABC):
    """Transformers' trainer over the steps of a plan. Subclasses give the loss of a pass.

    A step's passes run in threads of their own, each with its share of the cores: dividing every single operation among
    the cores instead makes them wait for each other thousands of times a step. (SmolLM2-135M on two cores: 440 tokens/s
    with one thread, 370 with two for each operation.)

    Several processes (`ranks`) divide the passes of every step among them, one pass at a time in each.
    """

    def __init__(
        self,
        *,
        examples: Sequence[Example],
        plan: Plan,
        limit: int,
        shift: bool,
        label_dtype: torch.dtype,
        blocked: bool,
        **options: Any,
    ) -> None:
        self.examples, self.limit, self.shift = examples, limit, shift
        self.label_dtype, self.blocked = label_dtype, blocked
        super().__init__(train_dataset=Dataset.from_dict({"units": plan.steps}), data_collator=self._collate, **options)
        alone = self.args.parallel_mode != ParallelMode.DISTRIBUTED
        self.cores = cores() if alone and self.args.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(self.cores, "pass")
        forward = inspect.signature(getattr(self.model, "get_base_model", lambda: self.model)().forward)
        self.keeps_logits = "logits_to_keep" in forward.parameters

    @abstractmethod
    def pass_loss(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The loss of labels by the logits (labels, outputs) they are learned from, times their weights."""

    def get_train_dataloader(self) -> Any:
        """As transformers' own; but where it would deal whole steps out to the processes, each gets all of them."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        pinned = self.args.dataloader_pin_memory
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator, pin_memory=pinned)

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        [item] = items
        return {"passes": self._passes(item["units"]), "units": item["units"]}

    def _passes(self, rows_of_units: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """This process's passes of a step. Every process has equally many, since they meet in each."""
        units = [[self.examples[row] for row in rows] for rows in rows_of_units]
        processes, own = self.args.world_size, self.args.process_index
        passes = pack_step(units, limit=self.limit, workers=self.cores * processes, shift=self.shift)
        # By the labels of all processes; their gradients and losses are averaged, hence times their number.
        scale = processes / sum(sum(packed.targets.values()) for packed in passes)
        options: dict[str, Any] = {"label_dtype": self.label_dtype, "blocked": self.blocked}
        mine = [tensors(packed, scale=scale, **options) for packed in passes[own::processes]]
        if len(mine) == math.ceil(len(passes) / processes):
            return mine
        smallest = min(passes, key=lambda packed: len(packed.ids))
        return [*mine, tensors(smallest, scale=0.0, **options)]  # teaches nothing, and keeps the others company

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimizer step; returns its loss. Where memory runs out, in smaller passes from then on."""
        while True:
            try:
                return self._gradients(model, inputs)
            except (MemoryError, RuntimeError) as error:
                # With other processes, which know nothing of it and wait for this one, there is no second try.
                if not is_out_of_memory(error) or self.limit <= SMALLEST or self.args.world_size > 1:
                    raise
            self.limit = max(self.limit // 2, SMALLEST)
            log.warning("out of memory: training goes on with micro_tokens = %d", self.limit)
            model.zero_grad(set_to_none=True)
            inputs = {**inputs, "passes": self._passes(inputs["units"])}
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _gradients(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        model.train()
        passes = self._prepare_inputs(inputs)["passes"]
        total = torch.zeros((), device=self.args.device)
        if self.cores == 1:
            for number, one in enumerate(passes, start=1):
                with self._gathering(model, last=number == len(passes)):
                    loss = self._loss(model, one)
                    self.accelerator.backward(loss)
                total += loss.detach()
            return total
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        threads = max(1, self.cores // len(passes))

        def gradients(one: dict[str, Any]) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
            torch.set_num_threads(threads)  # of this thread alone
            loss = self._loss(model, one)
            return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)

        running = [self.pool.submit(gradients, one) for one in passes]
        wait(running)  # also when one has failed: nothing of this step is left at work
        for loss, found in (future.result() for future in running):  # summed in this order, so that runs repeat
            total += loss
            for parameter, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    @contextmanager
    def _gathering(self, model: Any, *, last: bool) -> Iterator[None]:
        """A pass of a step: the gradients of all processes are averaged, and DeepSpeed makes its step, after the last.

        FSDP averages after each: keeping whole gradients until then would take the memory that it is there to save.
        """
        self.accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last or self.is_fsdp_enabled else self.accelerator.no_sync(model):
            yield

    def _loss(self, model: Any, one: dict[str, Any]) -> torch.Tensor:
        inputs = one["inputs"]
        if self.keeps_logits:
            logits = model(**inputs, logits_to_keep=one["at"], use_cache=False).logits[0]
        else:
            logits = model(**inputs, use_cache=False).logits[0, one["at"]]
        return self.pass_loss(logits, one["labels"], one["weights"])

    def train(self, *args: Any, **options: Any) -> Any:
        """As transformers' own; the threads end with it."""
        try:
            return super().train(*args, **options)
        finally:
            self.pool.shutdown()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0
