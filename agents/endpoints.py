"""Several endpoints behind one client: the model's name says which one answers."""

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from agents.streaming import Pieces, stream_of
from agents.types import ChatClient, ChatRequest, Completion


@dataclass(frozen=True)
class Endpoint:
    """Where a model is, and what it is called there."""

    client: ChatClient
    model: str


async def close_clients(clients: Iterable[ChatClient]) -> None:
    """Close each one that can be closed, once."""
    for client in {id(client): client for client in clients}.values():
        close: Any = getattr(client, "close", None)
        if close is not None:
            await close()


class Endpoints:
    """Completes chats at the endpoint of the request's model; all other names are the `rest`'s."""

    def __init__(self, named: Mapping[str, Endpoint], rest: ChatClient) -> None:
        self._named = named
        self._rest = rest

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request."""
        there = self._at(request.model)
        return await there.client.complete(replace(request, model=there.model))

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece."""
        there = self._at(request.model)
        async with aclosing(stream_of(there.client, replace(request, model=there.model))) as pieces:
            async for piece in pieces:
                yield piece

    async def model_digest(self, model: str) -> str:
        """That of the model's endpoint."""
        there = self._at(model)
        return await there.client.model_digest(there.model)

    async def close(self) -> None:
        """Close every client that can be closed."""
        await close_clients([self._rest, *(there.client for there in self._named.values())])

    def _at(self, model: str) -> Endpoint:
        return self._named.get(model) or Endpoint(self._rest, model)
