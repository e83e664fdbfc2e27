"""An answer while it is computed: its task, the parts that its client reads, and its event log.

The task, not the reader, holds the resources to clean up: a server may cancel a reader repeatedly,
but it cancels the task once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import Any, Generic, TypeVar

from fastapi import Request

from reflux.graphs.traces.events import Event

T = TypeVar("T")
Put = Callable[[T], None]
Tasks = set[asyncio.Task[None]]
"""Running tasks of a server; the event loop itself holds only weak references."""


class ClientLeft(Exception):
    """The client closed its connection, so no reader waits for the answer."""


class RunningAnswer(Generic[T]):
    """A task that computes an answer and hands on its parts as they come."""

    def __init__(self, work: Callable[[Put[T]], Coroutine[Any, Any, None]], tasks: Tasks) -> None:
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()
        self._started = asyncio.Event()
        self.task = asyncio.create_task(work(self._put))
        tasks.add(self.task)
        self.task.add_done_callback(tasks.discard)
        self.task.add_done_callback(lambda _: self._put(None))

    def _put(self, part: T | None) -> None:
        self._queue.put_nowait(part)
        self._started.set()

    async def wait_started(self, seconds: float) -> None:
        """Wait up to `seconds` for the first part.

        Raises:
            Exception: the error of a task that has failed by then.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._started.wait()
        if self.task.done():
            self.task.result()

    async def parts(self) -> AsyncGenerator[T]:
        """Yield the parts until the task ends.

        Raises:
            Exception: the error of the task.
        """
        while (part := await self._queue.get()) is not None:
            yield part
        self.task.result()

    def stop(self) -> None:
        """Cancel the task if it still runs."""
        self.task.cancel()


async def while_connected(request: Request, awaitable: Coroutine[Any, Any, T]) -> T:
    """Await something for as long as the client stays connected.

    Raises:
        ClientLeft: the client disconnected; the awaitable is cancelled.
    """
    task, left = asyncio.create_task(awaitable), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        left.cancel()
        task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventLog:
    """The events of one trajectory in order; the first has number 1."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = False
        self._changed = asyncio.Event()

    def add(self, event: Event) -> None:
        """Append an event and wake the readers."""
        self.events.append(event)
        self._wake()

    def end(self) -> None:
        """Mark the log as complete."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after: int) -> AsyncGenerator[tuple[int, Event]]:
        """Yield (number, event) for the events after number `after`, until the log ends."""
        for index in count(max(0, after)):
            while index >= len(self.events):
                if self.ended:
                    return
                await self._changed.wait()
            yield index + 1, self.events[index]


class EventLogs:
    """The event logs of a server. Over `max_events`, the oldest ended logs are dropped."""

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self._open: dict[str, EventLog] = {}
        self._ended: OrderedDict[str, EventLog] = OrderedDict()
        self._ended_events = 0

    def begin(self, trajectory: str) -> EventLog:
        """Open the log of an answer."""
        return self._open.setdefault(trajectory, EventLog())

    def is_open(self, trajectory: str) -> bool:
        """Return whether the answer is being computed."""
        return trajectory in self._open

    def end(self, trajectory: str) -> None:
        """Close the log of an answer; its events stay while there is room."""
        log = self._open.pop(trajectory, None)
        if log is None:
            return
        log.end()
        if (previous := self._ended.pop(trajectory, None)) is not None:
            self._ended_events -= len(previous.events)
        self._ended[trajectory] = log
        self._ended_events += len(log.events)
        while self._ended_events > self._max_events and len(self._ended) > 1:
            _, oldest = self._ended.popitem(last=False)
            self._ended_events -= len(oldest.events)

    def find(self, trajectory: str) -> EventLog | None:
        """Return the log of a trajectory if it is still kept."""
        return self._open.get(trajectory) or self._ended.get(trajectory)
