"""From one vote's accuracy to the root's error: how many votes a reliability takes.

First-to-ahead-by-k on two answers is a random walk between two absorbing walls, so its error and
length have closed forms (gambler's ruin; MAKER, arXiv 2511.09030, section 3.2, equations 9 to 18).
Where errors are shared, a copy's accuracy varies by question: a Beta distribution whose intraclass
correlation is the correlation of two votes on one question, over which the forms are averaged.
All wrong votes are assumed to name one answer, the worst case.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reflux.agents.errors import UsageError, check_range

MAX_MARGIN = 1_000
"""Largest margin that is searched where errors are shared, and that `limited_vote` computes."""
MAX_STEPS = 10**18
TINY = 1e-12
"""A smaller correlation counts as zero: its effect is below rounding."""
FloatArray = NDArray[np.float64]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class Plan:
    """The votes that a target takes."""

    target: float
    """Required probability that all steps are correct."""
    steps: int
    accuracy: float
    """Of one vote."""
    correlation: float
    """Of two votes on one question being correct."""
    margin: int
    """k, the smallest that meets the target."""
    step_error: float
    votes_per_step: float
    p_all_correct: float

    @property
    def votes(self) -> float:
        """Expected votes in total."""
        return self.votes_per_step * self.steps


def step_error(margin: int, accuracy: float, correlation: float = 0.0) -> float:
    """Probability that a step's vote ends at the wrong wall, 1 / (1 + (p/q)^k), with unlimited
    votes."""
    return _averaged(lambda x: np.exp(-np.logaddexp(0, margin * x)), accuracy, correlation)


def expected_votes(margin: int, accuracy: float, correlation: float = 0.0) -> float:
    """Mean votes of a step, with unlimited votes: k (1 - 2e) / (2p - 1), which is k² at p = 0.5."""
    # Only a zero is replaced: a large margin tells 0.500001 from 0.5.
    return _averaged(
        lambda x: margin * np.tanh(margin * (x := x + (x == 0) * 1e-300) / 2) / np.tanh(x / 2),
        accuracy,
        correlation,
    )


def votes_needed(target: float, steps: int, accuracy: float, correlation: float = 0.0) -> int:
    """The smallest margin k with which all steps are correct with probability `target`.

    Raises:
        UsageError: no margin is enough, or an argument is out of range.
    """
    _check_arguments(target, steps, accuracy, correlation)
    allowed = -math.expm1(math.log(target) / steps)  # Error of one step.
    if correlation < TINY:
        if allowed >= 1 - accuracy:  # Of one vote: it may be any up to 1, which has no log-odds.
            return 1
        # Not log(allowed / (1 - allowed)) of a rounded 1 - allowed: allowed can be 1e-9.
        return max(1, math.ceil(_logit(allowed) / _logit(1 - accuracy) - 1e-12))
    floor = shared_floor(accuracy, correlation)
    if floor >= allowed:
        raise UsageError(
            f"voting cannot help: with a correlation of {correlation:g} the copies are wrong "
            f"together on {floor:.2g} of the steps, and {target:g} over {steps:,} steps allows "
            f"{allowed:.2g}; make their errors differ (votes.variants), check by another method, "
            "or improve the model"
        )
    high = 1
    while step_error(high, accuracy, correlation) > allowed:
        high *= 2
        if high > MAX_MARGIN:
            raise UsageError(
                f"a margin of {MAX_MARGIN} is not enough for {target:g} over {steps:,} steps with "
                f"a correlation of {correlation:g}; lower the target"
            )
    margins = range(high // 2 + 1, high)
    return margins.start + bisect_left(
        margins, True, key=lambda margin: step_error(margin, accuracy, correlation) <= allowed
    )


def plan(target: float, steps: int, accuracy: float, correlation: float = 0.0) -> Plan:
    """The cheapest margin that meets a target, and its expected votes and error.

    Raises:
        UsageError: voting cannot meet it.
    """
    margin = votes_needed(target, steps, accuracy, correlation)
    error = step_error(margin, accuracy, correlation)
    votes = expected_votes(margin, accuracy, correlation)
    p_all_correct = math.exp(steps * math.log1p(-error)) if error < 1 else 0.0
    return Plan(target, steps, accuracy, correlation, margin, error, votes, p_all_correct)


def shared_floor(accuracy: float, correlation: float) -> float:
    """Error of a step that no number of votes corrects: the share of questions on which a copy is
    wrong more often than right."""
    return _averaged(lambda logit: np.heaviside(-logit, 0.5), accuracy, correlation)


@dataclass(frozen=True)
class LimitedVote:
    """Probabilities of how first-to-ahead-by-k ends with limited votes."""

    correct: float
    wrong: float
    undecided: float
    """No answer was k ahead when the votes ran out."""
    votes: float
    """Mean."""


def limited_vote(margin: int, max_votes: int, accuracy: float) -> LimitedVote:
    """First-to-ahead-by-k with at most `max_votes` votes, exactly, in O(margin * max_votes)."""
    leads = np.zeros(2 * margin - 1)  # (leads,): probability of each lead from 1 - k to k - 1.
    leads[margin - 1] = 1.0
    correct = wrong = votes = 0.0
    for _ in range(max_votes):
        votes += float(leads.sum())
        correct += float(leads[-1]) * accuracy
        wrong += float(leads[0]) * (1 - accuracy)
        up, down = leads[:-1] * accuracy, leads[1:] * (1 - accuracy)
        leads = np.zeros_like(leads)
        leads[1:] += up
        leads[:-1] += down
    return LimitedVote(correct, wrong, float(leads.sum()), votes)


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _averaged(
    function: Callable[[FloatArray], FloatArray], accuracy: float, correlation: float
) -> float:
    """Mean of a function of a copy's log-odds of being right, over questions.

    Gauss-Legendre in the log-odds, where the Beta density is smooth and decays exponentially even
    where its mass piles up at 0 and 1. The intervals grow away from 0, where the functions change
    or jump, and from the mean, where the density peaks.
    """
    if not 0 < accuracy < 1 or correlation < TINY:
        certain = math.copysign(700.0, accuracy - 0.5)
        return float(function(np.array(_logit(accuracy) if 0 < accuracy < 1 else certain)))
    if correlation >= 1:
        always, never = function(np.array([700.0, -700.0]))
        return float(accuracy * always + (1 - accuracy) * never)
    a = accuracy * (1 - correlation) / correlation
    b = (1 - accuracy) * (1 - correlation) / correlation
    mean, width = _logit(accuracy), math.sqrt(1 / a + 1 / b)
    reach = 2 * (abs(mean) + width + 60 / min(a, b, 1.0))
    away = np.geomspace(min(width, 1e-3) / 8, reach, 100)
    edges = np.unique([0.0, mean, *away, *-away, *(mean + away), *(mean - away)])
    half, nodes = np.diff(edges)[:, None] / 2, edges[:-1, None]
    logits = nodes + half * (1 + NODES)  # (intervals, nodes)
    # x^a (1-x)^b, with ln x = -ln(1 + e^-u) and ln(1-x) = -ln(1 + e^u)
    density = -a * np.logaddexp(0, -logits) - b * np.logaddexp(0, logits)
    weights = np.exp(density - density.max()) * half * WEIGHTS
    return float(np.sum(weights * function(np.clip(logits, -700, 700))) / np.sum(weights))


def _check_arguments(target: float, steps: int, accuracy: float, correlation: float) -> None:
    if not 0 < target < 1:
        raise UsageError(f"the target is {target:g}; it must be between 0 and 1, say 0.99")
    if steps > MAX_STEPS:
        raise UsageError(
            f"the number of steps has {len(str(steps))} digits: {MAX_STEPS:g} is the limit"
        )
    check_range("the number of steps", steps, least=1)
    if not 0 <= correlation <= 1:
        raise UsageError(f"the correlation is {correlation:g}; it must be 0 to 1")
    if not 0 <= accuracy <= 1:
        raise UsageError(f"the accuracy is {accuracy:g}; it must be 0 to 1")
    if accuracy <= 0.5:
        raise UsageError(
            f"one vote is right with probability {accuracy:g}: with 0.5 or less voting does not "
            "converge on the right answer; divide the question further, or improve the model"
        )
    if accuracy == 1.0:
        raise UsageError(
            "every measured vote is right, so no vote is needed; measure more questions to see "
            "errors"
        )
