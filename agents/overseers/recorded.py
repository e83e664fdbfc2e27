"""Steps that were taken before, taken again: H from a record, with other copies of X."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import (
    PASS,
    AnyOverseer,
    Desk,
    Follow,
    Overseer,
    follow_of,
    reserve_of,
    seated,
)
from reflux.agents.types import Ask, Chain, Exchange, Step

Record = Mapping[str, Sequence[Sequence[Step]]]
"""For each question the steps in their order, one sequence an attempt."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class RecordedOverseer:
    """H replays the steps of a record, so that a decomposition can be tried with another X.

    A question that the record lacks, or one whose recorded steps have all been taken, goes to the
    `fallback`; without one to X, with a note that says so. Which step is next follows from the
    number of exchanges, so a record's later steps, an answer above all, are those of its own
    answers; with `asks_only` the fallback combines the new ones instead.
    """

    record: Record
    attempt: int = 0
    """Whose steps to take; the last one's where the record holds fewer attempts."""
    fallback: AnyOverseer | None = None
    asks_only: bool = False
    """Replays batches and takes answers from the fallback, which combines the new sub-answers."""

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"recorded:{self.fallback.name}" if self.fallback else "recorded"

    @property
    def reserve(self) -> Budget:
        """The fallback's."""
        return reserve_of(self.fallback) if self.fallback else Budget(0, 0)

    @property
    def follow(self) -> Follow | None:
        """The fallback's: a record holds where a chain began, not how it goes on."""
        return follow_of(self.fallback) if self.fallback else None

    def at(self, desk: Desk) -> Overseer:
        """The overseer for one step; its fallback may ask models."""
        return _Replay(self, desk)


def recorded_overseers(
    record: Record, fallback: AnyOverseer | None = None, asks_only: bool = False
) -> tuple[RecordedOverseer, ...]:
    """One overseer for each attempt of the record, as a context takes them."""
    attempts = max((len(tries) for tries in record.values()), default=1)
    return tuple(RecordedOverseer(record, i, fallback, asks_only) for i in range(max(1, attempts)))


@dataclass(frozen=True)
class _Replay:
    """One step from the record."""

    recorded: RecordedOverseer
    desk: Desk

    @property
    def name(self) -> str:
        return self.recorded.name

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """The recorded step that comes after so many exchanges, else the fallback's."""
        step = self._next(question, len(transcript))
        asks = isinstance(step, Ask | Chain)
        if step is not None and (asks or not self.recorded.asks_only):
            return step if may_ask or not asks else PASS
        if self.recorded.fallback is not None:
            fallback = seated(self.recorded.fallback, self.desk)
            return await fallback.act(question, transcript, may_ask)
        return Ask((), f"{NOT_RECORDED}: no step after {len(transcript)} exchanges")

    def _next(self, question: str, exchanges: int) -> Step | None:
        attempts = self.recorded.record.get(question)
        if not attempts:
            return None
        asked = 0
        for step in attempts[min(self.recorded.attempt, len(attempts) - 1)]:
            if asked == exchanges:
                return step
            asked += len(step.subquestions) if isinstance(step, Ask) else 0
        return None
