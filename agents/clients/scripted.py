"""A client that answers from a function: a model for tests, with faults on demand."""

import asyncio
from collections.abc import Callable

from reflux.agents.types import ChatRequest, Completion


class ScriptedClient:
    """Answers each request with `reply(request)`, or raises what `reply` raises.

    `requests` holds every request in order of arrival.
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
        """Answer after `delay(request)` seconds; each word counts as one token."""
        self.requests.append(request)
        if self._delay is not None:
            await asyncio.sleep(self._delay(request))
        reply = self._reply(request)
        if isinstance(reply, Completion):
            return reply
        prompt_tokens = sum(len(turn[1].split()) for turn in request.messages)
        return Completion(reply, prompt_tokens, max(1, len(reply.split())))

    async def model_digest(self, model: str) -> str:
        """The model's name, because a script has no weights."""
        return f"scripted:{model}"
