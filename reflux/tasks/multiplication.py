"""Multiplication of two numbers, with the digits in reverse.

A question is `321*54=` for 123 * 45, and its answer `53550` is the reversed product: as many digits
as both factors have. H splits the longer factor, a * b = a1 * b * 10^m + a0 * b, down to products
of one digit. The sums of the parts are sub-questions in addition's own form, `530+426=`, and are
split by addition's own H. Shifts and zeros are H's text work.

Two tasks: `Multiplication` leaves products of one digit and short sums to the agent, and a student
learns those from `multiplication_leaves`. The check tests the form and casts out nines; neither H
nor the check can multiply or add longer numbers.
"""

import random
import re
from collections.abc import Sequence

from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, draw_questions, read_by
from reflux.tasks import addition
from reflux.tasks.addition import Addition

QUESTION = re.compile(r"(\d+)\*(\d+)=")
PADDED = 0.3
"""Share of sums in which one operand is padded with a zero, as in the sums of parts."""


def is_product(question: str) -> bool:
    """True for `a*b=`; any other question is a sum."""
    return "*" in question


def read(question: str) -> tuple[str, str]:
    """The factors of `a*b=`.

    Raises:
        ValueError: the question is not a product.
    """
    match = QUESTION.fullmatch(question.strip())
    if match is None:
        raise ValueError(f"{question!r} is not of the form 321*54=")
    return match[1], match[2]


def write(a: str, b: str) -> str:
    return f"{a}*{b}="


class Multiplication(Addition):
    """Reversed multiplication; the level is the number of digits of each factor."""

    name = "multiplication"
    direct_digits = 2
    """The agent answers sums of up to this many digits, and products of one; with 0 H answers
    products and sums of one digit itself."""

    def overseers(self) -> Sequence[Overseer]:
        """Two decompositions: of equally long factors one splits the first, the other the second;
        and one makes the low part the shorter one, the other the high part."""
        digits = self.direct_digits

        def overseer(name: str, first: bool) -> ScriptedOverseer:
            return ScriptedOverseer(name, lambda q, t, m: act(q, t, m, first=first, digits=digits))

        return (overseer("times-first", True), overseer("times-second", False))

    def answer_tokens(self, question: str) -> int:
        if not is_product(question):
            return super().answer_tokens(question)
        return len(question) + 1

    def checker(self) -> Checker:
        return RuleChecker({"form": has_form, "casting_out_nines": casts_out_nines})

    def primitives(self) -> Sequence[str]:
        """All 100 products and all 200 sums of one digit."""
        products = [write(str(a), str(b)) for a in range(10) for b in range(10)]
        return [*products, *super().primitives()]

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Products of two factors of `level` digits without leading zeros."""

        def draw(generator: random.Random) -> str:
            a, b = (str(generator.randrange(10 ** (level - 1), 10**level))[::-1] for _ in range(2))
            return write(a, b)

        return draw_questions(self, n, level, split, seed, draw)

    def canonical(self, question: str) -> str:
        """The factors, or the operands, in order."""
        try:
            a, b = read(question)
        except ValueError:
            return super().canonical(question)
        return write(*sorted((a, b)))

    def from_user(self, text: str) -> str:
        """Reads `123*45`, the task's own `321*54=`, or a sum as addition does.

        Raises:
            UsageError: the text has another form.
        """
        plain = re.fullmatch(r"\s*(\d+)\s*[*×x]\s*(\d+)\s*", text)
        if plain is not None:
            return write(plain[1][::-1], plain[2][::-1])
        if not is_product(text):
            return super().from_user(text)
        return read_by(read, text, 'write a product as "123*45"')

    def score(self, question: str, answer: str) -> bool:
        if not is_product(question):
            return super().score(question, answer)
        a, b = read(question)
        product = int(a[::-1]) * int(b[::-1])
        return answer == str(product).zfill(len(a) + len(b))[::-1]


class MultiplicationLeaves(Multiplication):
    """The direct answers in a product's tree: products of one digit, and sums of `level` digits.

    H answers everything of one digit itself, as the primitives of round 0.
    """

    name = "multiplication_leaves"
    direct_digits = 0

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Sums with and without a carry, often with one padded operand, as in a tree.
        At level 1, where nothing is held out, products as well."""

        def draw(generator: random.Random) -> str:
            a, b = (str(generator.randrange(10**level)).zfill(level)[::-1] for _ in range(2))
            if level > 1 and generator.random() < PADDED:
                a = a[:-1] + "0"
            if generator.randrange(2):
                a, b = b, a
            if level == 1 and generator.randrange(3) == 0:
                return write(a, b)
            return addition.write(a, b, generator.randrange(2))

        return draw_questions(self, n, level, split, seed, draw)


def act(
    question: str, transcript: Sequence[Exchange], may_ask: bool, *, first: bool, digits: int
) -> Step:
    """H's step: leave short questions to the agent, split sums as addition does, and split products
    by a factor's digits."""
    if not may_ask:
        return PASS
    if not is_product(question):
        a, _, _ = addition.read(question)
        if len(a) <= digits:
            return PASS
        return addition.split_sum(question, transcript, may_ask, low_short=first)
    a, b = read(question)
    if len(a) == len(b) == 1:
        return PASS if digits else Answer(f"{int(a) * int(b):02d}"[::-1])
    if len(a) < len(b) or (len(a) == len(b) and not first):
        a, b = b, a
    middle = len(a) // 2 if first else len(a) - len(a) // 2
    if not transcript:
        return Ask.of(write(a[:middle], b), write(a[middle:], b))
    low, high = (addition.part(exchange, has_form) for exchange in transcript[:2])
    if len(transcript) == 2:
        return Ask.of(addition.write(low[middle:].ljust(len(high), "0"), high, 0))
    total = addition.part(transcript[2], has_form)
    # The product has no digit above these: the carry is nought, or a part was wrong.
    if total[-1] != "0":
        raise ValueError(f"{transcript[2].question} came to {total}, longer than {question} can be")
    return Answer(low[:middle] + total[:-1])


def has_form(question: str, answer: str) -> bool:
    """As many digits as both factors have; of a sum, as in addition."""
    if not is_product(question):
        return addition.has_form(question, answer)
    a, b = read(question)
    return re.fullmatch(rf"[0-9]{{{len(a) + len(b)}}}", answer) is not None


def casts_out_nines(question: str, answer: str) -> bool:
    """The answer leaves the rest modulo nine that the question's numbers tell."""
    if not is_product(question):
        return addition.casts_out_nines(question, answer)
    a, b = map(addition.digit_sum, read(question))
    return (a * b - addition.digit_sum(answer)) % 9 == 0
