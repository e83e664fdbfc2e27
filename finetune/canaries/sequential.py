"""A test of drift that stays valid however many rounds are looked at: small losses add up.

Each round asks its own probes of a student and of a reference, and each probe is lost (+1: only the
reference behaved), gained (-1) or the same (0). Against the hypothesis that the mean loss is at
most m, one bets at fair odds: the stakes

    E(m) = mean over f of the product over all probes of 1 + f (x - m) / (1 + m)

are a supermartingale from 1, so that E ever reaches 1 / alpha with probability alpha at most
(Ville 1939; betting on bounded means: Waudby-Smith and Ramdas 2024, arXiv 2010.09686). The largest
m that is refuted is the certain loss: no number of rounds makes it wrong more often than alpha.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.02
"""Chance of an alarm in a whole run in which nothing was lost, over all behaviors together."""
BETS = (0.1, 0.25, 0.5, 0.75, 0.95)
STEPS = 40
"""Halvings of the interval in which the certain loss is."""


@dataclass(frozen=True)
class Pairs:
    """Probes that a student and a reference both replied to, by who behaved."""

    lost: int
    """Only the reference."""
    gained: int
    """Only the student."""
    n: int

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(self.lost + other.lost, self.gained + other.gained, self.n + other.n)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return (self.lost - self.gained) / self.n if self.n else 0.0


def pairs_of(reference: Sequence[bool], student: Sequence[bool]) -> Pairs:
    """Counts of who behaved, probe by probe."""
    both = list(zip(reference, student, strict=True))
    return Pairs(sum(a and not b for a, b in both), sum(b and not a for a, b in both), len(both))


def stakes(pairs: Pairs, bound: float) -> float:
    """The evidence against a mean loss of at most `bound`, as the logarithm of E."""
    same = pairs.n - pairs.lost - pairs.gained
    logs: list[float] = []
    for bet in BETS:
        share = bet / (1 + bound)
        factors = ((pairs.lost, 1.0), (pairs.gained, -1.0), (same, 0.0))
        logs.append(sum(n * math.log1p(share * (x - bound)) for n, x in factors if n))
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / len(logs))


def certain_loss(pairs: Pairs, alpha: float) -> float:
    """The largest mean loss that the pairs refute at level `alpha`; -1 where they refute none."""
    low, high = -1.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        refuted = stakes(pairs, middle) >= math.log(1 / alpha)
        low, high = (middle, high) if refuted else (low, middle)
    return low
