"""Statistics of an evaluation, as pure functions: intervals and tests.

Systems answer the same questions, so they are compared question by question. The unit of sampling
is the question, not the answer.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reflux.agents.errors import UsageError

Z95 = 1.959963984540054
"""The normal distribution has 95% of its mass within this many standard deviations."""
RESAMPLES = 10_000


def wilson(right: float, n: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927).

    `right` may be fractional: if n questions were asked several times each, it is n times the share
    of right answers. Such a share varies less than single answers, so the interval is conservative.

    Raises:
        UsageError: no questions.
    """
    if n < 1:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    p, z = right / n, Z95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the interval ends at exactly 0 or 1; rounding must not exceed them.
    return (0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half)


def bootstrap(
    clusters: Sequence[tuple[float, int]], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95% percentile interval of a mean over clusters (Efron and Tibshirani 1993, chapter 13).

    For differences of two systems on the same questions it is the paired bootstrap (Koehn 2004);
    answers to one question are one cluster: (sum of the values, their number).

    Raises:
        UsageError: no questions.
    """
    if not clusters:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    # Drawing n clusters with replacement is drawing the count of each different one.
    kinds = sorted(Counter(clusters).items())
    share = np.array([count for _, count in kinds]) / len(clusters)
    drawn = np.random.default_rng(seed).multinomial(len(clusters), share, size=resamples)
    sums = drawn @ np.array([value for (value, _), _ in kinds], dtype=np.float64)
    sizes = drawn @ np.array([size for (_, size), _ in kinds], dtype=np.float64)
    low, high = np.quantile(sums / sizes, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two systems are right equally often (McNemar 1947).

    A binomial test over the questions on which exactly one of them is right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)  # math.comb would take minutes for ten thousand.
    # Integers, because 2.0**n overflows at n = 1024.
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Difference:
    """How much more often the first of two systems is right on the same questions."""

    first: str
    second: str
    value: float
    ci95: tuple[float, float]
    """Paired bootstrap, by question."""
    p: float
    """McNemar's exact test. A question with several seeds counts once, for the system that was
    right more often."""
    only_first: int
    only_second: int
    n: int


def difference(
    first: str,
    second: str,
    right: Mapping[str, Sequence[tuple[bool, bool]]],
    seed: int,
) -> Difference:
    """Compare two systems; `right` holds (first right, second right) by question, for each seed.

    Raises:
        UsageError: no questions.
    """
    clusters = [(sum(a - b for a, b in pairs), len(pairs)) for pairs in right.values()]
    low, high = bootstrap(clusters, seed)
    only_first = sum(total > 0 for total, _ in clusters)
    only_second = sum(total < 0 for total, _ in clusters)
    value = sum(total for total, _ in clusters) / sum(size for _, size in clusters)
    p = mcnemar(only_first, only_second)
    return Difference(first, second, value, (low, high), p, only_first, only_second, len(clusters))
