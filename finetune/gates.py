"""Gates decide whether a student replaces the agent (AI Safety Atlas 8.4.3, limitations 1, 5 and
6)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reflux.finetune.config import GateConfig


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
    canary: float | None = None,
    parity: float | None = None,
) -> list[Gate]:
    """The gates of one round.

    Args:
        imitation: share of the overseer's answers that the student gives.
        amplified, student: accuracy on the same held-out questions.
        before: accuracy on the level of the round before of (the agent, the student).
        canary: mean overlap with the base.
        parity: share of prompts on which the engines agree with plain PEFT.
    """
    gates: list[Gate] = []
    if imitation is not None:
        gates.append(Gate("imitation", imitation, config.imitation))
    if amplified is not None and student is not None:
        retained = student / amplified if amplified > 0 else 0.0
        gates.append(Gate("retention", retained, config.retention))
    if before is not None:
        gates.append(Gate("no_regression", before[1] - before[0], -config.regression))
    if canary is not None:
        gates.append(Gate("canary", canary, config.canary))
    if parity is not None:
        gates.append(Gate("parity", parity, config.parity))
    return gates


def failed_gates(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The recorded gates (`Gate.to_json`) that a student did not pass."""
    return [gate for gate in gates if not gate["passed"]]
