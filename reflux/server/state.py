"""What the routes of one server share: its run, its models, event logs and metrics."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reflux.finetune.run_folder import OpenRun
from reflux.graphs.traces.events import Event
from reflux.server.errors import ErrorBody
from reflux.server.pending import Waiting
from reflux.server.served_models import ServedModels
from reflux.server.settings import ServeSettings

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 422, 429, 502, 503)
}
"""Error responses of every route, for the OpenAPI description."""


T = TypeVar("T")


class Log(Generic[T]):
    """Items in order, which readers follow while they come; the first has number 1."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.ended = False
        self._changed = asyncio.Event()

    def add(self, item: T) -> None:
        self.items.append(item)
        self._wake_readers()

    def end(self) -> None:
        self.ended = True
        self._wake_readers()

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, number: int = 1) -> bool:
        """Wait for the item of a number; False if the log ends before."""
        while number > len(self.items) and not self.ended:
            await self._changed.wait()
        return number <= len(self.items)

    async def follow(self, after: int = 0) -> AsyncGenerator[tuple[int, T]]:
        """Yield (number, item) for the items after number `after`, until the log ends."""
        for number in count(max(0, after) + 1):
            if not await self.wait(number):
                return
            yield number, self.items[number - 1]


EventLog = Log[Event]
"""The events of one trajectory."""


class EventLogs:
    """The event logs of a server. Over `max_events`, the oldest ended logs are dropped."""

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self._open: dict[str, EventLog] = {}
        self._ended: OrderedDict[str, EventLog] = OrderedDict()
        self._ended_events = 0

    def begin(self, trajectory: str) -> EventLog:
        return self._open.setdefault(trajectory, EventLog())

    def is_open(self, trajectory: str) -> bool:
        return trajectory in self._open

    def end(self, trajectory: str) -> None:
        """Close the log of an answer; its events stay while there is room."""
        log = self._open.pop(trajectory, None)
        if log is None:
            return
        log.end()
        if (previous := self._ended.pop(trajectory, None)) is not None:
            self._ended_events -= len(previous.items)
        self._ended[trajectory] = log
        self._ended_events += len(log.items)
        while self._ended_events > self._max_events and len(self._ended) > 1:
            _, oldest = self._ended.popitem(last=False)
            self._ended_events -= len(oldest.items)

    def find(self, trajectory: str) -> EventLog | None:
        """The log of a trajectory if it is still kept."""
        return self._open.get(trajectory) or self._ended.get(trajectory)


class Metrics:
    """Metrics of one server. Labels are names of served models, never text of a client."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self._registry)
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self._registry)
        self.under_way = gauge("reflux_requests_under_way", "Requests being answered.")
        self.refused = counter("reflux_requests_refused", "Requests refused by a guard.", ["why"])
        self.answers = counter("reflux_answers", "Answers by how they ended.", ["model", "ended"])
        self.tokens = counter("reflux_tokens", "Tokens of accepted trees.", ["model", "kind"])
        self.calls = counter("reflux_model_calls", "Model calls, cached and not.", ["cached"])
        self.seconds = histogram(
            "reflux_answer_seconds", "From the request to the end of the answer.", ["model"]
        )
        self.first = histogram(
            "reflux_first_piece_seconds", "From the request to the stream's first part.", ["model"]
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


@dataclass(frozen=True)
class ServerState:
    """What the routes of one server share."""

    run: OpenRun
    settings: ServeSettings
    models: ServedModels
    logs: EventLogs
    metrics: Metrics
    waiting: Waiting
    tasks: set[asyncio.Task[Any]]
    """Running tasks; the event loop itself holds only weak references."""


async def _state(request: Request) -> ServerState:
    return request.app.state.server


State = Annotated[ServerState, Depends(_state)]
"""The state of the server that received a request, as a route's parameter."""
