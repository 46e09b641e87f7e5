"""The prefixes that a tree's rows grow from, each computed once and kept as long as there is room.

A path in a search tree is a chain of segments (shared prompt, question, step, step, …). `PrefixCache` keeps the
keys and values of each segment once, under the ids of the whole prefix; `PrefixModel` computes what is not there. So a
step is computed once, when it is generated or first scored, and never again by its descendants.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from restmcts.engines.kv import Rows, Segment, tokens_of

PREFILL_TOKENS, GPU_PREFILL_TOKENS = 1024, 8192
"""tokens computed in one go; bounds the time until running rows get their next token"""
_PADDED, _SMALL = 4, 128
"""how much attention may be padded; of fewer tokens than so many, anything: a further pass costs more"""


class PrefixCache:
    """Segments by the ids of the whole prefix that ends with them; the least recently used go first."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity = capacity_bytes
        self.size = 0
        self._segments: OrderedDict[tuple[int, ...], Segment] = OrderedDict()

    def __contains__(self, prefix: tuple[int, ...]) -> bool:
        return prefix in self._segments

    def put(self, prefix: tuple[int, ...], segment: Segment) -> None:
        if prefix in self._segments:
            return
        self._segments[prefix] = segment
        self.size += _bytes(segment)
        while self.size > self.capacity and self._segments:
            _, old = self._segments.popitem(last=False)
            self.size -= _bytes(old)

    def longest(self, ids: Sequence[int], ends: Sequence[int]) -> tuple[list[Segment], int]:
        """The cached segments that `ids` begins with, cut at `ends` (ascending), and how many tokens they cover."""
        found: list[Segment] = []
        covered = 0
        for end in ends:
            prefix = tuple(ids[:end])
            segment = self._segments.get(prefix)
            if segment is None or tokens_of(segment) != end - covered:
                break
            self._segments.move_to_end(prefix)
            found.append(segment)
            covered = end
        return found, covered


def _bytes(segment: Segment) -> int:
    return int(segment.nbytes)


@dataclass(frozen=True, slots=True)
class Chain:
    """A prefix as a chain of segments: `ids`, cut at `ends` (ascending; the last is len(ids))."""

    ids: list[int]
    ends: list[int]


class PrefixModel:
    """A backbone that computes each segment of a tree once."""

    def __init__(self, model: Any, cache_bytes: int, rows_bytes: int | None = None) -> None:
        self.cache = PrefixCache(cache_bytes)
        self._model = model
        self._rows = Rows(model, rows_bytes)
        self._most = PREFILL_TOKENS if model.device.type == "cpu" else GPU_PREFILL_TOKENS

    def forget(self) -> None:
        """Free all memory."""
        self.cache = PrefixCache(self.cache.capacity)
        self._rows.free()

    def shrink(self) -> None:
        """Free all memory, and take half as much from now on."""
        self.forget()
        self.cache.capacity //= 2
        self._most = max(self._most // 2, 1)

    @torch.inference_mode()
    def extend(self, chains: Sequence[Chain]) -> tuple[torch.Tensor, list[int]]:
        """Compute the last segment of every chain and keep all its segments.

        Returns the hidden state at each chain's last token, [len(chains), hidden], and the number of tokens computed
        for it. A chain that another one continues is read on the way, so all prefixes of a path cost one forward pass;
        what several chains begin with and is not cached is computed first, once.
        """
        wanted = {tuple(chain.ids): chain for chain in chains}
        states: dict[tuple[int, ...], torch.Tensor] = {}
        computed: Counter[tuple[int, ...]] = Counter()
        # What had been cached before is not computed on the way, and its states are not kept: its last segment is
        # computed after what continues it.
        while missing := {ids: chain for ids, chain in wanted.items() if ids not in states}:
            self._extend(missing, states, computed)
        counts = [computed.pop(tuple(chain.ids), 0) for chain in chains]
        return torch.stack([states[tuple(chain.ids)] for chain in chains]), counts

    def _extend(
        self,
        wanted: Mapping[tuple[int, ...], Chain],
        states: dict[tuple[int, ...], torch.Tensor],
        computed: Counter[tuple[int, ...]],
    ) -> None:
        """Compute those of the `wanted` chains that no other one continues, and note the states at all segments' ends.

        `computed` counts tokens under the chain that they were computed for.
        """
        inner = {ids: [tuple(ids[:end]) for end in chain.ends[:-1]] for ids, chain in wanted.items()}
        passed = {prefix for prefixes in inner.values() for prefix in prefixes}
        last = [ids for ids in wanted if ids not in passed]
        uses = Counter(prefix for ids in last for prefix in inner[ids] if prefix not in self.cache)
        stems: dict[tuple[int, ...], Chain] = {}
        owner: dict[tuple[int, ...], tuple[int, ...]] = {}
        for ids in last:
            shared = next((prefix for prefix in reversed(inner[ids]) if uses[prefix] > 1), None)
            if shared is not None and shared not in stems:
                ends = wanted[ids].ends
                stems[shared] = Chain(list(shared), ends[: ends.index(len(shared)) + 1])
                owner[shared] = ids
        if stems:
            before: Counter[tuple[int, ...]] = Counter()
            self._extend(stems, states, before)
            for prefix, count in before.items():
                computed[owner[prefix]] += count
        found = {ids: self.cache.longest(ids, wanted[ids].ends[:-1]) for ids in last}
        for batch in _batches([len(ids) - found[ids][1] for ids in last], self._most):
            for part in self._that_fit([last[i] for i in batch]):
                self._compute([(wanted[ids], *found[ids]) for ids in part], states)
        for ids in last:
            computed[ids] += len(ids) - found[ids][1]

    def _that_fit(self, batch: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
        """A batch in parts whose keys and values, cached ones included, have room at once."""
        while batch:
            count = min(len(batch), self._rows.room(max(map(len, batch))))
            yield batch[:count]
            batch = batch[count:]

    def _compute(
        self, batch: Sequence[tuple[Chain, list[Segment], int]], states: dict[tuple[int, ...], torch.Tensor]
    ) -> None:
        """One forward pass for the chains of a batch, each with its cached segments and the tokens they cover."""
        rows = self._rows
        rows.clear()
        for _, segments, _ in batch:
            rows.append(segments)
        hidden = rows.states(0, [chain.ids[covered:] for chain, _, covered in batch])
        for row, (chain, _, covered) in enumerate(batch):
            start = covered
            for end in chain.ends:
                if end > start:
                    prefix = tuple(chain.ids[:end])
                    self.cache.put(prefix, rows.cut(row, start, end))
                    states[prefix] = hidden[row, end - 1 - covered]
                    start = end


def _batches(lengths: Sequence[int], most: int = PREFILL_TOKENS) -> list[list[int]]:
    """Indices in groups of similar length, bounded in tokens and in what attention pads them to."""
    groups: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = (len(groups[-1]) + 1) * lengths[groups[-1][0]] if groups else 0
        if not groups or tokens + lengths[i] > most or padded > _PADDED * max(tokens, _SMALL):
            groups.append([])
            tokens = 0
        groups[-1].append(i)
        tokens += lengths[i]
    return groups
