"""Addition of two numbers of equal length, with the digits in reverse.

A question is `403+715=` for 304 + 517, or `403+715+1=` with a carry in; the answer `1280` is the
reversed sum, one digit longer than the operands: the last digit is the carry out. Lowest digits
first is what lets a small model write a sum from left to right.

H answers sums of one digit itself and splits longer ones: the low digits first, then the high
digits with the carry of the low ones. The check tests the form and casts out nines (a sum and its
operands are equal modulo nine); neither H nor the check can add longer numbers.
"""

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, Task, draw_questions, read_by

QUESTION = re.compile(r"(\d+)\+(\d+)(\+1)?=")


def read(question: str) -> tuple[str, str, int]:
    """The parts of `a+b=` or `a+b+1=`: (a, b, carry in).

    Raises:
        ValueError: the question has another form.
    """
    match = QUESTION.fullmatch(question.strip())
    if match is None or len(match[1]) != len(match[2]):
        raise ValueError(f"{question!r} is not of the form 403+715= or 403+715+1=")
    return match[1], match[2], int(match[3] is not None)


def write(a: str, b: str, carry: int) -> str:
    return f"{a}+{b}{'+1' if carry else ''}="


class Addition(Task):
    """Reversed addition; the level is the number of digits."""

    name = "addition"
    writing = "digits are written in reverse, the lowest first"
    level_unit = "digits"

    def overseers(self) -> Sequence[Overseer]:
        """Two splits: the first makes the low part the shorter one, the second the high part."""
        return (
            ScriptedOverseer("add-low-short", lambda q, t, m: split_sum(q, t, m, low_short=True)),
            ScriptedOverseer("add-low-long", lambda q, t, m: split_sum(q, t, m, low_short=False)),
        )

    def answer_tokens(self, question: str) -> int:
        """One token per digit, one for the end, and two spare."""
        return len(question.split("+")[0]) + 4

    def checker(self) -> Checker:
        return RuleChecker({"form": has_form, "casting_out_nines": casts_out_nines})

    def primitives(self) -> Sequence[str]:
        """All 200 sums of one digit, with and without a carry."""
        return [write(str(a), str(b), c) for a in range(10) for b in range(10) for c in (0, 1)]

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Training: any digits, with and without a carry. Held out: no carry, no leading zero."""
        low = 10 ** (level - 1) if split == "held_out" else 0

        def draw(generator: random.Random) -> str:
            a, b = (str(generator.randrange(low, 10**level)).zfill(level)[::-1] for _ in range(2))
            return write(a, b, 0 if split == "held_out" else generator.randrange(2))

        return draw_questions(self, n, level, split, seed, draw)

    def check_levels(self, levels: Sequence[int]) -> None:
        """Each round adds numbers whose halves the round before learned.

        Raises:
            UsageError: a level is no higher than the one before, or more than twice as high.
        """
        for before, after in pairwise(levels):
            if not before < after <= 2 * before:
                raise UsageError(
                    f"rounds of {self.name} go from level {before} to {after}: each level must be "
                    "higher than the one before and at most twice as high, so that its halves were "
                    "learned"
                )

    def canonical(self, question: str) -> str:
        """The sorted operands without the carry: a+b, b+a and a+b+1 are one question."""
        try:
            a, b, _ = read(question)
        except ValueError:
            return question.strip()
        first, second = sorted((a, b))
        return write(first, second, 0)

    def normalise(self, answer: str) -> str:
        return "".join(answer.split())

    def from_user(self, text: str) -> str:
        """Reads `304+517` of any lengths, or the task's own `403+715=`.

        Raises:
            UsageError: the text has another form.
        """
        plain = re.fullmatch(r"\s*(\d+)\s*\+\s*(\d+)\s*", text)
        if plain is not None:
            length = max(len(plain[1]), len(plain[2]))
            return write(plain[1].zfill(length)[::-1], plain[2].zfill(length)[::-1], 0)
        return read_by(read, text, 'write a sum as "304+517"')

    def to_user(self, question: str, answer: str) -> str:
        return (answer[::-1].lstrip("0") or "0") if answer.isdecimal() else answer

    def score(self, question: str, answer: str) -> bool:
        a, b, carry = read(question)
        total = int(a[::-1]) + int(b[::-1]) + carry
        return answer == str(total).zfill(len(a) + 1)[::-1]


def split_sum(
    question: str, transcript: Sequence[Exchange], may_ask: bool, *, low_short: bool
) -> Step:
    """H's step: answer a primitive, and ask anything longer in two parts."""
    a, b, carry = read(question)
    if not may_ask:
        return PASS  # A copy answers, even a single digit.
    if len(a) == 1:
        return Answer(f"{int(a) + int(b) + carry:02d}"[::-1])
    middle = len(a) // 2 if low_short else len(a) - len(a) // 2
    if not transcript:
        return Ask.of(write(a[:middle], b[:middle], carry))
    low = part(transcript[0], has_form)
    if len(transcript) == 1:
        return Ask.of(write(a[middle:], b[middle:], int(low[-1])))
    return Answer(low[:-1] + part(transcript[1], has_form))


def part(exchange: Exchange, formed: Callable[[str, str], bool]) -> str:
    """The sub-answer, accepted or not, as long as it has the form that H needs.

    Raises:
        ValueError: it has another form, or is missing.
    """
    if exchange.answer is None or not formed(exchange.question, exchange.answer):
        reply = repr(exchange.answer) if exchange.answer is not None else exchange.error or "none"
        raise ValueError(f"no usable answer to {exchange.question}: {reply}")
    return exchange.answer


def has_form(question: str, answer: str) -> bool:
    """True for one digit more than the operands have, of which the last is a carry."""
    a, _, _ = read(question)
    return re.fullmatch(rf"\d{{{len(a)}}}[01]", answer) is not None


def casts_out_nines(question: str, answer: str) -> bool:
    """True where the answer and the operands are equal modulo nine."""
    a, b, carry = read(question)
    return (digit_sum(a) + digit_sum(b) + carry - digit_sum(answer)) % 9 == 0


def digit_sum(text: str) -> int:
    return sum(int(digit) for digit in text)
