"""Gates decide whether a student may replace the agent (seed 8.4.3, limitations 1, 5 and 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class GateConfig(BaseModel):
    """The limits that a student must keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    imitation: float = Field(default=0.95, ge=0, le=1)
    """Round 0: least share of H's own answers that the student gives."""
    retention: float = Field(default=0.9, ge=0, le=1)
    """Later rounds: least accuracy of the student over that of the amplified system."""
    regression: float = Field(default=0.05, ge=0, le=1)
    """Most accuracy lost on the level of the round before."""
    canary: float = Field(default=0.2, ge=0, le=1)
    """Least overlap of the student's replies to the canaries with the base's."""


@dataclass(frozen=True)
class Gate:
    """One measured gate."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """The value reaches the limit."""
        return self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, the verdict among them."""
        return {**asdict(self), "passed": self.passed}


def judge(
    config: GateConfig,
    *,
    imitation: float | None = None,
    amplified: float | None = None,
    student: float | None = None,
    before: tuple[float, float] | None = None,
    canary: float | None = None,
) -> list[Gate]:
    """The gates of one round.

    Args:
        imitation: share of H's answers reproduced.
        amplified, student: accuracy on the same held-out questions.
        before: accuracy on the level below of (the agent that is to be replaced, the student).
        canary: mean overlap with the base.
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
    return gates


def failed_gates(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a student's recorded gates (`Gate.to_json`) that it did not pass."""
    return [gate for gate in gates if not gate["passed"]]


def all_passed(gates: Sequence[Gate]) -> bool:
    """True where nothing stands against promotion."""
    return all(gate.passed for gate in gates)
