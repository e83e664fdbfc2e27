"""The KV cache of rows that are decoded together behind a shared prefix.

Each row has a slot. The columns of all slots end at the same place, so that a step writes one
column for all rows; a mask hides the columns before a row's own text. The shared prefix is stored
once, and attention to it is one product for all rows (as in Hydragen, arXiv 2402.05099).

A layer with a sliding window keeps all columns, too, and a mask hides those outside its window:
rows of some thousand tokens are rare here, and one layout serves all layers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

ATTENTION = "reflux_slots"
"""The name of `attend` among transformers' attention functions."""
COLUMNS = 64
"""Columns allocated at once."""
HIDDEN = torch.finfo(torch.float32).min
"""Added to the score of a hidden column. An infinite value would make a row without visible columns
NaN."""


@dataclass(frozen=True)
class SharedPrefix:
    """Tokens that several prompts begin with, prefilled once."""

    ids: tuple[int, ...] = ()
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Keys and values of each layer, (key heads, tokens, size)."""


@dataclass(frozen=True)
class Columns:
    """What a forward pass sees of the rows' own columns."""

    mask: torch.Tensor
    """Additive, (rows, 1, tokens, columns)."""
    positions: torch.Tensor
    """(rows, tokens), after the shared prefix."""
    _windows: dict[int, "_Windowed"] = field(default_factory=dict[int, "_Windowed"])

    def within(self, window: int | None, prefix: int) -> "_Windowed":
        """The additive masks of layers with a sliding window: (of the prefix's tokens, which is
        None where all are visible, and of the own columns)."""
        tokens, columns = self.mask.shape[2:]
        if window is None or prefix + columns <= window:
            return None, self.mask
        if window not in self._windows:
            device = self.mask.device
            last = torch.arange(columns - tokens, columns, device=device)[:, None]
            near = last - torch.arange(columns, device=device) < window
            own = self.mask.masked_fill(~near, HIDDEN)
            before = self.positions[..., None] + prefix - torch.arange(prefix, device=device)
            self._windows[window] = _additive(before < window), own
        return self._windows[window]


_Windowed = tuple[torch.Tensor | None, torch.Tensor]


class KVCache:
    """The slots of rows that share a prefix, used by transformers' layers as their cache.

    Slots 0 to `len(cache)` are taken. Before a forward pass, `prefill` or `step` selects the
    columns that it writes.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (
            config.num_hidden_layers,
            2,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )
        self._options: Any = {"dtype": dtype, "device": device}
        self._store: Any = None  # (layers, 2, rows, key heads, columns, size)
        self._begins: list[int] = []
        self._end = 0
        """The column after the last token of every row."""
        self._window = (slice(0, 0), slice(0, 0), 0)

    def __len__(self) -> int:
        return len(self._begins)

    def prefill(self, lengths: Sequence[int]) -> Columns:
        """Take slots for prompts of these lengths, padded at the left."""
        width, taken = max(lengths), len(self)
        self._make_room(taken + len(lengths), width)
        self._begins += [self._end - length for length in lengths]
        start = self._end - width
        self._window = (slice(taken, len(self)), slice(start, self._end), start)
        device = self._options["device"]
        columns = torch.arange(width, device=device)
        first = width - torch.tensor(lengths, device=device)  # (rows)
        visible = (columns >= first[:, None, None]) & (columns[:, None] >= columns)
        return Columns(_additive(visible), (columns - first[:, None]).clamp(min=0))

    def step(self) -> Columns:
        """Select the next column for every row."""
        self._make_room(len(self), 0)
        lowest = min(self._begins)
        self._window = (slice(0, len(self)), slice(self._end, self._end + 1), lowest)
        self._end += 1
        device = self._options["device"]
        begins = torch.tensor(self._begins, device=device)[:, None]
        columns = torch.arange(lowest, self._end, device=device)
        return Columns(_additive((columns >= begins)[:, None]), self._end - 1 - begins)

    def free(self, slots: Sequence[int]) -> list[int]:
        """Free slots by moving the last rows into them; returns the former slot of each row."""
        rest = [slot for slot in range(len(self)) if slot not in slots]
        order = list(range(len(rest)))
        gaps = [slot for slot in order if slot in slots]
        moved = [slot for slot in rest if slot >= len(rest)]
        for gap, slot in zip(gaps, moved, strict=True):
            order[gap] = slot
        if moved:
            lowest = min(self._begins[slot] for slot in rest)
            live = self._store[..., lowest : self._end, :]
            live[:, :, gaps] = live[:, :, moved]
        self._begins = [self._begins[slot] for slot in order]
        if not rest:
            self._end = 0
        return order

    def first_row(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values of the first row by layer, each (key heads, tokens, size)."""
        own = self._store[:, :, 0, :, self._begins[0] : self._end].clone()
        return tuple((layer[0], layer[1]) for layer in own)

    def release(self) -> None:
        """Release the memory if no slot is taken."""
        if not self._begins:
            self._store = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new columns; returns a view of the visible columns."""
        rows, columns, lowest = self._window
        slots = self._store[layer, :, rows]
        slots[0, :, :, columns], slots[1, :, :, columns] = keys, values
        visible = slots[..., lowest : columns.stop, :]
        return visible[0], visible[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Visible columns before those that are written next."""
        return self._window[1].start - self._window[2]

    def _make_room(self, rows: int, width: int) -> None:
        """Grow the store for `rows` rows, `width` columns up to the end, and one after it."""
        store, end = self._store, self._end
        if store is not None and rows <= store.shape[2] and width <= end < store.shape[4]:
            return
        lowest = min(self._begins, default=end)
        live = end - lowest
        self._end = max(live, width)
        layers, two, heads, size = self._shape
        allocated = 0 if store is None else store.shape[2]
        capacity = rows if rows <= allocated else max(rows, 2 * allocated)
        # Zeros, because a hidden column has weight zero, and zero times NaN is NaN.
        self._store = torch.zeros(
            layers, two, capacity, heads, self._end + COLUMNS, size, **self._options
        )
        taken = len(self)
        if taken and store is not None:
            self._store[:, :, :taken, :, self._end - live : self._end] = store[
                :, :, :taken, :, lowest:end
            ]
        self._begins = [begin + self._end - end for begin in self._begins]


