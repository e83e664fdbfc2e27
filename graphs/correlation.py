"""How far copies err together, from their votes on the same questions.

The intraclass correlation of being right: 0 where each vote errs on its own, 1 where all copies
are right or wrong as one, which no vote can mend.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agents.errors import UsageError

REPEATS = 1_000


@dataclass(frozen=True)
class Votes:
    """What was measured of the votes of many questions."""

    accuracy: float
    """Of one vote."""
    correlation: float
    """Of two votes on one question being right; below 0 where copies err less together than by
    chance."""
    ci95: tuple[float, float]
    """Of the correlation: what a bootstrap over questions and the large-sample error both cover."""
    questions: int
    votes: int
    """Of each question."""
    left_out: int
    """Questions with fewer votes."""


def correlation(right: Sequence[Sequence[bool]], seed: int = 0) -> Votes:
    """Estimate both from the votes of each question, in the order in which they were asked.

    A question has more votes where the first ones disagreed, so later votes are no fair sample:
    of all questions with two or more, only as many votes count as each of them has. Estimated by
    analysis of variance (Ridout, Demétrio and Firth 1999, equation 2.1).

    Raises:
        UsageError: fewer than two questions have two votes.
    """
    usable = [votes for votes in right if len(votes) >= 2]
    if len(usable) < 2:
        raise UsageError(
            f"{len(usable)} questions have two votes or more: the correlation of errors needs at "
            "least 2; have every question voted on (votes.sure: null)"
        )
    size = min(map(len, usable))
    counts = [sum(votes[:size]) for votes in usable]
    draw = random.Random(seed)
    estimates = sorted(
        _intraclass(draw.choices(counts, k=len(counts)), size) for _ in range(REPEATS)
    )
    found = _intraclass(counts, size)
    half = 1.96 * _standard_error(found, size, len(counts))
    # Where no two votes were wrong together, no bootstrap ever sees that they may be.
    low = min(estimates[int(0.025 * REPEATS)], found - half)
    high = max(estimates[int(0.975 * REPEATS) - 1], found + half)
    return Votes(
        sum(counts) / (size * len(counts)),
        found,
        (max(-1.0, low), min(1.0, high)),
        len(counts),
        size,
        len(right) - len(usable),
    )


def _intraclass(counts: Sequence[int], size: int) -> float:
    """ICC of `len(counts)` questions with `size` votes each; 0 where all votes are alike."""
    n = len(counts)
    mean = sum(counts) / (n * size)
    between = sum((count / size - mean) ** 2 for count in counts) * size / (n - 1)
    within = sum(count * (1 - count / size) for count in counts) / (n * (size - 1))
    whole = between + (size - 1) * within
    return (between - within) / whole if whole else 0.0


def _standard_error(found: float, size: int, n: int) -> float:
    """Of an intraclass correlation of `n` questions (Fisher 1925, section 39)."""
    spread = (1 - found) * (1 + (size - 1) * found)
    return abs(spread) * (2 / (size * (size - 1) * (n - 1))) ** 0.5
