"""Batches split by length: the cheapest split, and nothing lost but padding."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.lengths import groups_of_like_length, split_by_length


def cost(lengths: list[int], groups: list[list[int]], pass_tokens: int) -> int:
    return sum(len(g) * max(lengths[at] for at in g) + pass_tokens for g in groups)


def partitions(rows: list[int]) -> list[list[list[int]]]:
    if not rows:
        return [[]]
    first, rest = rows[0], rows[1:]
    found = []
    for n in range(len(rest) + 1):
        for others in itertools.combinations(rest, n):
            left = [row for row in rest if row not in others]
            found += [[[first, *others], *tail] for tail in partitions(left)]
    return found


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 60))
def test_no_split_is_cheaper(lengths: list[int], pass_tokens: int) -> None:
    groups = groups_of_like_length(lengths, pass_tokens)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    best = min(cost(lengths, p, pass_tokens) for p in partitions(list(range(len(lengths)))))
    assert cost(lengths, groups, pass_tokens) == best


def test_only_padding_is_left_out() -> None:
    lengths = [5, 200, 6, 5]
    ids = torch.zeros(4, 200, dtype=torch.long)
    for at, length in enumerate(lengths):
        ids[at, :length] = torch.arange(1, length + 1) + 1000 * at
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids - 7}
    parts = list(split_by_length(batch))
    assert [part["input_ids"].shape for part in parts] == [(3, 6), (1, 200)]
    kept = torch.cat([part["input_ids"].flatten() for part in parts])
    assert sorted(kept[kept > 0].tolist()) == sorted(ids[ids > 0].tolist())
    assert all(torch.equal(part["labels"], part["input_ids"] - 7) for part in parts)


def test_what_cannot_be_split_is_passed_on_whole() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    odd = {"attention_mask": mask, "pixels": torch.zeros(7)}
    assert [part.keys() for part in split_by_length(odd)] == [odd.keys()]
    assert [part.keys() for part in split_by_length({"input_ids": mask})] == [{"input_ids"}]
