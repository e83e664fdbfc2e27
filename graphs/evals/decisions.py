"""Which of two systems is better, as a verdict that is wrong in at most `ALPHA` of evaluations.

Two hypotheses are tested on the differences of each question: that both are right equally often,
and that they differ by the margin or more. Rejecting the first means better or worse; rejecting
the second means equal within the margin; otherwise the question is undecided.

    once         McNemar's exact test, and two one-sided score tests (Schuirmann 1987; Tango 1998)
    repeatedly   e-values by betting (Waudby-Smith and Ramdas 2024, arXiv 2010.09686): the wealth of
                 a bettor whom the hypothesis gives no advantage exceeds 1/p with probability p at
                 most, at whatever time one looks (Ville 1939)

Several pairs are corrected by Holm's method. A pair's two hypotheses exclude each other, so of k
pairs at most k are true (Shaffer 1986).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from reflux.graphs.evals.metrics import mcnemar

ALPHA = 0.05
"""Share of evaluations in which a verdict may be wrong."""
POWER = 0.8
"""Of the number of questions that would decide."""
MAX_NEEDED = 10_000_000
STAKES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.48, 0.64, 0.8, 0.95)
"""Shares of the wealth that are bet, in equal parts: a mixture needs no guess of the effect."""
NORMAL = NormalDist()

Verdict = Literal["better", "worse", "equal", "undecided"]
"""Of the first system against the second."""


@dataclass(frozen=True)
class Differences:
    """How much more often the first of two systems was right, by question, each from -1 to 1."""

    values: Mapping[float, int]
    """How many questions have each difference."""

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Differences":
        """Count them."""
        return cls(Counter(differences))

    @property
    def n(self) -> int:
        """Questions."""
        return sum(self.values.values())

    @property
    def mean(self) -> float:
        """The difference of the accuracies."""
        return sum(value * count for value, count in self.values.items()) / max(1, self.n)

    @property
    def gained(self) -> float:
        """Sum of the positive differences: the questions that only the first has right."""
        return sum(max(0.0, value) * count for value, count in self.values.items())

    @property
    def lost(self) -> float:
        """Sum of the negative differences, without the sign."""
        return sum(max(0.0, -value) * count for value, count in self.values.items())


def score_z(differences: Differences, bound: float) -> float:
    """Tango's score statistic (1998) of the hypothesis that the mean difference is `bound`.

    Fractional differences, of several seeds, vary less than whole ones: it is conservative. So is
    half a question towards 0, because few questions differ.
    """
    n, gained, lost = differences.n, differences.gained, differences.lost
    b = -gained - lost + (2 * n - gained + lost) * bound
    c = -lost * bound * (1 - bound)
    share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * share + bound * (1 - bound))
    distance = gained - lost - n * bound
    distance = math.copysign(max(0.0, abs(distance) - 0.5), distance)
    return distance / math.sqrt(variance) if variance > 0 else 0.0


def p_equal(differences: Differences, margin: float) -> float:
    """p-value that the systems differ by `margin` or more: two one-sided tests."""
    if not differences.n or not margin:
        return 1.0
    return max(NORMAL.cdf(score_z(differences, margin)), NORMAL.cdf(-score_z(differences, -margin)))


def p_differ(differences: Differences) -> float:
    """McNemar's exact p-value that the systems are right equally often; a question with several
    seeds counts once, for the system that was right more often."""
    first = sum(count for value, count in differences.values.items() if value > 0)
    second = sum(count for value, count in differences.values.items() if value < 0)
    return mcnemar(first, second)


def log_wealth(differences: Differences, bound: float, direction: int) -> float:
    """Log of the e-value against the hypothesis that the mean difference is at most `bound`, or
    with `direction` -1 at least `bound`."""
    logs = [
        sum(
            count * math.log1p(stake * ((1 + direction * value) / (1 + direction * bound) - 1))
            for value, count in differences.values.items()
        )
        for stake in STAKES
    ]
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / len(logs))


def _p(log_e: float) -> float:
    return math.exp(-max(0.0, log_e))


def anytime_p_differ(differences: Differences) -> float:
    """p-value as `p_differ`, valid whenever it is looked at: half of the wealth is bet on each
    system."""
    up, down = (log_wealth(differences, 0.0, direction) for direction in (1, -1))
    top = max(up, down)
    return _p(top + math.log((math.exp(up - top) + math.exp(down - top)) / 2))


def anytime_p_equal(differences: Differences, margin: float) -> float:
    """p-value as `p_equal`, valid whenever it is looked at."""
    if not margin:
        return 1.0
    return max(_p(log_wealth(differences, -margin, 1)), _p(log_wealth(differences, margin, -1)))


def holm(ps: Sequence[float], max_true: int) -> list[float]:
    """p-values adjusted for their number, of which at most `max_true` hypotheses are true."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, ps[index] * min(max_true, len(ps) - rank)))
        adjusted[index] = highest
    return adjusted


