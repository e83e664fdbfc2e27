"""JSON as models write it: read as far as it is whole, whatever surrounds or breaks it."""

import re
from collections.abc import Iterator
from typing import Any

CHARS = 100_000
"""Of a longer text the rest is not read."""
DEPTH = 12
"""Objects and lists within one another; deeper ones are not read."""

QUOTES = {'"': '"', "'": "'", "“": "”"}
STOPS = {end: re.compile(rf"[{end}\\]") for end in QUOTES.values()}
CLOSES = re.compile(r"""\s*(?:[,:\]}"'“]|$)""")
"""What follows a quote that ends a string; any other quote is part of it, as in 'What's new?'."""
OPENING = re.compile(r"[\[{]")
GAP = re.compile(r"[\s,:]*")
BARE = re.compile(r"[^,:\[\]{}\n]+")
CODE = re.compile(r"[0-9a-fA-F]{4}")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
WORDS = {"true": True, "false": False, "null": None, "none": None}
CUT = object()
"""A value that the text ends within."""


class Bare(str):
    """Text that stood without quotes."""

    __slots__ = ()


def loose_values(text: str) -> Iterator[Any]:
    """Every outermost object and list of a text, in order, as far as it is whole.

    Takes prose and fences around them, single quotes, Python's literals, missing quotes, stray
    commas, and an end in the middle: what is cut is left out, the rest stays. Never raises, and
    takes time in proportion to the text. Values are those of JSON, with `Bare` for text that had
    no quotes and without fractions, which stay text.
    """
    text = text[:CHARS]
    reader = _Reader(text)
    while opening := OPENING.search(text, reader.at):
        reader.at, reader.ended = opening.start(), False
        yield reader.value(0)


class _Reader:
    """Reads from `at` on; each method moves it on by one character at least."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.ended = False
        """True once nothing more can be read: the text ended, or went too deep."""

    def value(self, depth: int) -> Any:
        """The next value, or CUT."""
        char = self.text[self.at : self.at + 1]
        if char in ("{", "["):
            if depth >= DEPTH:
                self.at += 1
                self.ended = True
                return CUT
            return self._object(depth) if char == "{" else self._list(depth)
        return self._string() if char in QUOTES and char else self._bare()

    def _list(self, depth: int) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        while (char := self._next()) not in ("]", "}"):
            item = self.value(depth + 1) if char else CUT
            if item is not CUT:
                items.append(item)
            if self.ended:
                return items
        self.at += char == "]"  # A brace ends the object around a list that was never closed.
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        while (char := self._next()) not in ("}", "]"):
            key = self.value(depth + 1) if char else CUT
            if self.ended:
                return found
            if not self._colon():
                continue
            item = self.value(depth + 1) if self._next() else CUT
            if item is not CUT:
                found[str(key)] = item
            if self.ended:
                return found
        self.at += char == "}"
        return found

    def _next(self) -> str:
        """The next character that means something; empty at the end."""
        self.at = _end(GAP, self.text, self.at)
        if self.at >= len(self.text):
            self.ended = True
        return self.text[self.at : self.at + 1]

    def _colon(self) -> bool:
        gap_end = _end(GAP, self.text, self.at)
        return ":" in self.text[self.at : gap_end]

    def _string(self) -> Any:
        closing = QUOTES[self.text[self.at]]
        self.at += 1
        parts: list[str] = []
        begun = self.at
        while stop := STOPS[closing].search(self.text, self.at):
            self.at = stop.end()
            if stop[0] == "\\":
                parts += [self.text[begun : stop.start()], self._escaped()]
                begun = self.at
            elif CLOSES.match(self.text, self.at):
                parts.append(self.text[begun : stop.start()])
                return whole_unicode("".join(parts))
        self.at = len(self.text)
        self.ended = True
        return CUT

    def _escaped(self) -> str:
        """The character after a backslash."""
        char = self.text[self.at : self.at + 1]
        self.at += 1
        code = CODE.match(self.text, self.at) if char == "u" else None
        if code is None:
            return ESCAPES.get(char, char)
        self.at += 4
        return chr(int(code[0], 16))

    def _bare(self) -> Any:
        found = BARE.match(self.text, self.at)
        if found is None:  # A bracket that closes, where a value should stand.
            return CUT
        self.at = found.end()
        if self.at == len(self.text):
            self.ended = True
            return CUT
        word = found[0].strip()
        if word.lower() in WORDS:
            return WORDS[word.lower()]
        return int(word) if re.fullmatch(r"-?[0-9]{1,15}", word) else Bare(whole_unicode(word))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def whole_unicode(text: str) -> str:
    """The text with surrogate pairs joined, and what is half of one replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
