"""Role adapters: students of one base that take parts of the overseer's work, beside the agent.

    answerer     answers the questions of leaves: an agent that has learned nothing else
    overseer     divides questions (`reflux.finetune.learned_overseer`)
    aggregator   combines the answers to the parts, or asks what is still missing
    verifier     judges an answer before it is accepted

All are made from the same trees, and one engine serves them side by side: ROMA's roles (arXiv
2602.01848), each with weights of its own.
"""

from dataclasses import dataclass, replace
from typing import Literal

from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer, OverseerContext, WrappedOverseer
from reflux.agents.overseers.step_forms import LEARNED
from reflux.agents.types import Step
from reflux.agents.verifiers import CriticVerifier
from reflux.graphs.amplify.context import AmplifyContext

RoleAdapter = Literal["answerer", "aggregator", "verifier"]
SERVED: tuple[Literal["aggregator", "verifier"], ...] = ("aggregator", "verifier")
"""Roles whose students have names of their own, NAME:ROLE; an answerer is an agent."""
VERDICT_TOKENS = 8
"""Of a learned verifier's reply, which is one word."""


@dataclass(frozen=True)
class Combining(WrappedOverseer):
    """An overseer that divides, and another that takes each step after the first sub-answers."""

    aggregator: Overseer

    @property
    def name(self) -> str:
        return f"{self.inner.name}+{self.aggregator.name}"

    async def act(self, context: OverseerContext) -> Step:
        by = self.aggregator if context.transcript else self.inner
        return await by.act(context)


def aggregator_of(student: str, max_tokens: int | None = None) -> ModelOverseer:
    """A learned aggregator by the name of its model, asked as it was trained."""
    tokens = max_tokens or ModelOverseer.max_tokens
    return ModelOverseer(student, max_tokens=tokens, form=LEARNED.form, brief=True)


def with_roles(
    context: AmplifyContext,
    aggregator: str | None = None,
    verifier: str | None = None,
    max_tokens: int | None = None,
) -> AmplifyContext:
    """The context in which models of these names combine sub-answers and judge answers; any model
    may take both parts."""
    if aggregator is not None:
        by = aggregator_of(aggregator, max_tokens)
        overseers = tuple(Combining(overseer, by) for overseer in context.overseers)
        context = replace(context, overseers=overseers)
    if verifier is not None:
        judge = CriticVerifier(verifier, VERDICT_TOKENS)
        context = replace(context, verifiers=(*context.verifiers, judge))
    return context
