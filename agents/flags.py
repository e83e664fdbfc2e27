"""Red flags: what a reply looks like when its model has lost the thread.

A flagged reply is recorded, has no vote, and is asked again: confused replies are wrong more often,
and wrong together (MAKER, arXiv 2511.09030, section 3.3). Rules are data; what each of them is
worth is measured from the log by `graphs.vote_log.flag_effects`.
"""

import re
from dataclasses import dataclass

from agents.errors import UsageError
from agents.types import Completion

REPEATED_WORDS = 8
"""Longest run of words that is looked for in repetitions."""


@dataclass(frozen=True)
class RedFlags:
    """Which replies are discarded; by default none."""

    cut_off: bool = False
    """Those that ended at their limit of tokens."""
    longest: int | None = None
    """Those of more characters."""
    pattern: str = ""
    """Those that this regular expression does not match as a whole, blanks at the ends apart."""
    hedges: tuple[str, ...] = ()
    """Those that hold one of these phrases, in any case."""
    repeats: int | None = None
    """Those that say the same words more than so many times in a row."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(
                f"the pattern {self.pattern!r} is no regular expression: {error}; correct it"
            ) from error

    def of(self, reply: Completion) -> str:
        """The name of the first rule that a reply breaks; empty where it breaks none."""
        text = reply.text.strip()
        broken = {
            "cut_off": self.cut_off and reply.finish_reason == "length",
            "longest": self.longest is not None and len(text) > self.longest,
            "pattern": bool(self.pattern) and re.fullmatch(self.pattern, text, re.DOTALL) is None,
            "hedges": any(phrase.lower() in text.lower() for phrase in self.hedges),
            "repeats": self.repeats is not None and repetitions(text) > self.repeats,
        }
        return next((name for name, holds in broken.items() if holds), "")


def repetitions(text: str) -> int:
    """How often the same run of up to `REPEATED_WORDS` words stands in a row, at the most."""
    words = text.split()
    most = min(1, len(words))
    for length in range(1, min(REPEATED_WORDS, len(words) // 2) + 1):
        same = 0  # Words in a row that equal the word `length` before them.
        for at in range(length, len(words)):
            same = same + 1 if words[at] == words[at - length] else 0
            most = max(most, 1 + same // length)
    return most
