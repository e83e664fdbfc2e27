"""From one vote's accuracy to the root's error: how many votes a reliability takes, and its price.

First-to-ahead-by-k on two answers is a walk between two walls, so its error and its length are
known (gambler's ruin; MAKER, arXiv 2511.09030, section 3.2, equations 9 to 18). Where errors are
shared, a copy's accuracy differs from question to question: it is drawn from a Beta distribution
whose intraclass correlation is the correlation of two votes on one question, and the walk is
averaged over it. Wrong votes are taken to name one answer, the worst case.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reflux.agents.errors import UsageError
from reflux.graphs.voting.stopping import log_beta

MOST_LEAD = 1_000
"""Larger leads are not looked for where errors are shared, nor walked."""
MOST_STEPS = 10**18
TINY = 1e-12
"""A correlation below it is none: what it changes is less than what is rounded."""


@dataclass(frozen=True)
class Plan:
    """What a target takes."""

    target: float
    """Probability that all steps are right."""
    steps: int
    accuracy: float
    """Of one vote."""
    correlation: float
    """Of two votes on one question being right, 0 to 1."""
    margin: int
    """k, the least that meets the target."""
    step_error: float
    votes_per_step: float
    success: float
    """Predicted, at least the target."""

    @property
    def votes(self) -> float:
        """Expected in all."""
        return self.votes_per_step * self.steps


def step_error(margin: int, accuracy: float, correlation: float = 0.0) -> float:
    """Probability that a step's vote ends wrong, without a limit of votes."""
    return _averaged(lambda logit: _ruin(margin, logit), accuracy, correlation)


def expected_votes(margin: int, accuracy: float, correlation: float = 0.0) -> float:
    """Votes that a step takes on average, without a limit."""
    return _averaged(lambda logit: _length(margin, logit), accuracy, correlation)


def votes_needed(target: float, steps: int, accuracy: float, correlation: float = 0.0) -> int:
    """The least lead k with which all steps are right with probability `target`.

    Raises:
        UsageError: no lead is enough, or the figures are none.
    """
    _require(target, steps, accuracy, correlation)
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
    low, high = 1, 1
    while step_error(high, accuracy, correlation) > allowed:
        low, high = high, 2 * high
        if high > MOST_LEAD:
            raise UsageError(
                f"a lead of {MOST_LEAD} is not enough for {target:g} over {steps:,} steps with a "
                f"correlation of {correlation:g}; lower the target"
            )
    while low < high:
        middle = (low + high) // 2
        if step_error(middle, accuracy, correlation) > allowed:
            low = middle + 1
        else:
            high = middle
    return high


def plan(target: float, steps: int, accuracy: float, correlation: float = 0.0) -> Plan:
    """The cheapest lead that meets a target, and what is to be expected of it.

    Raises:
        UsageError: voting cannot meet it; the message says why.
    """
    margin = votes_needed(target, steps, accuracy, correlation)
    error = step_error(margin, accuracy, correlation)
    return Plan(
        target,
        steps,
        accuracy,
        correlation,
        margin,
        error,
        expected_votes(margin, accuracy, correlation),
        math.exp(steps * math.log1p(-error)) if error < 1 else 0.0,
    )


def shared_floor(accuracy: float, correlation: float) -> float:
    """Error of a step that no number of votes mends: the share of questions on which a copy is
    more often wrong than right."""
    if correlation >= 1:
        return 1 - accuracy
    return _averaged(lambda logit: 0.5 if logit == 0 else float(logit < 0), accuracy, correlation)


@dataclass(frozen=True)
class Walk:
    """How first-to-ahead-by-k ends with a limit of votes."""

    right: float
    wrong: float
    undecided: float
    """Neither was k ahead when the votes ended."""
    votes: float
    """On average."""


