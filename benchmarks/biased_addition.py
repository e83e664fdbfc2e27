"""Addition by an overseer with a systematic bias: what it says of sums whose first digit is a 7.

The bias is a rule, not a mistake made now and then: votes, retries and both of the overseer's
decompositions share it. `SEEN` adds 1, which casting out nines sees; `UNSEEN` adds or takes 9,
which it cannot see.
"""

from collections.abc import Sequence
from functools import partial

from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Exchange, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.tasks.addition import Addition, has_form, read, split_sum

TRIGGER = "7"
NONE, SEEN, UNSEEN = 0, 1, 9


def biased_digit(a: str, b: str, carry: int, bias: int) -> int:
    """The sum of two digits, as a biased overseer says it; from 0 to 19."""
    total = int(a) + int(b) + carry
    if a != TRIGGER:
        return total
    return total + bias if total + bias <= 19 else total - bias


def biased_sum(question: str, bias: int) -> str:
    """What the overseer's rule makes of a question of any length."""
    a, b, carry = read(question)
    digits: list[str] = []
    for one, other in zip(a, b, strict=True):
        carry, digit = divmod(biased_digit(one, other, carry, bias), 10)
        digits.append(str(digit))
    return "".join(digits) + str(carry)


class BiasedAddition(Addition):
    """Addition with a biased overseer; a second one, which is not, where `second` says so."""

    def __init__(self, bias: int, *, is_checked: bool = True, second: bool = False) -> None:
        """
        Args:
            is_checked: by casting out nines; otherwise by form alone.
            second: the overseer of the second attempt has no bias.
        """
        self.bias, self._is_checked, self._second = bias, is_checked, second

    def overseers(self) -> Sequence[Overseer]:
        biases = self.bias, NONE if self._second else self.bias
        ways = zip(("low-short", "low-long"), biases, (True, False), strict=True)
        return tuple(
            ScriptedOverseer(f"add-{name}", partial(self._act, bias=bias, low_short=low_short))
            for name, bias, low_short in ways
        )

    def checker(self) -> Checker:
        return super().checker() if self._is_checked else RuleChecker({"form": has_form})

    def _act(
        self,
        question: str,
        transcript: Sequence[Exchange],
        may_ask: bool,
        *,
        bias: int,
        low_short: bool,
    ) -> Step:
        step = split_sum(question, transcript, may_ask, low_short=low_short)
        a, _, _ = read(question)
        is_primitive = isinstance(step, Answer) and len(a) == 1
        return Answer(biased_sum(question, bias)) if is_primitive else step
