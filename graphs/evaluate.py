"""Runs a system over held-out questions and scores it, with an interval and its price."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphs.statistics import wilson
from graphs.systems import Asked, System, answer_every
from graphs.task import Task, refuse_training, score_held_out


@dataclass(frozen=True)
class Score:
    """How one system did on n held-out questions."""

    accuracy: float
    n: int
    ci95: tuple[float, float]
    """Wilson score interval."""
    calls: int
    """Model calls the system made, those answered from the cache among them."""
    cached: int
    tokens: int
    statuses: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ci95 as a list."""
        return {**asdict(self), "ci95": list(self.ci95)}


async def evaluate(
    system: System,
    task: Task,
    asked: Asked,
    questions: Sequence[str],
    *,
    together: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> Score:
    """Answer every question and score the answers.

    Raises:
        UsageError: a training question is among them, or there are none.
        EndpointError: the endpoint is down; what it did answer is recorded.
        RefluxError: the run's purse is empty.
    """
    for question in questions:
        refuse_training(task, question)
    outcomes = await answer_every(system, asked, questions, together=together, on_done=on_done)
    right = sum(
        score_held_out(task, question, outcome["answer"])
        for question, outcome in zip(questions, outcomes, strict=True)
    )
    statuses: dict[str, int] = {}
    for outcome in outcomes:
        statuses[outcome["status"]] = statuses.get(outcome["status"], 0) + 1
    return Score(
        accuracy=right / max(1, len(questions)),
        n=len(questions),
        ci95=wilson(right, len(questions)),
        calls=sum(o["spent"]["calls"] for o in outcomes),
        cached=sum(o["spent"]["cached"] for o in outcomes),
        tokens=sum(o["spent"]["tokens"] for o in outcomes),
        statuses=statuses,
    )
