"""Four tasks of reasoning-gym whose parts a calculator answers.

SmolLM2-135M adds two digits correctly once in twenty times, so H sends every step of the
arithmetic to the tool `calculator`.
"""

import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import (
    answer_of,
    last_clock,
    last_number,
    match_question,
    number_list,
    number_of,
    whole_number_of,
)

CHAIN_SUMS = (
    {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
    {"min_terms": 4, "max_terms": 5, "min_digits": 3, "max_digits": 3},
    {"min_terms": 6, "max_terms": 8, "min_digits": 4, "max_digits": 4},
)
PRODUCTS = (
    {"min_digits": 2, "max_digits": 2},
    {"min_digits": 3, "max_digits": 3},
    {"min_digits": 4, "max_digits": 5},
)
FILTERS = (
    {"min_numbers": 4, "max_numbers": 4, "max_decimals": 0},
    {"min_numbers": 5, "max_numbers": 7, "max_decimals": 2},
    {"min_numbers": 8, "max_numbers": 10, "max_decimals": 4},
)
INTERVALS = ({"task_types": ["time"]}, {"task_types": ["time_seconds"]})
FILTER = (
    r"^(Keep|Remove) all numbers (larger|smaller) than (-?\d+(?:\.\d+)?) in this list: (\[.*?\])"
)
CLOCK = r"(\d\d:\d\d(?::\d\d)?)"
CLOCK_PARTS = ("{0} // 3600", "{0} // 60 - 60 * ({0} // 3600)", "{0} - 60 * ({0} // 60)")
"""Hours, minutes and seconds of a difference in seconds."""


def calculate(*terms: str) -> Ask:
    """Independent calculations."""
    return Ask(tuple(SubQuestion(term, to="tool:calculator") for term in terms))


def result(question: str, reply: str) -> str:
    """The last number: after the last equals sign, where there is one."""
    return last_number(re.sub(r".*=", "", reply.strip(), flags=re.DOTALL) or reply)


def read_chain_sum(question: str) -> list[str]:
    """Numbers and signs in turn: `["205", "-", "838", "+", "505"]`."""
    return match_question(r"arithmetic problem: (\d+(?: [+-] \d+)+) =$", question)[1].split()


def step_chain_sum(parts: list[str], transcript: Sequence[Exchange]) -> Step:
    """Ask for every step at once, each with the result of the one before it."""
    if transcript:
        return Answer(number_of(transcript[-1]))
    first = SubQuestion(" ".join(parts[:3]), to="tool:calculator")
    later = [
        SubQuestion(f"({{{i}}}) {sign} {number}", needs=(i,), to="tool:calculator")
        for i, (sign, number) in enumerate(zip(parts[3::2], parts[4::2], strict=True))
    ]
    return Ask((first, *later))


def chain_sum() -> GymTask:
    """Sums and differences of several numbers, from left to right.

    State the final answer to the following arithmetic problem: 205 - 838 + 505 =   →   -128
    """
    return GymTask(
        "chain_sum",
        Gym("chain_sum", CHAIN_SUMS),
        step_chain_sum,
        read_chain_sum,
        result,
        answered_by="tool: the calculator adds two numbers",
    )


def read_product(question: str) -> tuple[str, str]:
    """The two numbers."""
    match = match_question(r"multiplication: (\d+) \* (\d+)\.", question)
    return match[1], match[2]


def step_product(numbers: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
    """Multiply by each digit of the second number, then add the shifted rows."""
    number, digits = numbers
    if not transcript:
        return calculate(*(f"{number} * {digit}" for digit in reversed(digits)))
    if len(transcript) == len(digits):
        rows = (str(whole_number_of(row)) + "0" * place for place, row in enumerate(transcript))
        return calculate(" + ".join(rows))
    return Answer(str(whole_number_of(transcript[-1])))


def products() -> GymTask:
    """Long multiplication; a * b and b * a are one question.

    Solve the following multiplication: 205 * 838. Give only the result …   →   171790
    """
    return GymTask(
        "products",
        Gym("products", PRODUCTS),
        step_product,
        read_product,
        result,
        answered_by="tool: the calculator multiplies by one digit, and adds the rows",
        canonical_parts=sorted,
    )


def read_filter(question: str) -> tuple[bool, bool, str, list[str]]:
    """(keep, larger, bound, numbers)."""
    match = match_question(FILTER, question)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", match[4])
    return match[1] == "Keep", match[2] == "larger", match[3], numbers


def step_filter(parts: tuple[bool, bool, str, list[str]], transcript: Sequence[Exchange]) -> Step:
    """Ask for each number's distance from the bound; keep by its sign, and zero is neither."""
    keep, larger, bound, numbers = parts
    if not transcript:
        return calculate(*(f"({number}) - ({bound})" for number in numbers))
    kept: list[str] = []
    for number, exchange in zip(numbers, transcript, strict=True):
        distance = number_of(exchange)
        beyond = bool(distance.strip("-0.")) and distance.startswith("-") != larger
        if beyond == keep:
            kept.append(number)
    return Answer(str(kept))


def number_filtering() -> GymTask:
    """The numbers of a list above or below a bound.

    Remove all numbers larger than -33.9 in this list: ['-39.34', '-4', '60'] …   →   ['-39.34']
    """
    return GymTask(
        "number_filtering",
        Gym("number_filtering", FILTERS),
        step_filter,
        read_filter,
        answer_of(number_list),
        answered_by="tool: the calculator subtracts the bound from a number",
        answer_room=96,
    )


def read_interval(question: str) -> tuple[str, str, str]:
    """(start, end, form of the answer)."""
    form = rf"\b{CLOCK}\D+?{CLOCK}(?!\d|:|\.\d).* in (HH:MM(?::SS)?)\.$"
    match = match_question(form, question)
    return match[1], match[2], match[3]


def seconds_term(clock: str) -> str:
    """A time of day as a sum of seconds, for the calculator."""
    pairs = zip(clock.split(":"), (3600, 60, 1), strict=False)
    return " + ".join(f"{int(part)} * {unit}" for part, unit in pairs)


def step_interval(parts: tuple[str, str, str], transcript: Sequence[Exchange]) -> Step:
    """Ask for the difference in seconds, then for its hours, minutes and seconds."""
    start, end, form = parts
    if not transcript:
        return calculate(f"({seconds_term(end)}) - ({seconds_term(start)})")
    if len(transcript) == 1:
        seconds = str(whole_number_of(transcript[0]))
        units = CLOCK_PARTS[: len(form.split(":"))]
        return calculate(*(unit.format(seconds) for unit in units))
    return Answer(":".join(f"{whole_number_of(exchange):02d}" for exchange in transcript[1:]))


def time_intervals() -> GymTask:
    """The time from one time of day to a later one.

        A video call started at 09:06:46 and ended at 16:19:23. How long was the call? Answer in
        HH:MM:SS.   →   07:12:37

    Dates are left out, and so are times with milliseconds, whose keys in reasoning-gym 0.1.25 are
    often one millisecond short.
    """
    return GymTask(
        "time_intervals",
        Gym("time_intervals", INTERVALS),
        step_interval,
        read_interval,
        answer_of(last_clock),
        answered_by="tool: the calculator subtracts and divides",
    )
