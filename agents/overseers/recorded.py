"""An overseer that replays recorded steps, so that other copies answer the same sub-questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import (
    PASS,
    Follow,
    Overseer,
    OverseerContext,
    follow_of,
    reserve_of,
)
from reflux.agents.types import Ask, Chain, Step

Record = Mapping[str, Sequence[Sequence[Step]]]
"""For each question the steps in their order, one sequence for each attempt."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class RecordedOverseer:
    """Replays the steps of a record, so that a decomposition can be tried with another agent.

    A question that the record lacks, or whose recorded steps are used up, goes to the `fallback`;
    without a fallback it goes to the agent, with a note that says so. The number of exchanges
    decides which step is next, so a record's later steps, its answer above all, combine its own
    sub-answers; with `asks_only` the fallback combines the new ones instead.
    """

    record: Record
    attempt: int = 0
    """Index of the attempt to replay; the last one if the record holds fewer."""
    fallback: Overseer | None = None
    asks_only: bool = False
    """Replays batches and takes answers from the fallback, which combines the new sub-answers."""

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"recorded:{self.fallback.name}" if self.fallback else "recorded"

    @property
    def reserve(self) -> Budget:
        """The fallback's."""
        return reserve_of(self.fallback)

    @property
    def follow(self) -> Follow | None:
        """The fallback's: a record holds where a chain began, not how it continues."""
        return follow_of(self.fallback)

    async def act(self, context: OverseerContext) -> Step:
        """The recorded step after this many exchanges, else the fallback's."""
        step = self._next(context.question, len(context.transcript))
        asks = isinstance(step, Ask | Chain)
        if step is not None and (asks or not self.asks_only):
            return step if context.may_ask or not asks else PASS
        if self.fallback is not None:
            return await self.fallback.act(context)
        return Ask((), f"{NOT_RECORDED}: no step after {len(context.transcript)} exchanges")

    def _next(self, question: str, exchanges: int) -> Step | None:
        attempts = self.record.get(question)
        if not attempts:
            return None
        subquestions = 0
        for step in attempts[min(self.attempt, len(attempts) - 1)]:
            if subquestions == exchanges:
                return step
            subquestions += len(step.subquestions) if isinstance(step, Ask) else 0
        return None


def recorded_overseers(
    record: Record, fallback: Overseer | None = None, asks_only: bool = False
) -> tuple[RecordedOverseer, ...]:
    """One overseer for each attempt of the record."""
    attempts = max((len(attempts) for attempts in record.values()), default=1)
    return tuple(RecordedOverseer(record, i, fallback, asks_only) for i in range(max(1, attempts)))
