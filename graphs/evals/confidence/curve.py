"""What it saves to ask the amplified system only where the agent is not sure, and what it costs.

Where both answered the same questions, every threshold of a cascade is known without a further
call: the agent's answers are taken from the surest on, and the amplified system's for the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 20
"""Steps of a curve, from the agent alone to the amplified system on every question."""


@dataclass(frozen=True)
class Both:
    """One question that the agent alone and the amplified system answered."""

    confidence: float | None
    """Of the agent's answer."""
    alone: bool
    """Whether the agent's answer is right."""
    amplified: bool
    tokens_alone: int
    tokens_amplified: int


@dataclass(frozen=True)
class Point:
    """A cascade at one threshold."""

    threshold: float | None
    """The least confidence with which the agent's answer stands; None where none does."""
    deferred: float
    """Share of the questions that the amplified system answers."""
    accuracy: float
    tokens: float
    """Of a question: the agent's, and the amplified system's where it is asked."""


def cost_curve(questions: Sequence[Both], points: int = POINTS) -> list[Point]:
    """Cascades from the agent alone to the amplified system on every question, by what they defer.

    Questions of equal confidence are deferred together. A deferred question costs the agent's
    answer, too; so the last point costs more than the amplified system alone.
    """
    order = sorted(questions, key=_sureness)
    n, right = len(order), sum(each.alone for each in order)
    tokens = sum(each.tokens_alone for each in order)
    found: list[Point] = []
    for deferred in range(n + 1):
        if deferred:
            last = order[deferred - 1]
            right += last.amplified - last.alone
            tokens += last.tokens_amplified
        rest = order[deferred:]
        if deferred and rest and _sureness(rest[0]) == _sureness(order[deferred - 1]):
            continue
        if deferred and rest and deferred * points < len(found) * n:
            continue
        threshold = max(0.0, _sureness(rest[0])) if rest else None
        found.append(Point(threshold, deferred / n, right / n, tokens / n))
    return found


def _sureness(both: Both) -> float:
    return -1.0 if both.confidence is None else both.confidence


def best_threshold(questions: Sequence[Both]) -> float:
    """The threshold at which a cascade is right most often, and of those the cheapest; over 1 where
    it defers every question."""
    best = max(cost_curve(questions, len(questions)), key=lambda p: (p.accuracy, -p.tokens))
    return 1.0 + 1e-9 if best.threshold is None else best.threshold
