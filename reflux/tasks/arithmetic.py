"""Six tasks of reasoning-gym about numbers and order, whose parts tools answer.

SmolLM2-135M adds two digits correctly once in twenty times, so H sends every step of the
arithmetic to the tool `calculator`. What H cannot compare it sorts by a merge sort, which keeps no
state between steps: each step sorts anew with the comparisons answered so far, and asks for all
that are missing, so both halves go on side by side.
"""

import json
import re
from collections.abc import Mapping, Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import (
    Gym,
    GymTask,
    answer_of,
    ask_tool,
    last_clock,
    last_number,
    match_question,
    number_list,
    number_of,
    reader_of,
    text_of,
    whole_number_of,
    word_list,
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
INTERVALS = ({"task_types": ["time"]}, {"task_types": ["time_seconds"]})
FILTER = (
    r"^(Keep|Remove) all numbers (larger|smaller) than (-?\d+(?:\.\d+)?) in this list: (\[.*?\])"
)
Pair = tuple[str, str]
CLOCK = r"(\d\d:\d\d(?::\d\d)?)"
CLOCK_PARTS = ("{0} // 3600", "{0} // 60 - 60 * ({0} // 3600)", "{0} - 60 * ({0} // 60)")
"""Hours, minutes and seconds of a difference in seconds."""


def result(question: str, reply: str) -> str:
    """The last number: after the last equals sign, where there is one."""
    return last_number(reply.strip().rpartition("=")[2] or reply)


read_chain_sum = reader_of(
    r"arithmetic problem: (\d+(?: [+-] \d+)+) =$", lambda match: match[1].split()
)
"""Numbers and signs in turn: `["205", "-", "838", "+", "505"]`."""


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


def step_product(numbers: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
    """Multiply by each digit of the second number, then add the shifted rows."""
    number, digits = numbers
    if not transcript:
        return ask_tool("calculator", (f"{number} * {digit}" for digit in reversed(digits)))
    if len(transcript) == len(digits):
        rows = (str(whole_number_of(row)) + "0" * place for place, row in enumerate(transcript))
        return ask_tool("calculator", [" + ".join(rows)])
    return Answer(str(whole_number_of(transcript[-1])))


def products() -> GymTask:
    """Long multiplication; a * b and b * a are one question.

    Solve the following multiplication: 205 * 838. Give only the result …   →   171790
    """
    return GymTask(
        "products",
        Gym("products", PRODUCTS),
        step_product,
        reader_of(r"multiplication: (\d+) \* (\d+)\."),
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
        return ask_tool("calculator", (f"({number}) - ({bound})" for number in numbers))
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


def seconds_term(clock: str) -> str:
    """A time of day as a sum of seconds, for the calculator."""
    pairs = zip(clock.split(":"), (3600, 60, 1), strict=False)
    return " + ".join(f"{int(part)} * {unit}" for part, unit in pairs)


def step_interval(parts: tuple[str, str, str], transcript: Sequence[Exchange]) -> Step:
    """Ask for the difference in seconds, then for its hours, minutes and seconds."""
    start, end, form = parts  # Times of day, and the form of the answer.
    if not transcript:
        return ask_tool("calculator", [f"({seconds_term(end)}) - ({seconds_term(start)})"])
    if len(transcript) == 1:
        seconds = str(whole_number_of(transcript[0]))
        units = CLOCK_PARTS[: len(form.split(":"))]
        return ask_tool("calculator", (unit.format(seconds) for unit in units))
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
        reader_of(rf"\b{CLOCK}\D+?{CLOCK}(?!\d|:|\.\d).* in (HH:MM(?::SS)?)\.$"),
        answer_of(last_clock),
        answered_by="tool: the calculator subtracts and divides",
    )


def listed(match: re.Match[str]) -> tuple[list[str], bool]:
    """The items as they are written, and whether the order ascends."""
    return match[2].split(", "), match[1] == "a"


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
    return ask_tool("calculator", (f"({a}) - ({b})" for a, b in sorted(order)))


def number_sorting() -> GymTask:
    """Numbers in ascending or descending order; both orders of all permutations are one question.

        Sort these numbers in descending order: -39.34, -21.0, 60.0 …   →   ['60.0', '-21.0', …]

    The package's scorer accepts each number within 1.
    """
    return GymTask(
        "number_sorting",
        Gym("number_sorting", NUMBERS),
        step_numbers,
        reader_of(r"Sort these numbers in (a|de)scending order: (-?\d[^\n]*)\n", listed),
        answer_of(number_list),
        answered_by="tool: the calculator subtracts two numbers",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=96,
    )


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
    return ask_tool("python", pairs)


def word_sorting() -> GymTask:
    """Words in the order of their Unicode characters, ascending or descending.

        … sort these words in ascending order … : inform, absolute, Vanilla   →   Vanilla, …

    SmolLM2-135M cannot spell a word, so it cannot compare two.
    """
    return GymTask(
        "word_sorting",
        Gym("word_sorting", WORDS),
        step_words,
        reader_of(r"sort these words in (a|de)scending order [^:]*: (\w+(?:, \w+)*)$", listed),
        answer_of(word_list),
        answered_by="tool: Python compares two words",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=64,
    )