def questions_needed(differences: Differences, margin: float, pairs: int = 1) -> int | None:
    """Questions in all that decide with probability `POWER`, if the systems differ as they did so
    far (Connor 1987); None where it takes more than `MAX_NEEDED`."""
    mean, n = differences.mean, differences.n
    # As if one question more had differed: none in few is no proof of none in many.
    differing = (differences.gained + differences.lost + 1) / (n + 1)
    spread, needed = math.sqrt(max(1e-12, differing - mean * mean)), math.inf
    z, power = NORMAL.inv_cdf(1 - ALPHA / pairs / 2), NORMAL.inv_cdf(POWER)
    if mean:
        needed = ((z * math.sqrt(differing) + power * spread) / mean) ** 2
    if (room := margin - abs(mean)) > 0:
        z, power = NORMAL.inv_cdf(1 - ALPHA / pairs), NORMAL.inv_cdf((1 + POWER) / 2)
        needed = min(needed, ((z + power) * spread / room) ** 2)
    return max(n + 1, math.ceil(needed)) if needed <= MAX_NEEDED else None


@dataclass(frozen=True)
class Decision:
    """The verdict on one pair of systems."""

    first: str
    second: str
    verdict: Verdict
    difference: float
    """Accuracy of the first minus that of the second."""
    margin: float
    p_differ: float
    """Adjusted for the number of pairs, as `p_equal`."""
    p_equal: float
    n: int
    needed: int | None
    """Where it is undecided, the questions in all that would probably decide it; None where
    that is more than `MAX_NEEDED`."""
    unscored: int
    """Questions left out, because an answer to them has no score."""


def decide(
    pairs: Mapping[tuple[str, str], tuple[Differences, int]], margin: float, *, anytime: bool
) -> list[Decision]:
    """The verdicts on all pairs: (differences, unscored questions) by the names of the systems.

    Args:
        anytime: the differences were looked at before, and may be again.
    """
    ps: list[float] = []
    for differences, _ in pairs.values():
        if anytime:
            ps += [anytime_p_differ(differences), anytime_p_equal(differences, margin)]
        else:
            ps += [p_differ(differences), p_equal(differences, margin)]
    adjusted = holm(ps, len(pairs))
    decisions: list[Decision] = []
    for index, ((first, second), (differences, unscored)) in enumerate(pairs.items()):
        differ, equal = adjusted[2 * index : 2 * index + 2]
        verdict: Verdict = "undecided"
        if equal <= ALPHA:
            verdict = "equal"
        elif differ <= ALPHA:
            verdict = "better" if differences.mean > 0 else "worse"
        needed = None
        if verdict == "undecided":
            needed = questions_needed(differences, margin, len(pairs))
        decisions.append(
            Decision(
                first,
                second,
                verdict,
                differences.mean,
                margin,
                differ,
                equal,
                differences.n,
                needed,
                unscored,
            )
        )
    return decisions
