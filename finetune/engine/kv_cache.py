"""The keys and values of rows that are decoded together, behind a beginning that they share.

Each row has a slot: its columns end where all others' end, so that a step writes one column for
all, and begin where its text does; a mask hides what stands before. What all rows begin with is
kept once, not once a row, and attended to in one product for all of them (as in Hydragen,
arXiv 2402.05099).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

ATTENTION = "reflux_slots"
"""The name of `attend` among transformers' attention functions."""
COLUMNS = 64
"""Columns that are made at once."""
HIDDEN = torch.finfo(torch.float32).min
"""Added to the score of a column that is not to be seen; infinite, a row that sees none is NaN."""


@dataclass(frozen=True)
class SharedPrefix:
    """What several prompts begin with, read once."""

    ids: tuple[int, ...] = ()
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Keys and values of each layer, (key heads, tokens, size)."""


class KVCache:
    """The slots of rows that share a beginning; to transformers' layers it is their cache.

    Slots 0 to `len(slots)` are taken. Before a forward, `read` or `step` says what it will write.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (
            config.num_hidden_layers,
            2,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )
        self._options: Any = {"dtype": dtype, "device": device}
        self._store: Any = None  # (layers, 2, rows, key heads, columns, size)
        self._begins: list[int] = []
        self._end = 0
        """All rows end before this column."""
        self._window = (slice(0, 0), slice(0, 0), 0)

    def __len__(self) -> int:
        return len(self._begins)

    def read(self, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Take slots for prompts of so many tokens each, which come next, padded in front.

        Returns the mask to add (rows, 1, tokens, columns) and the places (rows, tokens) of the
        tokens in their own texts, the beginning not counted.
        """
        width, taken = max(lengths), len(self)
        self._make_room(taken + len(lengths), width)
        self._begins += [self._end - length for length in lengths]
        self._window = (
            slice(taken, len(self)),
            slice(self._end - width, self._end),
            self._end - width,
        )
        device = self._options["device"]
        columns = torch.arange(width, device=device)
        first = width - torch.tensor(lengths, device=device)  # (rows)
        seen = (columns >= first[:, None, None]) & (columns[:, None] >= columns)
        return _to_add(seen), (columns - first[:, None]).clamp(min=0)

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One more column for every row; returns as `read`."""
        self._make_room(len(self), 0)
        lowest = min(self._begins)
        self._window = (slice(0, len(self)), slice(self._end, self._end + 1), lowest)
        self._end += 1
        device = self._options["device"]
        begins = torch.tensor(self._begins, device=device)[:, None]
        columns = torch.arange(lowest, self._end, device=device)
        return _to_add((columns >= begins)[:, None]), self._end - 1 - begins

    def leave(self, gone: Sequence[int]) -> list[int]:
        """Empty slots; the last rows move into the gaps. Returns, by slot, who is there now."""
        left = [at for at in range(len(self)) if at not in gone]
        order = list(range(len(left)))
        gaps = [at for at in order if at in gone]
        moved = [at for at in left if at >= len(left)]
        for gap, row in zip(gaps, moved, strict=True):
            order[gap] = row
        if moved:
            lowest = min(self._begins[at] for at in left)
            live = self._store[..., lowest : self._end, :]
            live[:, :, gaps] = live[:, :, moved]
        self._begins = [self._begins[at] for at in order]
        if not left:
            self._end = 0
        return order

    def layers(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values of the first row, layer by layer, (key heads, tokens, size)."""
        own = self._store[:, :, 0, :, self._begins[0] : self._end].clone()
        return tuple((layer[0], layer[1]) for layer in own)

    def rest(self) -> None:
        """Give the memory back where no slot is taken."""
        if not self._begins:
            self._store = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new columns; returns all that the rows may see, without a copy."""
        rows, columns, lowest = self._window
        kept = self._store[layer, :, rows]
        kept[0, :, :, columns], kept[1, :, :, columns] = keys, values
        seen = kept[..., lowest : columns.stop, :]
        return seen[0], seen[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns before those that are written next."""
        return self._window[1].start - self._window[2]

    def _make_room(self, rows: int, width: int) -> None:
        """For so many rows, `width` columns up to the end, and one behind it."""
        store, end = self._store, self._end
        if store is not None and rows <= store.shape[2] and width <= end < store.shape[4]:
            return
        lowest = min(self._begins, default=end)
        live = end - lowest
        self._end = max(live, width)
        layers, two, heads, size = self._shape
        made = 0 if store is None else store.shape[2]
        capacity = rows if rows <= made else max(rows, 2 * made)
        # Zeros: what no row has written yet is hidden by a weight of zero, which NaN survives.
        self._store = torch.zeros(
            layers, two, capacity, heads, self._end + COLUMNS, size, **self._options
        )
        taken = len(self)
        if taken and store is not None:
            self._store[:, :, :taken, :, self._end - live : self._end] = store[
                :, :, :taken, :, lowest:end
            ]
        self._begins = [begin + self._end - end for begin in self._begins]


def _to_add(seen: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, columns) of truths as what is added to the scores."""
    hidden = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, HIDDEN)
    return hidden[:, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    beginning: SharedPrefix,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to a shared beginning and the row's own columns, in one softmax.

    query (rows, heads, tokens, size); key and value (rows, key heads, columns, size), which are
    not repeated for the heads that share them. Returns (rows, tokens, heads, size).
    """
    rows, heads, tokens, size = query.shape
    key_heads = key.shape[1]
    asked = query.reshape(rows, key_heads, -1, size)
    scores = (asked @ key.transpose(-1, -2)).view(rows, key_heads, -1, tokens, key.shape[2])
    scores = scores.float().mul_(scaling).add_(attention_mask[:, None])
    if not beginning.ids:
        weights = scores.softmax(-1).to(query.dtype).view(rows, key_heads, -1, key.shape[2])
        out = weights @ value
    else:
        keys, values = beginning.layers[module.layer_idx]  # type: ignore[index]
        max_concurrency = asked.transpose(0, 1).reshape(key_heads, -1, size)
        there = (max_concurrency @ keys.transpose(-1, -2)).view(
            key_heads, rows, -1, tokens, len(beginning.ids)
        )
        there = there.transpose(0, 1).float().mul_(scaling)
        weights = torch.cat([there, scores], -1).softmax(-1).to(query.dtype)
        weights = weights.view(rows, key_heads, -1, weights.shape[-1])
        shared, own = weights.split([len(beginning.ids), key.shape[2]], -1)
        out = own @ value
        shared = shared.transpose(0, 1).reshape(key_heads, -1, len(beginning.ids))
        out = out + (shared @ values).view(key_heads, rows, -1, size).transpose(0, 1)
    return out.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
