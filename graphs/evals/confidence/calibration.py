"""How well confidence predicts what is right, and the scaling that makes it do so.

Pure functions of (confidence, right) of each answer. Temperature scaling is what any claim of a
better calibrated student has to beat: it costs two numbers, and no training.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reflux.agents.errors import UsageError
from reflux.agents.overseers.router import logistic
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.voting.confidence import Scaling, log_odds

BINS = 10
MIN_ANSWERS = 20
"""A scaling is fitted on, at least."""
MAX_TEMPERATURE = 100.0
"""At this one a confidence tells nothing any more."""
Answers = Sequence[tuple[float, bool]]
"""(confidence, right) of each answer."""


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence."""

    confidence: float
    accuracy: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Calibration:
    """How well a system's confidence predicts its accuracy."""

    brier: float
    """Mean squared error of the confidence (Brier 1950); 0 is best, and a constant 0.5 has 0.25."""
    ece: float
    """Mean distance of accuracy and confidence over the bins, weighted by their answers."""
    bins: tuple[Bin, ...]
    n: int
    """Answers whose confidence is known."""
    unknown: int


def brier(answers: Sequence[tuple[float, bool]]) -> float:
    """Mean squared distance of (confidence, right) (Brier 1950)."""
    return sum((confidence - right) ** 2 for confidence, right in answers) / len(answers)


def reliability(answers: Sequence[tuple[float, bool]], bins: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal mass over (confidence, right), by confidence (Nguyen and O'Connor 2015).

    Answers of equal confidence share a bin, so shares of votes, which have few values, give fewer
    or unequal bins.
    """
    ordered = sorted(answers, key=lambda answer: answer[0])
    result: list[Bin] = []
    start = 0
    for end, (confidence, _) in enumerate(ordered, start=1):
        # A bin ends where the answers so far fill it and those before it.
        full = end * bins >= (len(result) + 1) * len(ordered)
        if end < len(ordered) and (not full or ordered[end][0] == confidence):
            continue
        part = ordered[start:end]
        start = end
        right = sum(right for _, right in part)
        mean = sum(confidence for confidence, _ in part) / len(part)
        result.append(Bin(mean, right / len(part), wilson(right, len(part)), len(part)))
    return tuple(result)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini, Cooper and Hauskrecht 2015), over any bins."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / total


def calibration(answers: Sequence[tuple[float | None, bool]]) -> Calibration | None:
    """Calibration over (confidence, right) of each answer; None where no confidence is known."""
    known = [(confidence, right) for confidence, right in answers if confidence is not None]
    if not known:
        return None
    bins = reliability(known)
    return Calibration(
        brier(known), calibration_error(bins), bins, len(known), len(answers) - len(known)
    )


def fit_scaling(answers: Answers) -> Scaling:
    """The scaling under which the answers are most likely, of a logistic regression on their
    log-odds, with Platt's targets: answers that are all right don't make it infinitely sure.

    Raises:
        UsageError: there are fewer than 20 answers.
    """
    if len(answers) < MIN_ANSWERS:
        raise UsageError(
            f"a confidence is scaled by {MIN_ANSWERS} held-out answers or more, there are "
            f"{len(answers)}"
        )
    right = sum(right for _, right in answers)
    sure, unsure = (right + 1) / (right + 2), 1 / (len(answers) - right + 2)
    y = np.array([sure if right else unsure for _, right in answers])
    x = np.array([(1.0, log_odds(confidence)) for confidence, _ in answers])
    offset, slope = logistic(x, y)
    if slope < 1 / MAX_TEMPERATURE:  # It tells nothing, or the contrary.
        slope, offset = 1 / MAX_TEMPERATURE, log_odds(float(y.mean()))
    return Scaling(1 / slope, offset)


@dataclass(frozen=True)
class Scaled:
    """A scaling, and what it is worth."""

    scaling: Scaling
    """Fitted on all answers."""
    before: Calibration
    after: Calibration
    """Each half of the answers by the scaling of the other half."""

    def to_json(self) -> dict[str, Any]:
        """The scaling, and the errors before and after."""
        return {
            **asdict(self.scaling),
            "n": self.before.n,
            "ece": [self.before.ece, self.after.ece],
            "brier": [self.before.brier, self.after.brier],
        }


def scaled(answers: Sequence[tuple[float | None, bool]]) -> Scaled | None:
    """Fit a scaling and measure it on answers that it was not fitted on; None where too few have a
    known confidence."""
    known = [(confidence, right) for confidence, right in answers if confidence is not None]
    before = calibration(known)
    if before is None or len(known) < 2 * MIN_ANSWERS:
        return None
    halves = known[::2], known[1::2]
    moved: list[tuple[float | None, bool]] = []
    for half, other in (halves, halves[::-1]):
        scaling = fit_scaling(other)
        moved += [(scaling.probability(confidence), right) for confidence, right in half]
    after = calibration(moved)
    return None if after is None else Scaled(fit_scaling(known), before, after)
