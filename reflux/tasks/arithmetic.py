"""Six tasks of reasoning-gym about numbers and order, whose parts tools answer.

SmolLM2-135M adds two digits correctly once in twenty times, so H sends every step of the
arithmetic to the tool `calculator`. What H cannot compare it sorts by a merge sort, which keeps no
state between steps: each step sorts anew with the comparisons answered so far, and asks for all
that are missing, so both halves go on side by side.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import permutations

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import (
    GymTask,
    ask_tool,
    last_clock,
    last_number,
    number_list,
    number_of,
    ranges,
    text_of,
    whole_number_of,
    word_list,
)

Pair = tuple[str, str]
CLOCK = r"(\d\d:\d\d(?::\d\d)?)"
CLOCK_PARTS = ("{0} // 3600", "{0} // 60 - 60 * ({0} // 3600)", "{0} - 60 * ({0} // 60)")
"""Hours, minutes and seconds of a difference in seconds."""


def result(reply: str) -> str:
    """The last number: after the last equals sign, where there is one."""
    return last_number(reply.strip().rpartition("=")[2] or reply)


class ChainSum(GymTask):
    """Sums and differences of several numbers, from left to right.

    State the final answer to the following arithmetic problem: 205 - 838 + 505 =   →   -128
    """

    name = "chain_sum"
    parameters = ranges(terms=[(3, 3), (4, 5), (6, 8)], digits=[(2, 2), (3, 3), (4, 4)])
    form = r"arithmetic problem: (\d+(?: [+-] \d+)+) =$"
    answered_by = "tool: the calculator adds two numbers"
    reader = result

    def script(self, parts: tuple[str], transcript: Sequence[Exchange]) -> Step:
        """Ask for every step at once, each with the result of the one before it."""
        if transcript:
            return Answer(number_of(transcript[-1]))
        terms = parts[0].split()  # Numbers and signs in turn.
        first = SubQuestion(" ".join(terms[:3]), to="tool:calculator")
        later = [
            SubQuestion(f"({{{i}}}) {sign} {number}", needs=(i,), to="tool:calculator")
            for i, (sign, number) in enumerate(zip(terms[3::2], terms[4::2], strict=True))
        ]
        return Ask((first, *later))


class Products(GymTask):
    """Long multiplication; a * b and b * a are one question.

    Solve the following multiplication: 205 * 838. Give only the result …   →   171790
    """

    name = "products"
    parameters = ranges(digits=[(2, 2), (3, 3), (4, 5)])
    form = r"multiplication: (\d+) \* (\d+)\."
    answered_by = "tool: the calculator multiplies by one digit, and adds the rows"
    reader = result

    def script(self, parts: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
        """Multiply by each digit of the second number, then add the shifted rows."""
        number, digits = parts
        if not transcript:
            return ask_tool("calculator", (f"{number} * {digit}" for digit in reversed(digits)))
        if len(transcript) == len(digits):
            rows = (str(whole_number_of(row)) + "0" * place for place, row in enumerate(transcript))
            return ask_tool("calculator", [" + ".join(rows)])
        return Answer(str(whole_number_of(transcript[-1])))

    def equivalence(self, parts: tuple[str, str]) -> list[str]:
        return sorted(parts)


class NumberFiltering(GymTask):
    """The numbers of a list above or below a bound.

    Remove all numbers larger than -33.9 in this list: ['-39.34', '-4', '60'] …   →   ['-39.34']
    """

    name = "number_filtering"
    parameters = ranges(numbers=[(4, 4), (5, 7), (8, 10)], decimals=[(0, 0), (0, 2), (0, 4)])
    form = (
        r"^(Keep|Remove) all numbers (larger|smaller) than (-?\d+(?:\.\d+)?) "
        r"in this list: (\[.*?\])"
    )
    answered_by = "tool: the calculator subtracts the bound from a number"
    reader = number_list
    max_answer_tokens = 96

    def script(self, parts: tuple[str, str, str, str], transcript: Sequence[Exchange]) -> Step:
        """Ask for each number's distance from the bound; keep by its sign, and zero is neither."""
        verb, side, bound, items = parts
        numbers = re.findall(r"-?\d+(?:\.\d+)?", items)
        if not transcript:
            return ask_tool("calculator", (f"({number}) - ({bound})" for number in numbers))
        kept: list[str] = []
        for number, exchange in zip(numbers, transcript, strict=True):
            distance = number_of(exchange)
            beyond = bool(distance.strip("-0.")) and distance.startswith("-") != (side == "larger")
            if beyond == (verb == "Keep"):
                kept.append(number)
        return Answer(str(kept))


