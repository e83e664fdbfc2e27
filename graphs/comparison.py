"""Systems side by side: each one's accuracy and price, and every pair's difference."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from agents.errors import RefluxError, UsageError
from graphs.answers import Answered
from graphs.statistics import Calibration, Difference, calibration, difference, wilson


@dataclass(frozen=True)
class Summary:
    """How one system did."""

    model: str
    accuracy: float
    n: int
    """Answers: questions times seeds, as far as each seed asks the same ones."""
    questions: int
    """Different questions."""
    ci95: tuple[float, float]
    """Wilson's over the questions, however often each was asked."""
    calls: int
    cached: int
    tokens: int
    seconds: float
    """Of all model calls, added up."""
    cost: float | None
    statuses: Mapping[str, int]
    calibration: Calibration | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        calibrated = self.calibration.to_json() if self.calibration else None
        return {**asdict(self), "ci95": list(self.ci95), "calibration": calibrated}


def summary(model: str, answers: Sequence[Answered]) -> Summary:
    """Add up the answers of one system.

    Raises:
        UsageError: there are none.
    """
    if not answers:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    questions = len({answer.id for answer in answers})
    right = sum(answer.right for answer in answers)
    statuses: dict[str, int] = {}
    for answer in answers:
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    costs = [answer.cost for answer in answers]
    known = [cost for cost in costs if cost is not None]
    return Summary(
        model=model,
        accuracy=right / len(answers),
        n=len(answers),
        questions=questions,
        # Around the accuracy, whichever questions were asked more often than others.
        ci95=wilson(right * questions / len(answers), questions),
        calls=sum(answer.calls for answer in answers),
        cached=sum(answer.cached for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
        cost=sum(known) if len(known) == len(costs) else None,
        statuses=dict(sorted(statuses.items())),
        calibration=calibration([(answer.confidence, answer.right) for answer in answers]),
    )


def differences(answers: Mapping[str, Sequence[Answered]], seed: int) -> list[Difference]:
    """Every two systems on the same questions, in the order in which they were named; the later
    one minus the earlier one."""
    return [
        difference(second, first, _pairs(answers[second], answers[first]), seed)
        for first, second in combinations(answers, 2)
    ]


def _pairs(
    first: Sequence[Answered], second: Sequence[Answered]
) -> dict[str, list[tuple[bool, bool]]]:
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    if [(a.seed, a.question) for a in first] != [(b.seed, b.question) for b in second]:
        raise RefluxError("two systems were asked different questions; please report this")
    for one, other in zip(first, second, strict=True):
        pairs.setdefault(one.id, []).append((one.right, other.right))
    return pairs
