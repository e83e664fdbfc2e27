"""The growing tree in words: what a stream shows as reasoning while an answer is worked on.

Events of answers under way and of recent ones, numbered so that a reader can go on later.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from itertools import count

from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.traces.events import Event


def thought(event: Event) -> str:
    """What an event adds, as whole lines; empty for what readers need not see."""
    path = event["path"]
    margin = "  " * (path.count("/") - 1)
    match event["event"]:
        case "asked":
            to = f" [{event['to']}]" if event["to"] else ""
            return f"{margin}→{to} {_line(event['question'])}\n"
        case "tool":
            return f"{margin}{event['tool']}({_line(event['arguments'])})\n"
        case "retry":
            why = f": {_line(event['error'])}" if event["error"] else ""
            return f"{margin}the check {event['rule']} failed{why}; again\n"
        case "step" if path and event["step"]["kind"] == "answer":
            return f"{margin}← {_line(event['step']['text'])}\n"
        case "answered" if path:
            asked = _line(event.get("question", ""))
            said = event["answer"] if is_accepted(event["status"]) else None
            what = _line(said) if said is not None else f"({event['error'] or event['status']})"
            return f"{margin}← {asked}: {what}\n" if asked else f"{margin}← {what}\n"
        case _:
            return ""


def _line(text: str) -> str:
    return " ".join(text.split())


class EventLog:
    """The events of one trajectory in their order; the first has number 1."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = False
        self._news = asyncio.Event()

    def add(self, event: Event) -> None:
        """Add an event, and wake those who follow."""
        self.events.append(event)
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int, ping: float) -> AsyncGenerator[tuple[int, Event] | None]:
        """(number, event) of those after number `after`; None where nothing came for `ping` s."""
        for at in count(max(0, after)):
            while at >= len(self.events):
                if self.ended:
                    return
                news = self._news
                try:
                    async with asyncio.timeout(ping):
                        await news.wait()
                except TimeoutError:
                    yield None
            yield at + 1, self.events[at]


class EventLogs:
    """The logs of a server; of ended answers the oldest go when there are too many events."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, EventLog] = {}
        self._ended: OrderedDict[str, EventLog] = OrderedDict()
        self._held = 0
        """Events of the logs that have ended."""

    def begin(self, trajectory: str) -> EventLog:
        """The log of an answer that begins."""
        return self._open.setdefault(trajectory, EventLog())

    def growing(self, trajectory: str) -> bool:
        """Whether the answer is under way."""
        return trajectory in self._open

    def end(self, trajectory: str) -> None:
        """The answer has ended; its events stay as long as there is room."""
        log = self._open.pop(trajectory, None)
        if log is None:
            return
        log.end()
        if (former := self._ended.pop(trajectory, None)) is not None:
            self._held -= len(former.events)
        self._ended[trajectory] = log
        self._held += len(log.events)
        while self._held > self._most and len(self._ended) > 1:
            _, oldest = self._ended.popitem(last=False)
            self._held -= len(oldest.events)

    def find(self, trajectory: str) -> EventLog | None:
        """The log of a trajectory, as long as it is kept."""
        return self._open.get(trajectory) or self._ended.get(trajectory)
