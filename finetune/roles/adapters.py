"""Role adapters: students of one base that take parts of the overseer's work, beside the agent.

    answerer     answers the questions of leaves: an agent that has learned nothing else
    overseer     divides questions (`reflux.finetune.learned_overseer`)
    aggregator   combines the answers to the parts, or asks what is still missing
    verifier     judges an answer before it is accepted

All are made from the same trees, and one engine serves them side by side: ROMA's roles (arXiv
2602.01848), each with weights of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer, OverseerContext, WrappedOverseer
from reflux.agents.overseers.step_forms import LEARNED
from reflux.agents.types import Step
from reflux.agents.verifiers import CriticVerifier
from reflux.finetune.registry import Registry
from reflux.graphs.amplify.context import AmplifyContext

ServedRole = Literal["aggregator", "verifier"]
"""Roles whose students have names of their own, NAME:ROLE."""
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


@dataclass(frozen=True)
class LearnedVerifier(CriticVerifier):
    """A critic that has learned from what was accepted and refused."""

    max_tokens: int = VERDICT_TOKENS


def with_roles(
    context: AmplifyContext, models: Mapping[ServedRole, str], max_tokens: int | None = None
) -> AmplifyContext:
    """The context in which models of these names combine sub-answers and judge answers, in the
    place of those that did; any model may take several parts."""
    if (name := models.get("aggregator")) is not None:
        tokens = max_tokens or ModelOverseer.max_tokens
        by = ModelOverseer(name, max_tokens=tokens, form=LEARNED.form, brief=True)
        context = replace(
            context,
            overseers=tuple(
                Combining(each.inner if isinstance(each, Combining) else each, by)
                for each in context.overseers
            ),
        )
    if (name := models.get("verifier")) is not None:
        others = [each for each in context.verifiers if not isinstance(each, LearnedVerifier)]
        context = replace(context, verifiers=(*others, LearnedVerifier(name)))
    return context


def promoted_roles(registry: Registry, roles: Iterable[ServedRole]) -> dict[ServedRole, str]:
    """The promoted students of these roles, as far as there are some."""
    found: dict[ServedRole, str] = {}
    for role in roles:
        if (student := registry.current(role)) is not None:
            found[role] = student.id
    return found
