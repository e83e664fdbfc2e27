"""Long multiplication.

    Solve the following multiplication: 205 * 838. Give only the result …   →   171790

H multiplies as on paper: the first number by each digit of the second, every row shifted by one
place, then the rows added. The rows and their sum are the calculator's work.
"""

from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.chain_sum import value
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import matched, whole_said

PARAMETERS = (
    {"min_digits": 2, "max_digits": 2},
    {"min_digits": 3, "max_digits": 3},
    {"min_digits": 4, "max_digits": 5},
)


def read(question: str) -> tuple[str, str]:
    """The two numbers."""
    found = matched(r"multiplication: (\d+) \* (\d+)\.", question)
    return found[1], found[2]


def act(numbers: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
    """Rows, then their sum."""
    number, digits = numbers
    if not transcript:
        return Ask(
            tuple(SubQuestion(f"{number} * {d}", to="tool:calculator") for d in reversed(digits))
        )
    if len(transcript) == len(digits):
        rows = [str(whole_said(row)) + "0" * place for place, row in enumerate(transcript)]
        return Ask((SubQuestion(" + ".join(rows), to="tool:calculator"),))
    return Answer(str(whole_said(transcript[-1])))


def products() -> GymTask:
    """The task; a * b and b * a are one question."""
    return GymTask(
        "products",
        Gym("products", PARAMETERS),
        act,
        read,
        value,
        leaves="tool: the calculator multiplies by one digit, and adds the rows",
        canonical_parts=sorted,
    )
