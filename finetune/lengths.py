"""Groups the rows of a batch by length, so that laying them side by side takes little padding.

The rows that make up an optimiser step stay the same, so unlike sorting the data set by length it
leaves what is learned alone: only the padding goes.
"""

from collections.abc import Sequence

PASS_TOKENS = 64
"""What one more group costs, in tokens."""


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
