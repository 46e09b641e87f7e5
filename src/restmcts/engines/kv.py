"""Key-value memory for tree search: rows being decoded, and a cache of the prefixes they grow from.

A path in a search tree is a chain of segments (shared prompt, question, step, step, …). `PrefixCache` keeps the
keys and values of each segment once, under the ids of the whole prefix; `Rows` holds the sequences of the batch at
hand in one slab, in which a segment is copied in or out with a single operation. So a step is computed once,
when it is generated or first scored, and never again by its descendants.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from restmcts.errors import EngineError

ATTENTION = "restmcts_gqa"
PREFILL_TOKENS = 1024
"""tokens computed in one go; bounds the time until running rows get their next token"""
_PADDED, _SMALL = 4, 128
"""how much attention may be padded; of fewer tokens than so many, anything: a further pass costs more"""
_GROW, _ROWS = 32, 8
"""tokens and rows by which a slab grows"""
_PLAIN = 1 << 25
"""attention weights up to which a CPU computes them one by one: three times as fast there as fused attention"""

Segment = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of some consecutive tokens, each [layers, heads, tokens, dim]."""


def _gqa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    table: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the new tokens of all rows, which come as one sequence, to what their own row holds.

    query [1, heads, tokens, dim]; key and value [rows, key heads, span, dim]; mask [rows, 1, new, span]. `table` says
    which token stands where in [rows, new], and where in it each token is found; None when every row has one.
    The query heads of one key head are taken as further queries, so keys are never repeated.
    """
    heads, dim = query.shape[1], query.shape[3]
    rows, key_heads = key.shape[:2]
    queries = query[0].transpose(0, 1)
    if table is not None:
        queries = queries[table[0]]
    new = len(queries) // rows
    q = queries.view(rows, new, key_heads, -1, dim).permute(0, 2, 3, 1, 4).reshape(rows, key_heads, -1, dim)
    if attention_mask is not None and new > 1:
        attention_mask = attention_mask.repeat(1, 1, heads // key_heads, 1)
    plain = q.device.type == "cpu" and rows * heads * new * key.shape[2] <= _PLAIN
    if plain and attention_mask is not None:
        scores = torch.matmul(q * (dim**-0.5 if scaling is None else scaling), key.transpose(2, 3))
        out = torch.matmul(scores.add_(attention_mask).softmax(dim=-1), value)
    else:
        out = torch.nn.functional.scaled_dot_product_attention(q, key, value, attn_mask=attention_mask, scale=scaling)
    out = out.view(rows, key_heads, -1, new, out.shape[-1]).permute(0, 3, 1, 2, 4).reshape(rows * new, heads, -1)
    return (out if table is None else out[table[1]])[None], None


AttentionInterface.register(ATTENTION, _gqa_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Rows(Cache):
    """A slab of sequences for one model; what transformers sees as its cache during `forward`.

    Row i holds `length[i]` tokens. Rows 0 … n−1 are in use; the order of rows has no meaning. The slab takes at most
    `most_bytes` as long as no more rows are opened than there is `room` for.
    """

    def __init__(self, model: Any, most_bytes: int | None = None) -> None:
        super().__init__(layers=[])
        self.model = model
        self.device = model.device
        self.key_shape, self.value_shape, self.layers_count = _probe(model)
        self.length: list[int] = []
        self._most = most_bytes
        numbers = self.key_shape[0] * self.key_shape[1] + self.value_shape[0] * self.value_shape[1]
        self._token_bytes = numbers * self.layers_count * int(model.dtype.itemsize)
        self._keys = self._values = torch.empty(0)
        self._row_capacity = self._token_capacity = 0
        self._at: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self._span = (0, 0, 0)

    def __len__(self) -> int:
        return len(self.length)

    def room(self, width: int) -> int:
        """How many rows of `width` tokens there may be; at least one."""
        if self._most is None:
            return sys.maxsize
        return max(self._most // (self._token_bytes * _rounded(max(width, 1), _GROW)) // _ROWS * _ROWS, 1)

    def append(self, segments: Sequence[Segment] = ()) -> int:
        """Take a new row, filled with `segments`; returns its index."""
        row = len(self.length)
        self.length.append(0)
        self._reserve(row + 1, sum(s[0].shape[2] for s in segments))
        for keys, values in segments:
            start = self.length[row]
            stop = start + keys.shape[2]
            self._keys[:, row, :, start:stop] = keys
            self._values[:, row, :, start:stop] = values
            self.length[row] = stop
        return row

    def fork(self, row: int) -> int:
        """Take a new row equal to `row`."""
        copy, length = len(self.length), self.length[row]
        self.length.append(length)
        self._reserve(copy + 1, length)
        self._keys[:, copy, :, :length] = self._keys[:, row, :, :length]
        self._values[:, copy, :, :length] = self._values[:, row, :, :length]
        return copy

    def release(self, row: int) -> int:
        """Free `row`; the last row takes its place. Returns the index that row had (equal to `row` if it was last)."""
        last = len(self.length) - 1
        if row != last:
            length = self.length[last]
            self._keys[:, row, :, :length] = self._keys[:, last, :, :length]
            self._values[:, row, :, :length] = self._values[:, last, :, :length]
            self.length[row] = length
        self.length.pop()
        return last

    def clear(self) -> None:
        """Free all rows; the memory is kept."""
        self.length.clear()

    def free(self) -> None:
        """Free all rows and their memory."""
        self.length.clear()
        self._keys = self._values = torch.empty(0)
        self._row_capacity = self._token_capacity = 0

    def blank(self, row: int) -> None:
        """Forget what a row holds: what is no number would reach others, for 0 times it is no number either."""
        self._keys[:, row] = 0
        self._values[:, row] = 0

    def cut(self, row: int, start: int, stop: int) -> Segment:
        """A copy of tokens start … stop−1 of a row."""
        return self._keys[:, row, :, start:stop].clone(), self._values[:, row, :, start:stop].clone()

    def forward(self, first: int, new: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append `new[i]` (ids, at least one each) to row first + i; hidden state at each row's last new token."""
        return self.states(first, new)[torch.arange(len(new)), torch.tensor([len(ids) - 1 for ids in new])]

    @torch.inference_mode()
    def states(self, first: int, new: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same, with the hidden states at all new tokens: [len(new), most new, hidden], padded on the right."""
        counts = [len(ids) for ids in new]
        width, past = max(counts), self.length[first : first + len(new)]
        span = max(p + width for p in past)
        self._reserve(len(self.length), span)
        if span > self._token_capacity // 2:
            span = self._token_capacity  # whole rows lie in memory one after the other: nothing is copied to multiply
        start = torch.tensor(past)[:, None] + torch.arange(width)
        hidden = torch.arange(span) > start[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype).masked_fill_(hidden, float("-inf"))[:, None]
        rows = torch.repeat_interleave(torch.tensor(counts))
        column = torch.cat([torch.arange(count) for count in counts])
        positions = start[rows, column]
        self._at = ((rows + first).to(self.device), positions.to(self.device))
        self._span = (first, len(new), span)
        there = torch.zeros(len(new), width, dtype=torch.long)  # what is no token is computed as the first one
        there[rows, column] = torch.arange(len(rows))
        table = None
        if width > 1:
            table = (there.flatten().to(self.device), (rows * width + column).to(self.device))
        out = self.model.base_model(
            input_ids=torch.tensor([[token for ids in new for token in ids]], device=self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions[None].to(self.device),
            past_key_values=self,
            use_cache=True,
            table=table,
        )
        for i, count in enumerate(counts):
            self.length[first + i] += count
        # what is no token repeats the first one
        return torch.as_tensor(out.last_hidden_state[0][there.to(self.device)])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer: write the new keys and values in place, give back the rows' whole span."""
        rows, positions = self._at
        self._keys[layer_idx][rows, :, positions] = key_states[0].transpose(0, 1)
        self._values[layer_idx][rows, :, positions] = value_states[0].transpose(0, 1)
        first, count, span = self._span
        return (
            self._keys[layer_idx, first : first + count, :, :span],
            self._values[layer_idx, first : first + count, :, :span],
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def _reserve(self, rows: int, tokens: int) -> None:
        if rows <= self._row_capacity and tokens <= self._token_capacity:
            return
        rows, tokens = _rounded(max(rows, len(self)), _ROWS), _rounded(max(tokens, *self.length), _GROW)
        old_rows, old_tokens = self._row_capacity, self._token_capacity
        self._row_capacity, self._token_capacity = max(old_rows, rows), max(old_tokens, tokens)
        if self._row_capacity > self.room(self._token_capacity):  # many rows once, and long ones another time
            self._row_capacity, self._token_capacity = rows, tokens
        old_rows, old_tokens = min(old_rows, rows), min(old_tokens, tokens)
        self._keys = self._grown(self._keys, self.key_shape, old_rows, old_tokens)
        self._values = self._grown(self._values, self.value_shape, old_rows, old_tokens)

    def _grown(self, old: torch.Tensor, shape: tuple[int, int], rows: int, tokens: int) -> torch.Tensor:
        heads, dim = shape
        size = (self.layers_count, self._row_capacity, heads, self._token_capacity, dim)
        # zeros, not empty: padding may be multiplied by a weight of 0, and 0 · NaN is NaN
        new = torch.zeros(size, dtype=self.model.dtype, device=self.device)
        if rows and tokens:
            new[:, :rows, :, :tokens] = old[:, :rows, :, :tokens]
        return new


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to


def _probe(model: Any) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(heads, dim) of keys, of values, and the number of layers, read off one forward pass of one token."""
    with torch.inference_mode():
        out = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    shapes = set()
    layers = getattr(out.past_key_values, "layers", [])
    for layer in layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and keys.dim() == 4:
            shapes.add((keys.shape[1], keys.shape[3], values.shape[1], values.shape[3]))
    if len(shapes) != 1:
        raise EngineError(
            f"models of type {model.config.model_type!r} keep no plain key-value cache; use another model or engine"
        )
    key_heads, key_dim, value_heads, value_dim = shapes.pop()
    return (key_heads, key_dim), (value_heads, value_dim), len(layers)


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
            if segment is None or segment[0].shape[2] != end - covered:
                break
            self._segments.move_to_end(prefix)
            found.append(segment)
            covered = end
        return found, covered


def _bytes(segment: Segment) -> int:
    return sum(t.numel() * t.element_size() for t in segment)


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
        self._most = PREFILL_TOKENS

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
        self._extend(wanted, states, computed)
        # What had been cached before was not computed on the way, and its states are not kept: its last segment is.
        self._extend({ids: chain for ids, chain in wanted.items() if ids not in states}, states, computed)
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
