"""Key-value memory of the sequences at hand: one slab, in which a segment is copied in or out with one operation.

A segment is the keys and values of some consecutive tokens, such as a step; `prefixes.py` keeps those of a tree.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from restmcts.errors import EngineError

ATTENTION = "restmcts_gqa"
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
