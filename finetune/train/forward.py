"""Forward passes of rows without training: what a model makes of the counted tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reflux.finetune.data.encoding import IGNORED, Encoded

BATCH = 8
"""Sequences at once."""


@dataclass(frozen=True)
class Batch:
    """Sequences, padded to one width."""

    ids: torch.Tensor
    """(rows, tokens)."""
    mask: torch.Tensor
    """(rows, tokens), 0 on padding."""
    labels: torch.Tensor
    """(rows, tokens - 1), of the tokens that each position predicts."""

    @property
    def counted(self) -> torch.Tensor:
        """(rows, tokens - 1): whether the loss counts what is predicted."""
        return self.labels != IGNORED

    def logits(self, model: Any) -> torch.Tensor:
        """(counted, vocabulary), row by row."""
        found = model(input_ids=self.ids, attention_mask=self.mask).logits[:, :-1]
        return found[self.counted].float()


def batches(sequences: Sequence[Encoded], device: Any, size: int = BATCH) -> Iterator[Batch]:
    """Sequences in order, some at a time."""
    for begin in range(0, len(sequences), size):
        some = sequences[begin : begin + size]
        width = max(len(each["input_ids"]) for each in some)

        def filled(key: str, value: int, some: Any = some, width: int = width) -> torch.Tensor:
            rows = [[*each[key], *[value] * (width - len(each[key]))] for each in some]
            return torch.tensor(rows, device=device)

        mask = (filled("labels", IGNORED - 1) != IGNORED - 1).long()
        yield Batch(filled("input_ids", 0), mask, filled("labels", IGNORED)[:, 1:])
