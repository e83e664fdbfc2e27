"""A context for one step whose model calls a script answers, and counts."""

from collections.abc import Callable, Sequence

from reflux.agents.budget import Budget
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.types import ChatRequest, Completion, Exchange, Step

PLENTY = Budget(1_000, 1_000_000)


class ScriptedContext:
    """An `OverseerContext` that charges each call to its budget; members share what is left."""

    model = "base"

    def __init__(
        self,
        reply: Callable[[ChatRequest], str | Completion] | Sequence[str] = ("",),
        limit: Budget = PLENTY,
        path: str = "",
    ) -> None:
        """`reply` is a function, or replies in order, of which the last is repeated."""
        if not callable(reply):
            replies = list(reply)
            self.client = ScriptedClient(lambda _: replies.pop(0) if replies[1:] else replies[0])
        else:
            self.client = ScriptedClient(reply)
        self.limit = limit
        self.path = path
        self.question = ""
        self.transcript: Sequence[Exchange] = ()
        self.may_ask = True
        self.attempt = 0
        self.asked: tuple[str, ...] = ()
        self.tools: dict[str, str] = {}
        self.shares: list[ScriptedContext] = []
        self._spent = Budget(0, 0)

    def on(
        self, question: str, transcript: Sequence[Exchange] = (), may_ask: bool = True
    ) -> "ScriptedContext":
        """This context, with the question to take a step on."""
        self.question, self.transcript, self.may_ask = question, transcript, may_ask
        return self

    @property
    def budget(self) -> Budget:
        calls = self._spent.calls + sum(s.limit.calls - s.budget.calls for s in self.shares)
        tokens = self._spent.tokens + sum(s.limit.tokens - s.budget.tokens for s in self.shares)
        return self.limit.minus(calls, tokens)

    async def complete(self, request: ChatRequest) -> Completion:
        if self.budget.empty:
            raise EndpointError("nothing is left")
        reply = await self.client.complete(request)
        self._spent = Budget(self._spent.calls + 1, self._spent.tokens + reply.tokens)
        return reply

    def members(self, count: int) -> "Sequence[ScriptedContext]":
        shares = [
            ScriptedContext(limit=share, path=self.path).on(
                self.question, self.transcript, self.may_ask
            )
            for share in self.budget.split(count)
        ]
        for share in shares:
            share.client = self.client
        self.shares += shares
        return shares


async def next_step(
    overseer: Overseer, question: str, transcript: Sequence[Exchange] = (), may_ask: bool = True
) -> Step:
    """The step of an overseer that calls no model."""
    return await overseer.act(ScriptedContext().on(question, transcript, may_ask))


def last_messages(requests: Sequence[ChatRequest]) -> list[str]:
    """The last message of each request."""
    return [request.messages[-1][1] for request in requests]
