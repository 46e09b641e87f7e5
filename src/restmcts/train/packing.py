"""Traces to forward passes: tokens that traces share are computed once, and nothing is padded.

A pass holds the traces of some questions as one sequence. Its first tokens are those that all of them begin with (the
instruction); then comes, question by question, the trie of its traces: what several of them begin with is there once.
A token sees its own trace's past alone. Labels keep the weight of every trace that has them, so that loss and
gradients are those of the traces computed one by one.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from restmcts.train.settings import RowTraining

IGNORED = -100
"""the label of a token that is not trained on"""

WORTH_A_PASS = 128
"""tokens below which a pass is not divided among cores: its matrices would be too small to be fast"""


@dataclass(frozen=True, slots=True)
class Example:
    """A trace as the model sees it: token ids, and one label per token, `IGNORED` where there is none."""

    ids: list[int]
    labels: list[int] | list[float]


# ---------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a training's optimizer steps, fixed beforehand: `steps[i]` holds the examples of step i, by question.

    Since nothing is drawn later on, a training resumed after any step sees what an uninterrupted one would have seen.
    """

    steps: list[list[list[int]]]

    def step(self, index: int) -> list[int]:
        """The examples of optimizer step `index`, counted from 0."""
        return [row for unit in self.steps[index] for row in unit]


def plan_steps(lengths: Sequence[int], questions: Sequence[Hashable], settings: RowTraining, seed: int) -> Plan:
    """Steps of nearly `batch_tokens` each, in a new order every epoch.

    The traces of a question stay together, since they share tokens; only a question of more than `batch_tokens` is
    divided. A trace counts with all its tokens, shared or not: what is shared changes the cost of a step, not the step.
    """
    by_question: dict[Hashable, list[int]] = {}
    for row, question in enumerate(questions):
        by_question.setdefault(question, []).append(row)
    rng = random.Random(seed)
    count = max(1, round(sum(lengths) / settings.batch_tokens))
    steps: list[list[list[int]]] = []
    for _ in range(settings.epochs):
        units = []
        for rows in rng.sample(list(by_question.values()), len(by_question)):
            units += _divide(rng.sample(rows, len(rows)), lengths, settings.batch_tokens)
        epoch: list[list[list[int]]] = [[] for _ in range(count)]
        done, share = 0.0, sum(lengths) / count
        for unit in units:
            tokens = sum(lengths[row] for row in unit)
            epoch[min(count - 1, int((done + tokens / 2) / share))].append(unit)
            done += tokens
        steps += [step for step in epoch if step]
    return Plan(steps)