def _additive(visible: torch.Tensor) -> torch.Tensor:
    """A boolean mask (rows, tokens, columns) as values to add to the scores."""
    mask = torch.zeros(visible.shape, device=visible.device)
    return mask.masked_fill_(~visible, HIDDEN)[:, None]


def max_positions(config: Any) -> int:
    """Tokens for which every rotary embedding of a model is the same.

    Some (LongRoPE, dynamic NTK) turn to other frequencies beyond their original length for the
    whole batch, so a long row would change its neighbors.
    """
    limit = getattr(config, "max_position_embeddings", None) or sys.maxsize
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        original = getattr(config, "original_max_position_embeddings", None)
        return rope.get("original_max_position_embeddings") or original or limit
    return limit


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    prefix: SharedPrefix,
    columns: Columns,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to a shared prefix and the row's own columns, in one softmax.

    query (rows, heads, tokens, size); key and value (rows, key heads, columns, size), not repeated
    for the query heads that share them. Returns (rows, tokens, heads, size). `softcap` bounds the
    scores (Gemma 2, arXiv 2408.00118, section 2).
    """
    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    queries = query.reshape(rows, key_heads, -1, size)
    before, mask = columns.within(sliding_window, len(prefix.ids))
    scores = (queries @ key.transpose(-1, -2)).view(rows, key_heads, -1, tokens, key.shape[2])
    scores = _scaled(scores, scaling, softcap).add_(mask[:, None])
    if not prefix.ids:
        weights = scores.softmax(-1).to(query.dtype).view(rows, key_heads, -1, key.shape[2])
        out = weights @ value
    else:
        keys, values = prefix.layers[module.layer_idx]  # type: ignore[index]
        all_queries = queries.transpose(0, 1).reshape(key_heads, -1, size)
        prefix_scores = (all_queries @ keys.transpose(-1, -2)).view(
            key_heads, rows, -1, tokens, len(prefix.ids)
        )
        prefix_scores = _scaled(prefix_scores.transpose(0, 1), scaling, softcap)
        if before is not None:
            prefix_scores = prefix_scores.add_(before[:, None])
        weights = torch.cat([prefix_scores, scores], -1).softmax(-1).to(query.dtype)
        weights = weights.view(rows, key_heads, -1, weights.shape[-1])
        shared, own = weights.split([len(prefix.ids), key.shape[2]], -1)
        out = own @ value
        shared = shared.transpose(0, 1).reshape(key_heads, -1, len(prefix.ids))
        out = out + (shared @ values).view(key_heads, rows, -1, size).transpose(0, 1)
    return out.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None


def _scaled(scores: torch.Tensor, scaling: float, softcap: float | None) -> torch.Tensor:
    scores = scores.float().mul_(scaling)
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


AttentionInterface.register(ATTENTION, attend)
