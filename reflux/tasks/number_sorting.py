"""Numbers in ascending or descending order.

    Sort these numbers in descending order: -39.34, -21.0, 60.0 …   →   ['60.0', '-21.0', '-39.34']

H runs a merge sort. Which of two numbers is larger it asks the calculator: the sign of their
difference tells. The package's scorer lets each number be off by 1.
"""

from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import matched, number_list, number_said
from reflux.tasks.sorting import Pair, merge_sort

PARAMETERS = (
    {"min_numbers": 4, "max_numbers": 4, "max_decimals": 0},
    {"min_numbers": 5, "max_numbers": 7, "max_decimals": 1},
    {"min_numbers": 8, "max_numbers": 10, "max_decimals": 2},
)


def read(question: str) -> tuple[list[str], bool]:
    """The numbers as they are written, and whether they are to ascend."""
    found = matched(r"Sort these numbers in (a|de)scending order: (-?\d[^\n]*)\n", question)
    return found[2].split(", "), found[1] == "a"


def act(parts: tuple[list[str], bool], transcript: Sequence[Exchange]) -> Step:
    """Ask for the differences that the merge sort needs next."""
    numbers, ascending = parts
    known: dict[Pair, bool] = {}
    for exchange in transcript:
        left, _, right = exchange.question.strip("()").partition(") - (")
        below = number_said(exchange).startswith("-")
        known[left, right] = below if ascending else not below
    order = merge_sort(numbers, known)
    if isinstance(order, list):
        return Answer(str(order))
    return Ask(tuple(SubQuestion(f"({a}) - ({b})", to="tool:calculator") for a, b in sorted(order)))


def number_sorting() -> GymTask:
    """The task; the order of the numbers and the direction make no other question."""
    return GymTask(
        "number_sorting",
        Gym("number_sorting", PARAMETERS),
        act,
        read,
        lambda question, reply: number_list(reply),
        leaves="tool: the calculator subtracts two numbers",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=96,
    )
