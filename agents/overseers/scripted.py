"""Overseers that are code or a human: a function, a human, and a human who reviews another
overseer's steps (seed 8.4.3, human oversight)."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import (
    Follow,
    Overseer,
    OverseerContext,
    follow_of,
    reserve_of,
)
from reflux.agents.types import Answer, Ask, Chain, Defer, Exchange, Step, step_to_json

ScriptedStep = Callable[[str, Sequence[Exchange], bool], Step | Awaitable[Step]]


class ScriptedOverseer:
    """An overseer that is a plain Python function, the H of Christiano et al. 2018, section 2."""

    def __init__(self, name: str, function: ScriptedStep, follow: Follow | None = None) -> None:
        """
        Args:
            function: takes question, transcript and `may_ask`, returns a step; may be `async`.
            follow: how a chain continues, for a function that asks chains.
        """
        self.name = f"script:{name}"
        self.follow = follow
        self._function = function

    async def act(self, context: OverseerContext) -> Step:
        """Call the function."""
        step = self._function(context.question, context.transcript, context.may_ask)
        if inspect.isawaitable(step):
            return await step
        return step


class HumanOverseer:
    """An overseer that defers every question to a human, who answers or decomposes it."""

    name = "human"

    async def act(self, context: OverseerContext) -> Step:
        """Defer with a form that shows the question and the transcript so far."""
        return Defer(review_form(context))


def review_form(context: OverseerContext) -> dict[str, Any]:
    """What a human sees of a question, as plain JSON types."""
    transcript = [
        {"question": e.question, "answer": e.answer, "error": e.error} for e in context.transcript
    ]
    return {
        "question": context.question,
        "transcript": transcript,
        "may_ask": context.may_ask,
    }


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