def walk(margin: int, max_votes: int, accuracy: float) -> Walk:
    """The same with at most `most` votes, exactly, by dynamic programming; takes `margin * most`
    steps."""
    at = np.zeros(
        2 * margin - 1
    )  # (places,): chances of all between the walls, zero in the middle.
    at[margin - 1] = 1.0
    right = wrong = votes = 0.0
    for _ in range(max_votes):
        votes += float(at.sum())
        right += float(at[-1]) * accuracy
        wrong += float(at[0]) * (1 - accuracy)
        up, down = at[:-1] * accuracy, at[1:] * (1 - accuracy)
        at = np.zeros_like(at)
        at[1:] += up
        at[:-1] += down
    return Walk(right, wrong, float(at.sum()), votes)


def wald_bound(error: float, accuracy: float) -> float:
    """The fewest votes, on average, of any test that errs so often on two answers with a known
    accuracy (Wald 1945, section 4.7)."""
    if not 0 < error < 1:
        return 0.0
    drift = (2 * accuracy - 1) * _logit(accuracy)
    # At an even chance the drift is gone, and with it what can be told apart.
    return (2 * error - 1) * _logit(error) / drift if drift else 0.0


def _ruin(margin: int, logit: float) -> float:
    """1 / (1 + (p/q)^k)."""
    x = margin * logit
    return math.exp(-x) / (1 + math.exp(-x)) if x > 0 else 1 / (1 + math.exp(x))


def _length(margin: int, logit: float) -> float:
    """k (1 - 2e) / (2p - 1), which is k² at an even chance."""
    if abs(logit) < 1e-300:  # Not larger: a large lead tells 0.500001 from an even chance.
        return float(margin * margin)
    return margin * math.tanh(margin * logit / 2) / math.tanh(logit / 2)


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


POINTS = 400
"""Of the integration on either side."""


def _averaged(of: Callable[[float], float], accuracy: float, correlation: float) -> float:
    """Mean of a function of a copy's log-odds of being right, over questions.

    By the trapezoid rule in the log-odds, where the Beta density is smooth and falls off
    exponentially however the mass piles up at 0 and 1.
    """
    if not 0 < accuracy < 1:
        return of(math.copysign(700.0, accuracy - 0.5))
    centre = _logit(accuracy)
    if correlation < TINY:
        return of(centre)
    if correlation >= 1:
        return accuracy * of(700.0) + (1 - accuracy) * of(-700.0)
    a = accuracy * (1 - correlation) / correlation
    b = (1 - accuracy) * (1 - correlation) / correlation
    width = math.sqrt(1 / a + 1 / b)
    reach = math.asinh((abs(centre) + 60 / min(a, b, 1.0)) / width)
    step = reach / POINTS
    norm = log_beta(a, b)
    mass = total = 0.0
    for number in range(-POINTS, POINTS + 1):
        t = number * step
        logit = centre + width * math.sinh(t)
        # x^a (1-x)^b, with ln x = -ln(1 + e^-u) and ln(1-x) = -ln(1 + e^u)
        density = math.exp(-a * _softplus(-logit) - b * _softplus(logit) - norm)
        weight = density * width * math.cosh(t) * step
        mass += weight
        total += weight * of(max(-700.0, min(700.0, logit)))
    return total / mass


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _require(target: float, steps: int, accuracy: float, correlation: float) -> None:
    if not 0 < target < 1:
        raise UsageError(f"the target is {target:g}; it must lie between 0 and 1, say 0.99")
    if steps < 1:
        raise UsageError(f"{steps} steps: there must be at least 1")
    if steps > MOST_STEPS:
        raise UsageError(f"the steps have {len(str(steps))} digits: at most {MOST_STEPS:g} can be")
    if not 0 <= correlation <= 1:
        raise UsageError(f"the correlation is {correlation:g}; it must be 0 to 1")
    if not 0 <= accuracy <= 1:
        raise UsageError(f"the accuracy is {accuracy:g}; it must be 0 to 1")
    if accuracy <= 0.5:
        raise UsageError(
            f"one vote is right with probability {accuracy:g}: with 0.5 or less voting does not "
            "converge on the right answer, however many are asked; divide the question further, "
            "or improve the model"
        )
    if accuracy == 1.0:
        raise UsageError(
            "one vote is always right, as far as was measured: no vote is needed; measure more "
            "questions to see its errors"
        )