class TimeIntervals(GymTask):
    """The time from one time of day to a later one.

        A video call started at 09:06:46 and ended at 16:19:23. How long was the call? Answer in
        HH:MM:SS.   →   07:12:37

    Dates are left out, and so are times with milliseconds, whose keys in reasoning-gym 0.1.25 are
    often one millisecond short.
    """

    name = "time_intervals"
    parameters = ({"task_types": ["time"]}, {"task_types": ["time_seconds"]})
    form = rf"\b{CLOCK}\D+?{CLOCK}(?!\d|:|\.\d).* in (HH:MM(?::SS)?)\.$"
    answered_by = "tool: the calculator subtracts and divides"
    reader = last_clock

    def script(self, parts: tuple[str, str, str], transcript: Sequence[Exchange]) -> Step:
        """Ask for the difference in seconds, then for its hours, minutes and seconds."""
        start, end, answer_form = parts
        if not transcript:
            return ask_tool("calculator", [f"({seconds_term(end)}) - ({seconds_term(start)})"])
        if len(transcript) == 1:
            seconds = str(whole_number_of(transcript[0]))
            units = CLOCK_PARTS[: len(answer_form.split(":"))]
            return ask_tool("calculator", (unit.format(seconds) for unit in units))
        return Answer(":".join(f"{whole_number_of(exchange):02d}" for exchange in transcript[1:]))


def seconds_term(clock: str) -> str:
    """A time of day as a sum of seconds, for the calculator."""
    pairs = zip(clock.split(":"), (3600, 60, 1), strict=False)
    return " + ".join(f"{int(part)} * {unit}" for part, unit in pairs)


class NumberSorting(GymTask):
    """Numbers in ascending or descending order; both orders of all permutations are one question.

        Sort these numbers in descending order: -39.34, -21.0, 60.0 …   →   ['60.0', '-21.0', …]

    The package's scorer accepts each number within 1.
    """

    name = "number_sorting"
    parameters = ranges(numbers=[(4, 4), (5, 7), (8, 10)], decimals=[(0, 0), (0, 1), (0, 2)])
    form = r"Sort these numbers in (a|de)scending order: (-?\d[^\n]*)\n"
    answered_by = "tool: the calculator subtracts two numbers"
    reader = number_list
    max_answer_tokens = 96
    tool = "calculator"

    def read(self, question: str) -> tuple[list[str], bool]:
        """The items as they are written, and whether the order ascends."""
        direction, items = super().read(question)
        return items.split(", "), direction == "a"

    def equivalence(self, parts: tuple[list[str], bool]) -> list[str]:
        return sorted(parts[0])

    def script(self, parts: tuple[list[str], bool], transcript: Sequence[Exchange]) -> Step:
        """Ask for the comparisons that the merge sort needs next."""
        items, ascending = parts
        pairs = {self.comparison(*pair): pair for pair in permutations(items, 2)}
        known = {
            pairs[compared.question]: self.is_less(compared) == ascending
            for compared in transcript
            if compared.question in pairs
        }
        order = merge_sort(items, known)
        if isinstance(order, list):
            return Answer(self.written(order))
        return ask_tool(self.tool, (self.comparison(*pair) for pair in sorted(order)))

    def comparison(self, left: str, right: str) -> str:
        return f"({left}) - ({right})"

    def is_less(self, exchange: Exchange) -> bool:
        """Whether the left item of a comparison is less than the right one."""
        return number_of(exchange).startswith("-")

    def written(self, items: Sequence[str]) -> str:
        return str(items)


class WordSorting(NumberSorting):
    """Words in the order of their Unicode characters.

        … sort these words in ascending order … : inform, absolute, Vanilla   →   Vanilla, …

    SmolLM2-135M cannot spell a word, so it cannot compare two.
    """

    name = "word_sorting"
    parameters = ranges(words=[(3, 3), (4, 5), (6, 8)])
    form = r"sort these words in (a|de)scending order [^:]*: (\w+(?:, \w+)*)$"
    answered_by = "tool: Python compares two words"
    reader = word_list
    max_answer_tokens = 64
    tool = "python"

    def comparison(self, left: str, right: str) -> str:
        return f"{json.dumps(left)} < {json.dumps(right)}"

    def is_less(self, exchange: Exchange) -> bool:
        if (text := text_of(exchange)) not in ("True", "False"):
            raise ValueError(f"{exchange.answer!r} is neither True nor False")
        return text == "True"

    def written(self, items: Sequence[str]) -> str:
        return ", ".join(items)


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
