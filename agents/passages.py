"""Passages: a text cut into pieces of some 100 to 200 words, each with the lines it stands on."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

FEWEST_WORDS = 100
"""A passage of so many words ends at the next blank line or heading."""
MOST_WORDS = 200
MOST_CHARS = 1_500
"""A text without spaces is cut by this."""


@dataclass(frozen=True)
class Passage:
    """A piece of a text, with its first and last line, counted from 1."""

    first: int
    last: int
    text: str


def passages(text: str) -> Iterator[Passage]:
    """Cut a text into passages, in order, of whole lines where these are short enough.

    Every word of the text is in one passage. The last of a text may be shorter than 100 words,
    as may one before a long paragraph.
    """
    held: list[tuple[int, str]] = []
    words = chars = 0
    for number, piece in _pieces(text.split("\n")):
        count = len(piece.split())
        full = words + count > MOST_WORDS or chars + len(piece) + 1 > MOST_CHARS
        if full or (words >= FEWEST_WORDS and (not count or piece.startswith("#"))):
            yield from _passage(held)
            held, words, chars = [], 0, 0
        held.append((number, piece))
        words += count
        chars += len(piece) + 1
    yield from _passage(held)


def _passage(held: list[tuple[int, str]]) -> Iterator[Passage]:
    said = [(number, piece) for number, piece in held if piece.strip()]
    if said:
        first, last = said[0][0], said[-1][0]
        lines = "\n".join(piece for number, piece in held if first <= number <= last)
        yield Passage(first, last, lines)


def _pieces(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a paragraph that is one long line comes in several pieces."""
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if len(line) < MOST_CHARS and len(line.split()) <= MOST_WORDS:
            yield number, line
            continue
        held, words = "", 0
        for word in re.findall(rf"\S{{1,{MOST_CHARS - 1}}}", line):
            if held and (words == MOST_WORDS - 50 or len(held) + len(word) + 2 > MOST_CHARS):
                yield number, held
                held, words = "", 0
            held, words = f"{held} {word}".strip(), words + 1
        yield number, held
