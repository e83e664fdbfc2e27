"""Reading replies: the forms in which a copy of X, a tool or H may give an answer.

Each reader takes the answer out of whatever stands around it, and raises `ValueError` where there
is none. They know forms and words, never what is right.
"""

import re
from collections.abc import Sequence

from reflux.agents.types import Exchange

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
COUNTS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen",
)  # fmt: skip


def said(exchange: Exchange) -> str:
    """What came back for a sub-question.

    Raises:
        ValueError: nothing did, or it failed.
    """
    if exchange.error is not None or not (exchange.answer or "").strip():
        raise ValueError(f"no usable answer to {exchange.question!r}: {exchange.error or 'empty'}")
    return (exchange.answer or "").strip()


def number_said(exchange: Exchange) -> str:
    """A sub-answer that is one number and nothing else."""
    text = said(exchange)
    if not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", text):
        raise ValueError(f"{text[:80]!r} is no number; {exchange.question!r} asks for one")
    return text


def whole_said(exchange: Exchange) -> int:
    """A sub-answer that is one whole number, not below zero."""
    text = said(exchange)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{text[:80]!r} is no whole number; {exchange.question!r} asks for one")
    return int(text)


def last_number(reply: str) -> str:
    """The last number of a reply, without commas: explanations come before the result."""
    found = NUMBER.findall(reply)
    if not found:
        raise ValueError(f"no number in {reply[:80]!r}")
    return found[-1].replace(",", "").replace("−", "-").lstrip("+")


def last_count(reply: str) -> str:
    """The last number of a reply, in digits or in words up to fifteen."""
    words = "|".join(COUNTS)
    found = re.findall(rf"(?<![\w.])\d+(?!\w)|\b(?:{words})\b", reply, re.IGNORECASE)
    if not found:
        raise ValueError(f"no count in {reply[:80]!r}")
    last = found[-1].lower()
    return str(COUNTS.index(last)) if last in COUNTS else last


def number_list(reply: str) -> str:
    """A list of numbers as `['1', '2.5']`: the last one in brackets, else all of the last line
    that holds any."""
    brackets = re.findall(r"\[([^\[\]]*)\]", reply)
    lines = [line for line in reply.splitlines() if NUMBER.search(line)]
    if not brackets and not lines:
        raise ValueError(f"no list of numbers in {reply[:80]!r}")
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", brackets[-1] if brackets else lines[-1])
    return str(numbers)


def word_list(reply: str) -> str:
    """A comma-separated list: the last line with a comma, without what leads up to it."""
    lines = [line for line in reply.splitlines() if "," in line]
    if not lines:
        raise ValueError(f"no list of words in {reply[:80]!r}")
    words = [word.strip(" \t.\"'`*") for word in lines[-1].rpartition(":")[2].split(",")]
    return ", ".join(re.sub(r"^and\s+", "", word) for word in words)


def last_word(reply: str) -> str:
    """The last word of the first line, without the marks around it."""
    found = re.findall(r"[^\W_]+", reply.strip().split("\n")[0])
    if not found:
        raise ValueError(f"no word in {reply[:80]!r}")
    return found[-1]


def last_clock(reply: str) -> str:
    """The last time of day or duration, such as 07:12:37 or 07:12:37.250."""
    found = re.findall(r"(?<![\d:])\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?![\d:])", reply)
    if not found:
        raise ValueError(f"no duration in {reply[:80]!r}")
    return found[-1]


def first_of(names: Sequence[str], reply: str) -> str:
    """The name that a reply mentions first; the longest of those that begin there."""
    ways = {name: re.escape(name) for name in sorted(names, key=len, reverse=True)}
    pattern = "|".join(ways.values())
    found = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", reply, re.IGNORECASE) if pattern else None
    if found is None:
        raise ValueError(f"none of {', '.join(names)[:80]!r} in {reply[:80]!r}")
    # Not by lower case, which "ſon" and "son" do not share although one matches the other.
    return next(n for n, way in ways.items() if re.fullmatch(way, found[0], re.IGNORECASE))


def matched(pattern: str, question: str) -> re.Match[str]:
    """A question in its one form.

    Raises:
        ValueError: it has another.
    """
    found = re.search(pattern, question, re.DOTALL)
    if found is None:
        raise ValueError(f"{question[:80]!r} is not of the form that is known here")
    return found
