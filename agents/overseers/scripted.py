"""Overseers that are code or a human: a plain function, and one that defers every question."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from reflux.agents.overseers.protocol import Follow
from reflux.agents.types import (
    Defer,
    Exchange,
    Step,
)

ScriptedStep = Callable[[str, Sequence[Exchange], bool], Step | Awaitable[Step]]


class ScriptedOverseer:
    """An overseer that is a plain Python function, the H of Christiano et al. 2018, section 2."""

    def __init__(self, name: str, function: ScriptedStep, follow: Follow | None = None) -> None:
        """`follow` is `Follower.follow`, for a function that asks chains."""
        self.name = f"script:{name}"
        self.follow = follow
        self._function = function

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Call the function; it may be `async`."""
        step = self._function(question, transcript, may_ask)
        if inspect.isawaitable(step):
            return await step
        return step


class HumanOverseer:
    """An overseer that defers every question to a person, who answers or decomposes it."""

    name = "human"

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Defer with a form that shows the question and the transcript so far."""
        return Defer(shown(question, transcript, may_ask))


def shown(question: str, transcript: Sequence[Exchange], may_ask: bool) -> dict[str, Any]:
    """What a person is shown of a question, as plain JSON types."""
    said = [{"question": e.question, "answer": e.answer, "error": e.error} for e in transcript]
    return {"question": question, "transcript": said, "may_ask": may_ask}
