"""The numbers of a list that lie above or below a bound.

    Remove all numbers larger than -33.9 in this list: ['-39.340', '-4', '60'] …   →   ['-39.340']

H asks the calculator how far each number lies from the bound, and keeps by the sign.
"""

import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import matched, number_list, number_said

PARAMETERS = (
    {"min_numbers": 4, "max_numbers": 4, "max_decimals": 0},
    {"min_numbers": 5, "max_numbers": 7, "max_decimals": 2},
    {"min_numbers": 8, "max_numbers": 10, "max_decimals": 4},
)
FORM = r"^(Keep|Remove) all numbers (larger|smaller) than (-?\d+(?:\.\d+)?) in this list: (\[.*?\])"


def read(question: str) -> tuple[bool, bool, str, list[str]]:
    """(keep, larger, bound, numbers)."""
    found = matched(FORM, question)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", found[4])
    return found[1] == "Keep", found[2] == "larger", found[3], numbers


def act(parts: tuple[bool, bool, str, list[str]], transcript: Sequence[Exchange]) -> Step:
    """One difference a number; a number on the bound is neither larger nor smaller."""
    keep, larger, bound, numbers = parts
    if not transcript:
        return Ask(tuple(SubQuestion(f"({n}) - ({bound})", to="tool:calculator") for n in numbers))
    kept: list[str] = []
    for number, exchange in zip(numbers, transcript, strict=True):
        apart = number_said(exchange)
        below = apart.startswith("-")
        beyond = bool(apart.strip("-0.")) and below != larger
        if beyond == keep:
            kept.append(number)
    return Answer(str(kept))


def number_filtering() -> GymTask:
    """The task."""
    return GymTask(
        "number_filtering",
        Gym("number_filtering", PARAMETERS),
        act,
        read,
        lambda question, reply: number_list(reply),
        leaves="tool: the calculator subtracts the bound from a number",
        answer_room=96,
    )
