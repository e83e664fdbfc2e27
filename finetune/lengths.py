"""Splits a batch of rows of unlike length into groups that need little padding.

The rows that make up an optimiser step stay the same, so unlike sorting the data set by length it
leaves what is learned alone: only the padding goes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

PASS_TOKENS = 64
"""What one more pass over the model costs, in tokens of a pass."""


def groups_of_like_length(
    lengths: Sequence[int], pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """The split of rows into groups that costs least; each group is a list of row numbers.

    A group of n rows costs n times its longest row plus `pass_tokens`, in tokens. The cheapest
    split keeps the order of the lengths, so it is found by dynamic programming over the sorted
    rows, in O(len(lengths)²).
    """
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    best: list[tuple[int, int]] = [(0, 0)]
    """By number of rows: the least cost, and where the last group begins."""
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(
            min(
                (best[start][0] + (end - start) * longest + pass_tokens, start)
                for start in range(end)
            )
        )
    groups = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def split_by_length(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a padded batch in groups of like length, without the padding at their right.

    Every tensor of `batch` must be (rows, tokens, ...); a batch that holds anything else, or no
    `attention_mask`, is passed on whole.
    """
    mask = batch.get("attention_mask")
    if mask is None or any(
        not isinstance(value, torch.Tensor) or value.shape[:2] != mask.shape
        for value in batch.values()
    ):
        yield dict(batch)
        return
    lengths = [1 + max(itertools.chain([0], row.nonzero().flatten().tolist())) for row in mask]
    for rows in groups_of_like_length(lengths):
        tokens = max(lengths[row] for row in rows)
        yield {key: value[rows, :tokens] for key, value in batch.items()}
