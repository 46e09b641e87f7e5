"""Key-value memory of the sequences at hand: one slab, in which a segment is copied in or out with one operation.

A segment is the keys and values of some consecutive tokens, such as a step; `prefixes.py` keeps those of a tree.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from restmcts.engines.graphs import Graphs
from restmcts.errors import EngineError

ATTENTION = "restmcts_gqa"
_GROW, _ROWS = 32, 8
"""tokens and rows by which a slab grows; on a GPU, where graphs are captured anew for each, in larger steps:"""
_GPU_GROW, _GPU_ROWS = 256, 64
_PLAIN = 1 << 25
"""attention weights up to which a CPU computes them one by one: three times as fast there as fused attention"""

Segment: TypeAlias = torch.Tensor
"""Keys and values of some consecutive tokens, [2, layers, heads, tokens, dim]: half the copies of two tensors."""


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
        self.layers_count, self.heads, self._dims = _probe(model)
        self.length: list[int] = []
        self._most = most_bytes
        self._token_bytes = 2 * self.layers_count * self.heads * max(self._dims) * int(model.dtype.itemsize)
        self._slab = torch.empty(0)
        self._row_capacity = self._token_capacity = 0
        self._grow, self._grow_rows = (_GROW, _ROWS) if self.device.type == "cpu" else (_GPU_GROW, _GPU_ROWS)
        self._at: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self._span = (0, 0, 0)
        self._graphs = Graphs(self._decode, self.device)

    def __len__(self) -> int:
        return len(self.length)

    def room(self, width: int) -> int:
        """How many rows of `width` tokens there may be; at least one."""
        if self._most is None:
            return sys.maxsize
        rows = self._most // (self._token_bytes * _rounded(max(width, 1), self._grow))
        return max(rows // self._grow_rows * self._grow_rows, 1)

    def append(self, segments: Sequence[Segment] = ()) -> int:
        """Take a new row, filled with `segments`; returns its index."""
        row = len(self.length)
        self.length.append(0)
        self._reserve(row + 1, sum(tokens_of(segment) for segment in segments))
        if len(segments) > 1 and self.device.type != "cpu":  # there, launching a copy costs more than the copy
            segments = [torch.cat(list(segments), dim=3)]
        for segment in segments:
            start = self.length[row]
            self.length[row] += tokens_of(segment)
            self._slab[:, :, row, :, start : self.length[row]] = segment
        return row

    def fork(self, row: int) -> int:
        """Take a new row equal to `row`."""
        copy, length = len(self.length), self.length[row]
        self.length.append(length)
        self._reserve(copy + 1, length)
        self._slab[:, :, copy, :, :length] = self._slab[:, :, row, :, :length]
        return copy

    def release(self, row: int) -> int:
        """Free `row`; the last row takes its place. Returns the index that row had (equal to `row` if it was last)."""
        last = len(self.length) - 1
        if row != last:
            length = self.length[last]
            self._slab[:, :, row, :, :length] = self._slab[:, :, last, :, :length]
            self.length[row] = length
        self.length.pop()
        return last

    def clear(self) -> None:
        """Free all rows; the memory is kept."""
        self.length.clear()

    def free(self) -> None:
        """Free all rows and their memory."""
        self.length.clear()
        self._graphs.forget()
        self._slab = torch.empty(0)
        self._row_capacity = self._token_capacity = 0

    def blank(self, row: int) -> None:
        """Forget what a row holds: what is no number would reach others, for 0 times it is no number either."""
        self._slab[:, :, row] = 0

    def cut(self, row: int, start: int, stop: int) -> Segment:
        """A copy of tokens start … stop−1 of a row."""
        return self._slab[:, :, row, :, start:stop].clone()

    def forward(self, first: int, new: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append `new[i]` (ids, at least one each) to row first + i; hidden state at each row's last new token."""
        if max(map(len, new)) == 1 and first == 0 and len(new) == len(self):
            hidden = self._replayed([ids[0] for ids in new])
            if hidden is not None:
                return hidden
        states = self.states(first, new)
        return states[torch.arange(len(new)), torch.tensor([len(ids) - 1 for ids in new])]

    @torch.inference_mode()
    def _replayed(self, new: Sequence[int]) -> torch.Tensor | None:
        """Append one token to every row by a captured step; None where there is none."""
        size = self._graphs.size(len(new), max(self.length) + 1)
        if size is None or size[0] > self.room(size[1]):
            return None
        self._reserve(*size)
        hidden = self._graphs.step(size, new, self.length)
        if hidden is not None:
            self.length = [length + 1 for length in self.length]
        return hidden

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, span: int) -> torch.Tensor:
        """One token for each of the first len(ids) rows, of tensors on the device alone: hidden states [rows, hidden].

        A row that is not in use computes something at its first position, which nothing reads.
        """
        count = len(ids)
        self._at, self._span = (torch.arange(count, device=self.device), positions), (0, count, span)
        hidden = torch.arange(span, device=self.device) > positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        out = self._run(ids[None], mask.masked_fill_(hidden, float("-inf"))[:, None, None], positions[None], None)
        return out[0]

    def _run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        table: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """The model's forward pass over the new tokens of all rows as one sequence: [1, tokens, hidden]."""
        out = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self,
            use_cache=True,
            table=table,
        )
        return torch.as_tensor(out.last_hidden_state)

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
        hidden = torch.arange(span, device=self.device) > start[:, :, None].to(self.device)
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        mask = mask.masked_fill_(hidden, float("-inf"))[:, None]
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
        ids = torch.tensor([[token for ids in new for token in ids]], device=self.device)
        out = self._run(ids, mask, positions[None].to(self.device), table)
        for i, count in enumerate(counts):
            self.length[first + i] += count
        # what is no token repeats the first one
        return out[0][there.to(self.device)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer: write the new keys and values in place, give back the rows' whole span."""
        rows, positions = self._at
        first, count, span = self._span
        keys, values = (self._slab[i, layer_idx, ..., :dim] for i, dim in enumerate(self._dims))
        keys[rows, :, positions] = key_states[0].transpose(0, 1)
        values[rows, :, positions] = value_states[0].transpose(0, 1)
        return keys[first : first + count, :, :span], values[first : first + count, :, :span]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def _reserve(self, rows: int, tokens: int) -> None:
        if rows <= self._row_capacity and tokens <= self._token_capacity:
            return
        self._graphs.forget()
        rows, tokens = _rounded(max(rows, len(self)), self._grow_rows), _rounded(max(tokens, *self.length), self._grow)
        old_rows, old_tokens = self._row_capacity, self._token_capacity
        if self.device.type != "cpu":
            rows = max(rows, min(2 * old_rows, self.room(max(tokens, old_tokens))))
        self._row_capacity, self._token_capacity = max(old_rows, rows), max(old_tokens, tokens)
        if self._row_capacity > self.room(self._token_capacity):  # many rows once, and long ones another time
            self._row_capacity, self._token_capacity = rows, tokens
        old_rows, old_tokens = min(old_rows, rows), min(old_tokens, tokens)
        size = (2, self.layers_count, self._row_capacity, self.heads, self._token_capacity, max(self._dims))
        # zeros, not empty: padding may be multiplied by a weight of 0, and 0 · NaN is NaN
        new = torch.zeros(size, dtype=self.model.dtype, device=self.device)
        if old_rows and old_tokens:
            new[:, :, :old_rows, :, :old_tokens] = self._slab[:, :, :old_rows, :, :old_tokens]
        self._slab = new


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to


def tokens_of(segment: Segment) -> int:
    """How many tokens a segment holds."""
    return int(segment.shape[3])


def _probe(model: Any) -> tuple[int, int, tuple[int, int]]:
    """Layers, heads, and the sizes of a key and a value, read off one forward pass of one token."""
    with torch.inference_mode():
        out = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    shapes = set()
    layers = getattr(out.past_key_values, "layers", [])
    for layer in layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and keys.dim() == 4:
            shapes.add((keys.shape[1], keys.shape[3], values.shape[3]))
    if len(shapes) != 1:
        raise EngineError(
            f"models of type {model.config.model_type!r} keep no plain key-value cache; use another model or engine"
        )
    heads, key_dim, value_dim = shapes.pop()
    return len(layers), heads, (key_dim, value_dim)
