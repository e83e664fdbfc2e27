"""Red flags: signs in a reply that its model is confused.

A flagged reply is recorded, has no vote, and is replaced by another: confused replies are wrong
more often, and their errors correlate (MAKER, arXiv 2511.09030, section 3.3).
`reflux.graphs.evals.vote_log.flag_effects` measures the effect of each rule from the log.
"""

from dataclasses import dataclass

import regex

from reflux.agents.errors import UsageError, check_range
from reflux.agents.types import Completion

REPEATED_WORDS = 8
"""Maximum length, in words, of a repeated sequence."""
MATCH_SECONDS = 5.0
"""Maximum seconds to match one reply: a linear pattern takes milliseconds for a megabyte, a
backtracking one does not end."""


@dataclass(frozen=True)
class RedFlags:
    """Rules for replies to discard; by default none."""

    cut_off: bool = False
    """Discards replies that the token limit cut."""
    longest: int | None = None
    """Maximum characters."""
    pattern: str = ""
    """Regular expression that must match the whole reply, without outer white space."""
    hedges: tuple[str, ...] = ()
    """Phrases that no reply may hold, in any case."""
    repeats: int | None = None
    """Maximum consecutive repetitions of the same words."""

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise UsageError(
                f"the pattern {self.pattern!r} is no regular expression: {error}; correct it"
            ) from error
        for name, value in (("longest", self.longest), ("repeats", self.repeats)):
            if value is not None:
                check_range(f"flags.{name}", value, least=1)
        if not all(phrase.strip() for phrase in self.hedges):
            raise UsageError("flags.hedges holds an empty phrase, which every reply has; remove it")

    def of(self, reply: Completion) -> str:
        """The name of the first rule that a reply breaks; empty if it breaks none.

        Raises:
            UsageError: matching the pattern takes too long.
        """
        text = reply.text.strip()
        if self.cut_off and reply.finish_reason == "length":
            return "cut_off"
        if self.longest is not None and len(text) > self.longest:
            return "longest"
        if self.pattern and not self._matches(text):
            return "pattern"
        if any(phrase.lower() in text.lower() for phrase in self.hedges):
            return "hedges"
        if self.repeats is not None and repetitions(text) > self.repeats:
            return "repeats"
        return ""

    def _matches(self, text: str) -> bool:
        try:
            match = regex.fullmatch(self.pattern, text, regex.DOTALL, timeout=MATCH_SECONDS)
        except TimeoutError as error:
            raise UsageError(
                f"flags.pattern {self.pattern!r} has not matched a reply of {len(text)} characters "
                f"in {MATCH_SECONDS:g} s: it tries too many ways; write it without repetitions of "
                "repetitions, such as (a+)+, or set flags.longest, too"
            ) from error
        return match is not None


def repetitions(text: str) -> int:
    """Maximum consecutive repetitions of a sequence of up to `REPEATED_WORDS` words."""
    words = text.split()
    maximum = min(1, len(words))
    for length in range(1, min(REPEATED_WORDS, len(words) // 2) + 1):
        same = 0  # Words in a row that equal the word `length` before them.
        for index in range(length, len(words)):
            same = same + 1 if words[index] == words[index - length] else 0
            maximum = max(maximum, 1 + same // length)
    return maximum
