"""Readers of questions and replies, which know forms and words, never what is right.

Each takes the answer out of the text around it, and raises `ValueError` where there is none.
"""

import re
from collections.abc import Callable, Sequence

from reflux.agents.types import Exchange

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
COUNTS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen",
)  # fmt: skip


def text_of(exchange: Exchange) -> str:
    """The answer to a sub-question.

    Raises:
        ValueError: it is empty, or the sub-question failed.
    """
    if exchange.error is not None or not (exchange.answer or "").strip():
        raise ValueError(f"no usable answer to {exchange.question!r}: {exchange.error or 'empty'}")
    return (exchange.answer or "").strip()


def number_of(exchange: Exchange) -> str:
    """The sub-answer, which must be one number and nothing else."""
    text = text_of(exchange)
    if not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", text):
        raise ValueError(f"{text[:80]!r} is not a number; {exchange.question!r} asks for one")
    return text


def whole_number_of(exchange: Exchange) -> int:
    """The sub-answer, which must be one whole number of at least zero."""
    text = text_of(exchange)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{text[:80]!r} is not a whole number; {exchange.question!r} asks for one")
    return int(text)


def last_number(reply: str) -> str:
    """The last number of a reply, without commas: explanations come before the result."""
    numbers = NUMBER.findall(reply)
    if not numbers:
        raise ValueError(f"no number in {reply[:80]!r}")
    return numbers[-1].replace(",", "").replace("−", "-").lstrip("+")


def last_count(reply: str) -> str:
    """The last number of a reply, in digits or in words up to fifteen."""
    words = "|".join(COUNTS)
    counts = re.findall(rf"(?<![\w.])\d+(?!\w)|\b(?:{words})\b", reply, re.IGNORECASE)
    if not counts:
        raise ValueError(f"no count in {reply[:80]!r}")
    last = counts[-1].lower()
    return str(COUNTS.index(last)) if last in COUNTS else last


def number_list(reply: str) -> str:
    """A list of numbers as `['1', '2.5']`: the last in brackets, else the last line with any."""
    brackets = re.findall(r"\[([^\[\]]*)\]", reply)
    lines = [line for line in reply.splitlines() if NUMBER.search(line)]
    if not brackets and not lines:
        raise ValueError(f"no list of numbers in {reply[:80]!r}")
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", brackets[-1] if brackets else lines[-1])
    return str(numbers)


def word_list(reply: str) -> str:
    """A comma-separated list: the last line with a comma, after any colon."""
    lines = [line for line in reply.splitlines() if "," in line]
    if not lines:
        raise ValueError(f"no list of words in {reply[:80]!r}")
    words = [word.strip(" \t.\"'`*") for word in lines[-1].rpartition(":")[2].split(",")]
    return ", ".join(re.sub(r"^and\s+", "", word) for word in words)


def last_word(reply: str) -> str:
    """The last word of the first line, without punctuation."""
    words = re.findall(r"[^\W_]+", reply.strip().split("\n")[0])
    if not words:
        raise ValueError(f"no word in {reply[:80]!r}")
    return words[-1]


def last_clock(reply: str) -> str:
    """The last time of day or duration, such as 07:12:37 or 07:12:37.250."""
    clocks = re.findall(r"(?<![\d:])\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?![\d:])", reply)
    if not clocks:
        raise ValueError(f"no duration in {reply[:80]!r}")
    return clocks[-1]


def first_name(names: Sequence[str], reply: str) -> str:
    """The name that a reply mentions first; the longest of those that begin there."""
    patterns = {name: re.escape(name) for name in sorted(names, key=len, reverse=True)}
    pattern = "|".join(patterns.values())
    match = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", reply, re.IGNORECASE) if pattern else None
    if match is None:
        raise ValueError(f"none of {', '.join(names)[:80]!r} in {reply[:80]!r}")
    # Lower case would not do: "ſon" matches "son" and differs from it in lower case.
    return next(n for n, each in patterns.items() if re.fullmatch(each, match[0], re.IGNORECASE))


def match_question(pattern: str, question: str) -> re.Match[str]:
    """The parts of a question.

    Raises:
        ValueError: it has another form.
    """
    match = re.search(pattern, question, re.DOTALL)
    if match is None:
        raise ValueError(f"{question[:80]!r} does not have the form of this task's questions")
    return match


def answer_of(reader: Callable[[str], str]) -> Callable[[str, str], str]:
    """A reader of replies as a `GymTask.extract`, which also gets the question."""
    return lambda question, reply: reader(reply)
