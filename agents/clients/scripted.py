"""A client that answers from a function: the model of the tests, with faults on demand."""

import asyncio
from collections.abc import Callable

from reflux.agents.types import ChatRequest, Completion


class ScriptedClient:
    """Answers each request with `reply(request)`; what `reply` raises, the caller sees.

    Every request is kept in `requests`, in order of arrival, so a test can count them.
    """

    def __init__(
        self,
        reply: Callable[[ChatRequest], str | Completion],
        delay: Callable[[ChatRequest], float] | None = None,
    ) -> None:
        self._reply = reply
        self._delay = delay
        self.requests: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer after `delay(request)` seconds; a text is counted as its words."""
        self.requests.append(request)
        if self._delay is not None:
            await asyncio.sleep(self._delay(request))
        reply = self._reply(request)
        if isinstance(reply, Completion):
            return reply
        asked = sum(len(turn[1].split()) for turn in request.messages)
        return Completion(reply, prompt_tokens=asked, completion_tokens=max(1, len(reply.split())))

    async def model_digest(self, model: str) -> str:
        """The name itself: a script has no weights."""
        return f"scripted:{model}"
