"""A reply cache with single flight: identical model calls are made once.

Only calls are joined, never subtrees, because two subtrees that wait for each other would
deadlock. The key holds seed and vote, so independent votes stay independent.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace

from reflux.agents.clients.chat_protocol import Pieces, in_one_piece, stream_of
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatClient, ChatRequest, Completion


class CachedClient:
    """Wraps a client; a known reply, or one that another caller awaits, is not asked for again."""

    def __init__(self, client: ChatClient, limit: int = 200_000) -> None:
        """`limit` is the maximum number of replies; the oldest go first."""
        self._client = client
        self._limit = limit
        self._replies: dict[str, Completion] = {}
        self._flights: dict[str, asyncio.Future[Completion]] = {}

    def put(self, digest: str, completion: Completion) -> None:
        """Remember a reply, for example one from the call log of an earlier run."""
        self._replies[digest] = completion
        if len(self._replies) > self._limit:
            self._replies.pop(next(iter(self._replies)))

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer from the cache, from a pending identical call, or from the client.

        A failed call fails for all who joined it; the next request calls again.
        """
        digest = request.digest(await self.model_digest(request.model))
        if (reply := self._replies.get(digest)) is not None:
            return replace(reply, cached=True, seconds=0.0, retries=())
        if (flight := self._flights.get(digest)) is not None:
            return await self._join(request, flight)
        flight = asyncio.get_running_loop().create_future()
        self._flights[digest] = flight
        try:
            reply = await self._client.complete(request)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                flight.cancel()
            else:
                flight.set_exception(error)
                flight.exception()  # Marks it as retrieved, for a call that nobody joined.
            raise
        else:
            self.put(digest, reply)
            flight.set_result(reply)
            return reply
        finally:
            del self._flights[digest]

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer piece by piece, or from the cache in one.

        Streams take no part in single flight, because their reader may stop at any time.
        """
        digest = request.digest(await self.model_digest(request.model))
        if (reply := self._replies.get(digest)) is not None:
            for piece in in_one_piece(replace(reply, cached=True, seconds=0.0, retries=())):
                yield piece
            return
        async with aclosing(stream_of(self._client, request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    self.put(digest, piece)
                yield piece

    async def _join(self, request: ChatRequest, flight: asyncio.Future[Completion]) -> Completion:
        try:
            reply = await asyncio.shield(flight)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flight.cancelled() or (task is not None and task.cancelling()):
                raise
            # Only the leader was cancelled; send the request ourselves.
            return await self.complete(request)
        except EndpointError as error:
            joined = EndpointError(*error.args)
            joined.cached = True
            raise joined from error
        return replace(reply, cached=True, seconds=0.0, retries=())

    async def model_digest(self, model: str) -> str:
        """The wrapped client's digest."""
        return await self._client.model_digest(model)
