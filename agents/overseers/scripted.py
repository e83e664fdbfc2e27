"""Overseers that call no model: a plain function, and one that defers to a human."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from reflux.agents.overseers.protocol import Follow, OverseerContext
from reflux.agents.types import Defer, Exchange, Step

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
