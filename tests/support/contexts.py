"""A desk of the tests: every call is answered by a script, and counted."""

from collections.abc import Callable, Sequence

from reflux.agents.budget import Budget
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion

PLENTY = Budget(1_000, 1_000_000)


class ScriptedDesk:
    """Charges each call to what it was given; those who ask side by side share what is left."""

    model = "base"

    def __init__(
        self,
        reply: Callable[[ChatRequest], str | Completion] | Sequence[str],
        given: Budget = PLENTY,
        path: str = "",
    ) -> None:
        """`reply` is a function, or replies in order, of which the last is repeated."""
        if not callable(reply):
            listed = list(reply)
            self.client = ScriptedClient(lambda _: listed.pop(0) if listed[1:] else listed[0])
        else:
            self.client = ScriptedClient(reply)
        self.given = given
        self.path = path
        self.places: list[ScriptedDesk] = []
        self._spent = Budget(0, 0)

    @property
    def left(self) -> Budget:
        calls = self._spent.calls + sum(p.given.calls - p.left.calls for p in self.places)
        tokens = self._spent.tokens + sum(p.given.tokens - p.left.tokens for p in self.places)
        return self.given.minus(calls, tokens)

    async def ask(self, request: ChatRequest) -> Completion:
        if self.left.empty:
            raise EndpointError("nothing is left")
        reply = await self.client.complete(request)
        self._spent = Budget(self._spent.calls + 1, self._spent.tokens + reply.tokens)
        return reply

    def members(self, count: int) -> "Sequence[ScriptedDesk]":
        places = [ScriptedDesk([""], share, self.path) for share in self.left.split(count)]
        for place in places:
            place.client = self.client
        self.places += places
        return places


def asked_texts(requests: Sequence[ChatRequest]) -> list[str]:
    """The last message of each request."""
    return [request.messages[-1][1] for request in requests]
