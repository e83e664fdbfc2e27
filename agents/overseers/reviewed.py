"""An overseer proposes each step; a human approves or edits it (seed 8.4.3, human oversight)."""

from dataclasses import dataclass
from typing import Literal

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import (
    Follow,
    Overseer,
    OverseerContext,
    follow_of,
    reserve_of,
)
from reflux.agents.overseers.scripted import review_form
from reflux.agents.types import Answer, Ask, Chain, Defer, Step, step_to_json

When = Literal["always", "root", "asks", "answers"]
APPROVE = {"kind": "approve"}
"""A human's reply that accepts the proposal unchanged; any other reply is a step."""


@dataclass(frozen=True)
class Reviewed:
    """An overseer whose steps a human sees first.

    A step to be reviewed becomes a `Defer` whose form holds what the human needs to judge it:
    `question`, `transcript`, `may_ask`, `proposal` (the step in the form of `step_to_json`) and
    `by` (the proposer's name). The human replies `{"kind": "approve"}`, or with another step in
    the proposal's form; a `comment` beside either is stored as a judgement `review`. The record
    holds the step that was taken. A proposed `Defer` goes to the human unchanged.
    """

    proposer: Overseer
    when: When = "always"
    """`always`; `root`: the root's steps; `asks`: batches of sub-questions, and chains, at any
    depth; `answers`: the root's answer only."""

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
        """The proposer's: a human reviews a chain's first question, not each link."""
        return follow_of(self.proposer)

    async def act(self, context: OverseerContext) -> Step:
        """Have the step proposed, and defer to the human if it is to be reviewed."""
        step = await self.proposer.act(context)
        if isinstance(step, Defer) or not self._needs_review(step, context.path):
            return step
        proposal = {"proposal": step_to_json(step), "by": self.proposer.name}
        return Defer(review_form(context) | proposal)

    def _needs_review(self, step: Step, path: str) -> bool:
        if self.when == "root":
            return path == ""
        if self.when == "asks":
            return isinstance(step, Chain) or (isinstance(step, Ask) and bool(step.subquestions))
        if self.when == "answers":
            return isinstance(step, Answer) and path == ""
        return True
