"""Two tasks of reasoning-gym in which H sorts things that it cannot compare.

H runs a merge sort. It keeps no state between steps: each step sorts anew with the comparisons
answered so far, and asks for all that are missing, so both halves go on side by side.
"""

import json
from collections.abc import Mapping, Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import (
    answer_of,
    match_question,
    number_list,
    number_of,
    text_of,
    word_list,
)

Pair = tuple[str, str]
NUMBERS = (
    {"min_numbers": 4, "max_numbers": 4, "max_decimals": 0},
    {"min_numbers": 5, "max_numbers": 7, "max_decimals": 1},
    {"min_numbers": 8, "max_numbers": 10, "max_decimals": 2},
)
WORDS = (
    {"min_words": 3, "max_words": 3},
    {"min_words": 4, "max_words": 5},
    {"min_words": 6, "max_words": 8},
)


def merge_sort(items: Sequence[str], known: Mapping[Pair, bool]) -> list[str] | set[Pair]:
    """The items in order, or the comparisons that it needs to go on.

    `known[left, right]` is whether left may precede right.
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


def read_numbers(question: str) -> tuple[list[str], bool]:
    """The numbers as they are written, and whether the order ascends."""
    match = match_question(r"Sort these numbers in (a|de)scending order: (-?\d[^\n]*)\n", question)
    return match[2].split(", "), match[1] == "a"


def step_numbers(parts: tuple[list[str], bool], transcript: Sequence[Exchange]) -> Step:
    """Ask for the differences that the merge sort needs; their signs compare the numbers."""
    numbers, ascending = parts
    known: dict[Pair, bool] = {}
    for exchange in transcript:
        left, _, right = exchange.question.strip("()").partition(") - (")
        known[left, right] = number_of(exchange).startswith("-") == ascending
    order = merge_sort(numbers, known)
    if isinstance(order, list):
        return Answer(str(order))
    return Ask(tuple(SubQuestion(f"({a}) - ({b})", to="tool:calculator") for a, b in sorted(order)))


def number_sorting() -> GymTask:
    """Numbers in ascending or descending order; both orders of all permutations are one question.

        Sort these numbers in descending order: -39.34, -21.0, 60.0 …   →   ['60.0', '-21.0', …]

    The package's scorer accepts each number within 1.
    """
    return GymTask(
        "number_sorting",
        Gym("number_sorting", NUMBERS),
        step_numbers,
        read_numbers,
        answer_of(number_list),
        answered_by="tool: the calculator subtracts two numbers",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=96,
    )


def read_words(question: str) -> tuple[list[str], bool]:
    """The words, and whether the order ascends."""
    form = r"sort these words in (a|de)scending order [^:]*: (\w+(?:, \w+)*)$"
    match = match_question(form, question)
    return match[2].split(", "), match[1] == "a"


def step_words(parts: tuple[list[str], bool], transcript: Sequence[Exchange]) -> Step:
    """Ask Python for the comparisons that the merge sort needs next."""
    words, ascending = parts
    known: dict[Pair, bool] = {}
    for exchange in transcript:
        left, right = json.loads(f"[{exchange.question.replace(' < ', ', ')}]")
        precedes = {"True": True, "False": False}.get(text_of(exchange))
        if precedes is None:
            raise ValueError(f"{exchange.answer!r} is neither True nor False")
        known[left, right] = precedes == ascending
    order = merge_sort(words, known)
    if isinstance(order, list):
        return Answer(", ".join(order))
    pairs = (f"{json.dumps(a)} < {json.dumps(b)}" for a, b in sorted(order))
    return Ask(tuple(SubQuestion(pair, to="tool:python") for pair in pairs))


def word_sorting() -> GymTask:
    """Words in the order of their Unicode characters, ascending or descending.

        … sort these words in ascending order … : inform, absolute, Vanilla   →   Vanilla, …

    SmolLM2-135M cannot spell a word, so it cannot compare two.
    """
    return GymTask(
        "word_sorting",
        Gym("word_sorting", WORDS),
        step_words,
        read_words,
        answer_of(word_list),
        answered_by="tool: Python compares two words",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=64,
    )
