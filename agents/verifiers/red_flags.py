"""Red flags: what a reply looks like when its model has lost the thread.

A flagged reply is recorded, has no vote, and is asked again: confused replies are wrong more often,
and wrong together (MAKER, arXiv 2511.09030, section 3.3). Rules are data; what each of them is
worth is measured from the log by `reflux.graphs.evals.vote_log.flag_effects`.
"""

from dataclasses import dataclass

import regex

from reflux.agents.errors import UsageError, check_range
from reflux.agents.types import Completion

REPEATED_WORDS = 8
"""Longest run of words that is looked for in repetitions."""
PATIENCE = 5.0
"""Seconds of the processor that matching one reply may take; a sound pattern takes milliseconds for
a megabyte, and one that backtracks would take for ever."""


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
        """The name of the first rule that a reply breaks; empty where it breaks none.

        Raises:
            UsageError: the pattern cannot be matched in any sensible time.
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
            found = regex.fullmatch(self.pattern, text, regex.DOTALL, timeout=PATIENCE)
        except TimeoutError as error:
            raise UsageError(
                f"flags.pattern {self.pattern!r} has not matched a reply of {len(text)} characters "
                f"in {PATIENCE:g} s: it tries too many ways; write it without repetitions of "
                "repetitions, such as (a+)+, or set flags.longest, too"
            ) from error
        return found is not None


def repetitions(text: str) -> int:
    """How often the same run of up to `REPEATED_WORDS` words stands in a row, at the
    most."""
    words = text.split()
    most = min(1, len(words))
    for length in range(1, min(REPEATED_WORDS, len(words) // 2) + 1):
        same = 0  # Words in a row that equal the word `length` before them.
        for at in range(length, len(words)):
            same = same + 1 if words[at] == words[at - length] else 0
            most = max(most, 1 + same // length)
    return most
