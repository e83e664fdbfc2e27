"""Gates decide whether a student replaces the agent (AI Safety Atlas 8.4.3, limitations 1, 5 and
6)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reflux.finetune.configs.run import GateConfig
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.scores import Score
from reflux.graphs.evals.task import Task


@dataclass(frozen=True)
class Gate:
    """One measured gate."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def judge(
    config: GateConfig,
    *,
    imitation: float | None = None,
    amplified: float | None = None,
    student: float | None = None,
    before: tuple[float, float] | None = None,
    passed: tuple[float, float] | None = None,
    agreement: float | None = None,
    parity: float | None = None,
    forgotten: float | None = None,
    lost: Mapping[str, float] | None = None,
    divergence: float | None = None,
) -> list[Gate]:
    """The gates of one round.

    Args:
        imitation: share of the overseer's answers that the student gives.
        amplified, student: accuracy on the same held-out questions.
        before: accuracy on the level of the round before of (the agent, the student).
        passed: share of answers that passed the check of (amplified, student).
        agreement: share of questions that amplified and student answer alike.
        parity: share of prompts on which the engines agree with plain PEFT.
        forgotten: the largest certain loss of accuracy, at most 0.
        lost: the largest certain loss of a behavior against the `base`, and the `control` student.
        divergence: from the base, in nats a token.
    """
    gates: list[Gate] = []
    if imitation is not None:
        gates.append(Gate("imitation", imitation, config.imitation))
    if amplified is not None and student is not None:
        retained = student / amplified if amplified > 0 else 0.0
        gates.append(Gate("retention", retained, config.retention))
    if passed is not None:
        retained = passed[1] / passed[0] if passed[0] > 0 else 0.0
        gates.append(Gate("checks_passed", retained, config.retention))
    if agreement is not None and config.agreement > 0:
        gates.append(Gate("agreement", agreement, config.agreement))
    if before is not None:
        gates.append(Gate("no_regression", before[1] - before[0], -config.regression))
    if parity is not None:
        gates.append(Gate("parity", parity, config.parity))
    if forgotten is not None:
        gates.append(Gate("forgetting", forgotten, -config.forgetting))
    lost = lost or {}
    for name, reference, limit in (
        ("behavior", "base", config.behavior),
        ("bias", "control", config.bias),
    ):
        if reference in lost:
            gates.append(Gate(name, -max(0.0, lost[reference]), -limit))
    if divergence is not None and config.divergence is not None:
        gates.append(Gate("divergence", -divergence, -config.divergence))
    return gates


def passed_checks(score: Score) -> dict[str, Any]:
    """The share of answers that passed the task's check."""
    passed = score.statuses.get("ok", 0)
    return {"passed": {"share": passed / score.n, "ci95": list(wilson(passed, score.n))}}


def agreement(
    task: Task, questions: Sequence[str], ones: Sequence[Outcome], others: Sequence[Outcome]
) -> dict[str, Any]:
    """The share of questions to which two systems say the same."""
    equal, n = 0, len(questions)
    for question, one, other in zip(questions, ones, others, strict=True):
        a, b = one["answer"], other["answer"]
        equal += a is not None and b is not None and task.same_answer(question, a, b)
    return {"share": equal / n, "n": n, "ci95": list(wilson(equal, n))}


def failed_gates(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The recorded gates (`Gate.to_json`) that a student did not pass."""
    return [gate for gate in gates if not gate["passed"]]