def _divide(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """The rows in runs of at most `limit` tokens; a longer row is a run of its own."""
    runs: list[list[int]] = []
    room = 0
    for row in rows:
        if not runs or lengths[row] > room:
            runs.append([])
            room = limit
        runs[-1].append(row)
        room -= lengths[row]
    return runs


# ---------------------------------------------------------------- passes


@dataclass(slots=True)
class Packed:
    """The tokens of a forward pass, parents before children.

    `parent[i]` is the index of the token before token i, −1 for the first. `block[i]` is 0 for what all questions begin
    with and counts the questions from 1. `targets[at, label]` is the weight of a label learned from token `at`.
    """

    ids: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    targets: Counter[tuple[int, float]] = field(default_factory=Counter)

    @property
    def blocks(self) -> int:
        return max(self.block) + 1


def pack(units: Sequence[Sequence[Example]], *, shift: bool) -> Packed:
    """One pass of some questions' traces.

    With `shift`, a label is learned from the token before its own (the policy's next token), else from its own token.
    """
    packed = Packed()
    index: dict[tuple[int, int, int], int] = {}
    shared = _common([example.ids for unit in units for example in unit]) if len(units) > 1 else 0
    for number, unit in enumerate(units, start=1):
        for example in unit:
            at = -1
            for depth, (token, label) in enumerate(zip(example.ids, example.labels, strict=True)):
                block = 0 if depth < shared else number
                parent, at = at, index.setdefault((block, at, token), len(packed.ids))
                if at == len(packed.ids):
                    packed.ids.append(token)
                    packed.parent.append(parent)
                    packed.block.append(block)
                learned_at = parent if shift else at
                if label != IGNORED and learned_at >= 0:
                    packed.targets[learned_at, label] += 1
    return packed


def _common(sequences: Sequence[list[int]]) -> int:
    """How many leading ids all sequences have in common."""
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def pack_step(units: Sequence[Sequence[Example]], *, limit: int, workers: int, shift: bool) -> list[Packed]:
    """A step's questions in passes of at most `limit` tokens and of nearly equal size, one for each worker if it pays.

    A question that is longer than that becomes several passes.
    """
    pieces: list[tuple[int, list[Example]]] = []
    for unit in units:
        size = len(pack([unit], shift=shift).ids)
        lengths = [len(example.ids) for example in unit]
        runs = [range(len(unit))] if size <= limit else _divide(range(len(unit)), lengths, limit)
        for run in runs:
            piece = [unit[i] for i in run]
            pieces.append((size if len(runs) == 1 else len(pack([piece], shift=shift).ids), piece))
    pieces.sort(key=lambda piece: -piece[0])
    total = sum(size for size, _ in pieces)
    passes = max(math.ceil(total / limit), min(workers, total // WORTH_A_PASS), 1)
    while True:
        bins: list[list[list[Example]]] = [[] for _ in range(passes)]
        sizes = [0] * passes
        for size, piece in pieces:
            least = sizes.index(min(sizes))
            bins[least].append(piece)
            sizes[least] += size
        if all(size <= limit or len(held) == 1 for size, held in zip(sizes, bins, strict=True)):
            return [pack(held, shift=shift) for held in bins if held]
        passes += 1


# ---------------------------------------------------------------- tensors


def tensors(packed: Packed, *, scale: float, label_dtype: torch.dtype, blocked: bool) -> dict[str, Any]:
    """What the model and the loss take. `weights` are the labels' times `scale`.

    With `blocked`, for `fast.block_attention`, tokens are laid out as a table of one row per block: `blocks` holds the
    tokens of each row, those it sees besides (the shared beginning), and each token's place in the table;
    `attention_mask` says within each row which key a token sees. Otherwise the mask is (1, 1, tokens, tokens).
    0 is seen, a hugely negative number is not.
    """
    positions = np.zeros(len(packed.ids), dtype=np.int64)
    for token, parent in enumerate(packed.parent):
        positions[token] = positions[parent] + 1 if parent >= 0 else 0
    mask, blocks = _blocks(packed) if blocked else (_sees(packed.parent)[None], None)
    hidden = torch.zeros(mask.shape).masked_fill_(torch.from_numpy(~mask), torch.finfo(torch.bfloat16).min)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([packed.ids]),
        "position_ids": torch.from_numpy(positions)[None],
        "attention_mask": hidden[:, None],
    }
    if blocks is not None:
        inputs["blocks"] = tuple(torch.from_numpy(array) for array in blocks)
    at = [at for at, _ in packed.targets]
    return {
        "inputs": inputs,
        "at": torch.tensor(at, dtype=torch.long),
        "labels": torch.tensor([label for _, label in packed.targets], dtype=label_dtype),
        "weights": torch.tensor([scale * weight for weight in packed.targets.values()], dtype=torch.float32),
    }


def _sees(parent: Sequence[int]) -> np.ndarray:
    """For each token, which ones it sees: itself and what its parent sees."""
    sees = np.eye(len(parent), dtype=bool)
    for token, before in enumerate(parent):
        if before >= 0:
            sees[token] |= sees[before]
    return sees


def _blocks(packed: Packed) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The mask (blocks, tokens of a block, keys), and the tokens, the keys and the places of the table."""
    block = np.array(packed.block)
    members = [np.flatnonzero(block == number) for number in range(packed.blocks)]
    shared = members[0]
    rows = [tokens for tokens in members if len(tokens)]
    width = max(map(len, rows))
    queries = np.zeros((len(rows), width), dtype=np.int64)
    keys = np.zeros((len(rows), len(shared) + width), dtype=np.int64)
    mask = np.zeros((len(rows), width, len(shared) + width), dtype=bool)
    places = np.zeros(len(block), dtype=np.int64)
    keys[:, : len(shared)] = shared
    for row, tokens in enumerate(rows):
        n = len(tokens)
        queries[row, :n] = tokens
        places[tokens] = row * width + np.arange(n)
        local = {int(token): i for i, token in enumerate(tokens)}
        own = _sees([local.get(packed.parent[token], -1) for token in tokens])
        if row == 0 and len(shared):
            mask[row, :n, :n] = own
        else:
            keys[row, len(shared) : len(shared) + n] = tokens
            mask[row, :n, : len(shared)] = True
            mask[row, :n, len(shared) : len(shared) + n] = own
    return mask, (queries.reshape(-1), keys.reshape(-1), places)
