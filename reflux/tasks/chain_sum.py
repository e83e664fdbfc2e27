"""Sums and differences of several numbers, worked out from left to right.

    State the final answer to the following arithmetic problem: 205 - 838 + 505 =   →   -128

H takes the first two numbers, then the result and the next one, and so on. Each step is the
calculator's work: SmolLM2-135M adds two digits right once in twenty times.
"""

import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import last_number, matched, number_said

PARAMETERS = (
    {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
    {"min_terms": 4, "max_terms": 5, "min_digits": 3, "max_digits": 3},
    {"min_terms": 6, "max_terms": 8, "min_digits": 4, "max_digits": 4},
)


def read(question: str) -> list[str]:
    """Numbers and signs in turn: `["205", "-", "838", "+", "505"]`."""
    found = matched(r"arithmetic problem: (\d+(?: [+-] \d+)+) =$", question)
    return found[1].split()


def act(parts: list[str], transcript: Sequence[Exchange]) -> Step:
    """Ask for every step at once, each with the result of the one before it."""
    if transcript:
        return Answer(number_said(transcript[-1]))
    first = SubQuestion(" ".join(parts[:3]), to="tool:calculator")
    later = [
        SubQuestion(f"({{{i}}}) {sign} {number}", needs=(i,), to="tool:calculator")
        for i, (sign, number) in enumerate(zip(parts[3::2], parts[4::2], strict=True))
    ]
    return Ask((first, *later))


def value(question: str, reply: str) -> str:
    """The result: after the last sign of equality, where there is one."""
    return last_number(re.sub(r".*=", "", reply.strip(), flags=re.DOTALL) or reply)


def chain_sum() -> GymTask:
    """The task."""
    leaves = "tool: the calculator adds two numbers"
    return GymTask("chain_sum", Gym("chain_sum", PARAMETERS), act, read, value, leaves)
