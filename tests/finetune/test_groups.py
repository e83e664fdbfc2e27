"""Rows grouped by length: the cheapest split."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from reflux.finetune.train.packing import groups_of_like_length


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
