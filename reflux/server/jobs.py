"""An answer under way: a task of its own, what it says meanwhile, and who waits for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from fastapi import Request

T = TypeVar("T")
Put = Callable[[T], None]
Tasks = set[asyncio.Task[None]]
"""Those of a server that have not ended; the loop itself keeps no hold on them."""


class ClientLeft(Exception):
    """The client has closed its connection: nobody waits for the answer."""


class Work(Generic[T]):
    """Does something in a task of its own, and hands on what it says as it says it.

    The task, and not its reader, holds what has to be cleaned up: a server cancels a reader again
    and again, a task once.
    """

    def __init__(self, work: Callable[[Put[T]], Coroutine[Any, Any, None]], tasks: Tasks) -> None:
        self._said: asyncio.Queue[T | None] = asyncio.Queue()
        self.task = asyncio.create_task(work(self._said.put_nowait))
        tasks.add(self.task)
        self.task.add_done_callback(tasks.discard)
        self.task.add_done_callback(lambda _: self._said.put_nowait(None))

    async def said(self, ping: float) -> AsyncGenerator[T | None]:
        """What it says, until it ends; None after every `ping` seconds of silence.

        Raises:
            Exception: what the work has raised.
        """
        while True:
            try:
                async with asyncio.timeout(ping):
                    piece = await self._said.get()
            except TimeoutError:
                yield None
                continue
            if piece is None:
                break
            yield piece
        self.task.result()

    def stop(self) -> None:
        """End it, if it has not ended."""
        self.task.cancel()


async def unless_left(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """Wait for something as long as the client does.

    Raises:
        ClientLeft: it does no more; what was waited for is cancelled.
    """
    task, left = asyncio.create_task(waiting), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        left.cancel()
        task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
