"""Packed training computes what training trace by trace computes: the loss, the gradients, the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from restmcts.models import load_causal, load_token_classifier
from restmcts.train.common import Precision, add_lora, prepare
from restmcts.train.packing import IGNORED, Example, Plan, pack, pack_step, plan_steps
from restmcts.train.policy import PolicyTrainer
from restmcts.train.settings import RowTraining, Training, ValueTraining
from restmcts.train.value import ValueTrainer
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


# ---------------------------------------------------------------- steps


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(16, 1500),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_a_plan_holds_every_trace_once_per_epoch(
    rows: list[tuple[int, int]], batch: int, epochs: int, seed: int
) -> None:
    lengths, questions = [length for length, _ in rows], [question for _, question in rows]
    settings = RowTraining(batch_tokens=batch, epochs=epochs)
    plan = plan_steps(lengths, questions, settings, seed)
    assert plan == plan_steps(lengths, questions, settings, seed)
    order = [row for index in range(len(plan.steps)) for row in plan.step(index)]
    for epoch in range(epochs):
        assert sorted(order[epoch * len(rows) : (epoch + 1) * len(rows)]) == list(range(len(rows)))
    assert all(len({questions[row] for row in unit}) == 1 for step in plan.steps for unit in step)
    assert all(step and all(step) for step in plan.steps)


def test_steps_are_of_nearly_equal_size() -> None:
    lengths = [40 + (i * 7919) % 80 for i in range(300)]
    plan = plan_steps(lengths, [i // 3 for i in range(300)], RowTraining(batch_tokens=1500, epochs=2), 0)
    sizes = [sum(lengths[row] for row in plan.step(index)) for index in range(len(plan.steps))]
    assert len(sizes) == 2 * round(sum(lengths) / 1500)
    assert all(abs(size - 1500) < 400 for size in sizes)
    assert plan.steps[: len(sizes) // 2] != plan.steps[len(sizes) // 2 :]


# ---------------------------------------------------------------- tries


def traces_of(units: Sequence[Sequence[Example]], shift: bool) -> list[tuple[list[int], float]]:
    """(ids up to the token a label is learned from, label), one for every label of every trace."""
    learned = []
    for unit in units:
        for example in unit:
            for i, label in enumerate(example.labels):
                end = i if shift else i + 1
                if label != IGNORED and end > 0:
                    learned.append((example.ids[:end], label))
    return learned


@given(st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=4), st.booleans(), st.integers(5, 40))
def test_every_label_of_every_trace_is_learned_from_its_own_past(
    sequences: list[list[list[int]]], shift: bool, limit: int
) -> None:
    units = [[Example(ids, [i if i % 2 else IGNORED for i in ids]) for ids in unit] for unit in sequences]
    passes = pack_step(units, limit=limit, workers=2, shift=shift)
    found = []
    for packed in passes:
        assert len(packed.ids) <= max(limit, max(len(ids) for unit in sequences for ids in unit))
        for (at, label), weight in packed.targets.items():
            path = []
            token = at
            while token >= 0:
                path.append(packed.ids[token])
                token = packed.parent[token]
            found += [(path[::-1], label)] * weight
    assert sorted(found) == sorted(traces_of(units, shift))


def test_what_traces_share_is_there_once() -> None:
    one = [Example([1, 2, 3, 4, 5], [IGNORED] * 5), Example([1, 2, 3, 4, 6, 7], [IGNORED] * 6)]
    other = [Example([1, 2, 9, 4], [IGNORED] * 4)]
    packed = pack([one, other], shift=False)
    assert packed.ids == [1, 2, 3, 4, 5, 6, 7, 9, 4]
    assert packed.parent == [-1, 0, 1, 2, 3, 3, 5, 1, 7]
    assert packed.block == [0, 0, 1, 1, 1, 1, 1, 2, 2]


# ---------------------------------------------------------------- loss and gradients


def some_units(labels: str) -> list[list[Example]]:
    """Three questions, of one to three traces; traces of a question share steps, and one is there twice."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(5, 300, (count,), generator=generator).tolist()

    start, units = draw(7), []
    for traces in (3, 1, 2):
        prompt = [*start, *draw(6)]
        steps = draw(5)
        unit = []
        for _ in range(traces):
            ids = [*prompt, *steps, *draw(4)]
            answer: list[Any] = ids[len(prompt) :] if labels == "ids" else [float(IGNORED)] * 4 + [0.5, -1.0, 0, 0, 0.2]
            unit.append(Example(ids, [IGNORED] * len(prompt) + answer))
        units.append(unit)
    units[0].append(units[0][0])
    return units


def trainer_of(kind: str, model: Any, units: list[list[Example]], folder: Path, *, blocked: bool, limit: int) -> Any:
    examples = [example for unit in units for example in unit]
    counts = iter(range(len(examples)))
    options: dict[str, Any] = {
        "model": model,
        "args": TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True),
        "examples": examples,
        "plan": Plan([[[next(counts) for _ in unit] for unit in units]]),
        "limit": limit,
        "blocked": blocked,
    }
    if kind == "policy":
        return PolicyTrainer(**options, shift=True, label_dtype=torch.long)
    return ValueTrainer(**options, shift=False, label_dtype=torch.float32, settings=ValueTraining())


def one_by_one(kind: str, model: Any, units: list[list[Example]]) -> torch.Tensor:
    """The mean loss of all labels, by plain transformers, each trace a forward pass of its own."""
    total, count = torch.zeros(()), 0
    for example in (example for unit in units for example in unit):
        logits = model(torch.tensor([example.ids])).logits[0]
        labels = torch.tensor(example.labels)
        if kind == "policy":
            logits, labels = logits[:-1], labels[1:]
        chosen = labels != IGNORED
        if kind == "policy":
            total = total + F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")
        else:
            total = total + (logits[chosen, 0].sigmoid() - labels[chosen]).square().sum()
        count += int(chosen.sum())
    return total / count


@pytest.mark.parametrize("kind", ["policy", "value"])
@pytest.mark.parametrize("way", ["blocks", "passes", "dense", "threads", "full"])
def test_loss_and_gradients_are_those_of_separate_traces(family: str, tmp_path: Path, kind: str, way: str) -> None:
    folder = tiny_model(tmp_path / "base", family)

    def model() -> Any:
        torch.manual_seed(0)
        loaded = (load_causal if kind == "policy" else load_token_classifier)(folder, dtype="float32")
        if way != "full":
            task = "CAUSAL_LM" if kind == "policy" else "TOKEN_CLS"
            loaded = add_lora(loaded, Training(lora_rank=4), 0, task_type=task)
            for name, parameter in loaded.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return loaded

    units = some_units("ids" if kind == "policy" else "values")
    plain, packed = model(), model()
    expected = one_by_one(kind, plain, units)
    expected.backward()
    base = packed.get_base_model() if way != "full" else packed
    _, blocked = prepare(base, Precision(torch.float32, torch.float32, mixed=False))
    assert blocked
    limit = 40 if way == "passes" else 1000
    trainer = trainer_of(kind, packed, units, tmp_path / "out", blocked=way != "dense", limit=limit)
    if way == "dense":
        base.set_attn_implementation("eager")
    if way == "threads":
        trainer.cores = 2
        trainer.limit = 60
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    assert (len(inputs["passes"]) > 1) == (way in ("passes", "threads"))
    loss = trainer.training_step(packed, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = dict(packed.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-6), name
