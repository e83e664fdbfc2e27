"""Merge sort by questions: H orders things that it cannot compare, by asking about pairs.

H keeps no state between steps, so each step sorts anew with the comparisons answered so far, and
asks all that are missing: the halves go on side by side.
"""

from collections.abc import Mapping, Sequence

Pair = tuple[str, str]


def merge_sort(items: Sequence[str], known: Mapping[Pair, bool]) -> list[str] | set[Pair]:
    """The items in order, or the comparisons that must be known before it can go on.

    `known[left, right]` is whether left may stand before right.
    """
    if len(items) < 2:
        return list(items)
    middle = len(items) // 2
    first, second = merge_sort(items[:middle], known), merge_sort(items[middle:], known)
    if isinstance(first, set) or isinstance(second, set):
        return {pair for half in (first, second) if isinstance(half, set) for pair in half}
    left, right = list(first), list(second)
    merged: list[str] = []
    while left and right:
        pair = (left[0], right[0])
        if pair not in known:
            return {pair}
        merged.append((left if known[pair] else right).pop(0))
    return merged + left + right
