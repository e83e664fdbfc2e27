"""An overseer proposes each step; a person approves or edits it (seed 8.4.3, human oversight)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import (
    AnyOverseer,
    Desk,
    Follow,
    Overseer,
    follow_of,
    reserve_of,
    seated,
)
from reflux.agents.overseers.scripted import shown
from reflux.agents.types import Answer, Ask, Chain, Defer, Exchange, Step, step_to_json

When = Literal["always", "root", "asks", "answers"]
APPROVE = {"kind": "approve"}
"""A person's reply that takes the proposal as it is; any other reply is a step of its own."""


@dataclass(frozen=True)
class Reviewed:
    """H is an overseer whose steps a person sees first.

    A step to be reviewed becomes a `Defer` whose form holds what the person needs to judge it:
    `question`, `transcript`, `may_ask`, `proposal` (the step in the form of `step_to_json`) and
    `by` (who proposes). The person replies `{"kind": "approve"}`, or with the step to take
    instead, in the proposal's form; a `comment` beside either is kept as a judgement `review`.
    What is on the record is the step that was taken. A step that is a `Defer` already goes to the
    person as it is.
    """

    proposer: AnyOverseer
    when: When = "always"
    """`always`; `root`: the root's steps; `asks`: batches of sub-questions, and chains, at any
    depth; `answers`: what the root is answered, and nothing on the way there."""

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"reviewed:{self.proposer.name}"

    @property
    def reserve(self) -> Budget:
        """The proposer's."""
        return reserve_of(self.proposer)

    @property
    def follow(self) -> Follow | None:
        """The proposer's: a chain is seen as it begins, not link by link."""
        return follow_of(self.proposer)

    def at(self, desk: Desk) -> Overseer:
        """The overseer and its reviewer for one step."""
        return _Review(self, desk)


@dataclass(frozen=True)
class _Review:
    """One step under review."""

    reviewed: Reviewed
    desk: Desk

    @property
    def name(self) -> str:
        return self.reviewed.name

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Have the step proposed, and defer it to the person where it is to be reviewed."""
        proposer = self.reviewed.proposer
        step = await seated(proposer, self.desk).act(question, transcript, may_ask)
        if isinstance(step, Defer) or not self._to_be_seen(step):
            return step
        proposal = {"proposal": step_to_json(step), "by": proposer.name}
        return Defer(shown(question, transcript, may_ask) | proposal)

    def _to_be_seen(self, step: Step) -> bool:
        if self.reviewed.when == "root":
            return self.desk.path == ""
        if self.reviewed.when == "asks":
            return isinstance(step, Chain) or (isinstance(step, Ask) and bool(step.subquestions))
        if self.reviewed.when == "answers":
            return isinstance(step, Answer) and self.desk.path == ""
        return True
