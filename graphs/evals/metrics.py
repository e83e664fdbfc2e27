"""What an evaluation says of systems, as pure functions: intervals, tests, calibration.

Two systems answer the same questions, so they are compared question by question; questions, and
not answers, are what a repetition would draw anew.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reflux.agents.errors import UsageError

Z95 = 1.959963984540054
"""The normal distribution has 95% of its mass within this many standard deviations."""
RESAMPLES = 10_000
BINS = 10


def wilson(right: float, n: int, z: float = Z95) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927).

    `right` need not be whole: where n questions were asked several times it is n times the share of
    right answers, which varies less than single answers, so that the interval is rather too wide.

    Raises:
        UsageError: no questions.
    """
    if n < 1:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past.
    return (0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half)


def bootstrap(
    clusters: Sequence[tuple[float, int]], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95% percentile interval of a mean over clusters (Efron and Tibshirani 1993, chapter 13).

    With differences of two systems on the same questions it is the paired bootstrap (Koehn 2004);
    several answers to one question make one cluster and are drawn together.

    Args:
        clusters: (sum of the values, their number) of each question.
        seed: of the draws; the same one gives the same interval.

    Raises:
        UsageError: no questions.
    """
    if not clusters:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    # To draw n clusters with replacement is to draw how often each different one comes.
    kinds = sorted(Counter(clusters).items())
    share = np.array([count for _, count in kinds]) / len(clusters)
    drawn = np.random.default_rng(seed).multinomial(len(clusters), share, size=resamples)
    sums = drawn @ np.array([value for (value, _), _ in kinds], dtype=np.float64)
    sizes = drawn @ np.array([size for (_, size), _ in kinds], dtype=np.float64)
    low, high = np.quantile(sums / sizes, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two systems are right equally often (McNemar 1947).

    Only questions on which one of them alone is right tell them apart; if neither is better, each
    falls to either with probability 1/2: a binomial test.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1
    for k in range(least + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)  # Not math.comb: ten thousand anew would take minutes.
    # Whole numbers, because 2.0**n ends at n = 1023.
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Difference:
    """How much more often the first of two systems is right on the same questions."""

    first: str
    second: str
    value: float
    """Accuracy of the first minus that of the second."""
    ci95: tuple[float, float]
    """Paired bootstrap, by question."""
    p: float
    """McNemar's exact test. Where a question was asked with several seeds it counts once, for the
    system that was right more often."""
    only_first: int
    """Questions for the first, as the test counts them."""
    only_second: int
    n: int
    """Questions."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ci95 as a list."""
        return {**asdict(self), "ci95": list(self.ci95)}


def difference(
    first: str,
    second: str,
    right: Mapping[str, Sequence[tuple[bool, bool]]],
    seed: int,
) -> Difference:
    """Compare two systems; `right` holds of each question (first right, second right), once for
    each seed that it was asked with.

    Raises:
        UsageError: no questions.
    """
    clusters = [(sum(a - b for a, b in pairs), len(pairs)) for pairs in right.values()]
    low, high = bootstrap(clusters, seed)
    one = sum(total > 0 for total, _ in clusters)
    other = sum(total < 0 for total, _ in clusters)
    value = sum(total for total, _ in clusters) / sum(size for _, size in clusters)
    return Difference(
        first, second, value, (low, high), mcnemar(one, other), one, other, len(clusters)
    )


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence."""

    confidence: float
    """Mean."""
    accuracy: float
    ci95: tuple[float, float]
    """Wilson's, of the accuracy."""
    n: int


@dataclass(frozen=True)
class Calibration:
    """Whether a system is right as often as it is sure."""

    brier: float
    """Mean squared distance of confidence and rightness (Brier 1950); 0 is best, and 0.25 is what
    always saying 0.5 gives."""
    ece: float
    """Mean distance of accuracy and confidence over the bins, weighted by their answers."""
    bins: tuple[Bin, ...]
    n: int
    """Answers whose confidence is known."""
    unknown: int
    """Answers whose confidence is not."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        bins = [{**asdict(found), "ci95": list(found.ci95)} for found in self.bins]
        return {**asdict(self), "bins": bins}


def brier(answers: Sequence[tuple[float, bool]]) -> float:
    """Mean squared distance of (confidence, right) (Brier 1950)."""
    return sum((confidence - right) ** 2 for confidence, right in answers) / len(answers)


def reliability(answers: Sequence[tuple[float, bool]], bins: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal mass over (confidence, right), least sure first (Nguyen and O'Connor 2015).

    Answers of equal confidence stay in one bin, so that their order decides nothing: shares of
    votes have few values, and then there are fewer bins, or unequal ones.
    """
    ordered = sorted(answers, key=lambda answer: answer[0])
    found: list[Bin] = []
    begun = 0
    for at, (confidence, _) in enumerate(ordered):
        last = at + 1 == len(ordered)
        # The next bin begins where as many answers are behind as so many whole bins hold.
        full = (at + 1) * bins >= (len(found) + 1) * len(ordered)
        if not last and (not full or ordered[at + 1][0] == confidence):
            continue
        part = ordered[begun : at + 1]
        begun = at + 1
        right = sum(right for _, right in part)
        mean = sum(confidence for confidence, _ in part) / len(part)
        found.append(Bin(mean, right / len(part), wilson(right, len(part)), len(part)))
    return tuple(found)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini, Cooper and Hauskrecht 2015), over any bins."""
    total = sum(found.n for found in bins)
    return sum(found.n * abs(found.accuracy - found.confidence) for found in bins) / total


def calibration(answers: Sequence[tuple[float | None, bool]]) -> Calibration | None:
    """What (confidence, right) of every answer comes to; None where no confidence is known."""
    known = [(confidence, right) for confidence, right in answers if confidence is not None]
    if not known:
        return None
    bins = reliability(known)
    return Calibration(
        brier(known), calibration_error(bins), bins, len(known), len(answers) - len(known)
    )
