"""Exchanges of programs with an endpoint become calls of trajectories, in a separate thread.

Whoever forwards a reply hands over what it has forwarded and goes on: nothing here delays a client.
What cannot be read is recorded as it is, and `failed` says so; nothing is raised.
"""

import json
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from reflux.agents.types import Completion
from reflux.graphs.traces.recording.placing import Place, Places
from reflux.graphs.traces.recording.replies import ReplyBody, read_reply
from reflux.graphs.traces.recording.requests import Protocol, RequestBody, read_request
from reflux.graphs.traces.trajectories import AGENT, RecordedCall

NODE_HEADER = "x-reflux-node"
COMPRESSIONS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15), "identity": (), "": ()}
"""Compressions that are read, with zlib's window bits; deflate comes with its header or without."""
MAY_PASS = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""


@dataclass(frozen=True)
class Exchange:
    """One request, and what came back of it."""

    protocol: Protocol
    body: bytes
    """Of the request."""
    status: int = 200
    reply: bytes = b""
    """The body as far as it came, as it was sent."""
    content_type: str = ""
    encoding: str = ""
    """Of the reply: gzip or deflate."""
    failure: str = ""
    """Why there is no whole reply: who left, or what broke."""
    was_left: bool = False
    """The client left before the reply ended."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the request, by lower-case name."""
    key: str = ""
    """The trajectory's name in the path."""
    began: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0


class ExchangeRecorder:
    """Records exchanges in the order in which they end."""

    def __init__(self, places: Places, warn: Callable[[str], None] = lambda text: None) -> None:
        """`warn` is told once what cannot be recorded, from another thread."""
        self.recorded = 0
        """Exchanges that are committed."""
        self.failed = 0
        """Exchanges that are not on record."""
        self._places, self._warn = places, warn
        self._queue: SimpleQueue[Exchange | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, exchange: Exchange) -> None:
        """Have an exchange recorded."""
        self._queue.put(exchange)

    def close(self) -> None:
        """Record what was put, and end."""
        self._queue.put(None)
        self._thread.join()
        self._places.close()

    def _run(self) -> None:
        while (exchange := self._queue.get()) is not None:
            try:
                self._record(exchange).add_done_callback(self._done)
            except Exception as error:  # noqa: BLE001 - the next exchange must be recorded.
                self._fail(error)

    def _done(self, future: "Future[None]") -> None:
        if (error := future.exception()) is None:
            self.recorded += 1
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failed += 1
        if self.failed == 1:
            self._warn(f"a call is not on record: {error}; the program goes on")

    def _record(self, exchange: Exchange) -> "Future[None]":
        request, note = _request_of(exchange)
        place = self._places.find(request, exchange.headers, exchange.key)
        reply = _reply_of(exchange)
        return self._places.add(place, _calls(exchange, place, reply, note), reply)


def _request_of(exchange: Exchange) -> tuple[RequestBody, str]:
    """(the request, what is odd about it)."""
    text = _decoded(exchange.body, exchange.headers.get("content-encoding", ""))
    try:
        body = json.loads(text)
        return read_request(exchange.protocol, body), ""
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        messages = ({"role": "user", "content": text.decode(errors="replace")},)
        return RequestBody(messages, (), "", {}), f"the request is of no known form: {error}"


def _reply_of(exchange: Exchange) -> ReplyBody:
    if exchange.encoding.strip().lower() not in COMPRESSIONS and not exchange.failure:
        return ReplyBody(error=f"the reply is compressed as {exchange.encoding}, which is not read")
    body = _decoded(exchange.reply, exchange.encoding)
    streamed = "event-stream" in exchange.content_type and not body.lstrip().startswith(b"{")
    streamed = streamed or body.startswith((b"data:", b"event:"))  # Servers name other types, too.
    try:
        reply = read_reply(exchange.protocol, body, streamed, exchange.status)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reply = ReplyBody(error=f"the reply is of no known form: {error}; it begins {body[:200]!r}")
    had_all = exchange.was_left and reply.ended and not reply.error
    if exchange.failure and not had_all:  # Clients close a stream once they have its end.
        return replace(reply, error=exchange.failure)
    if streamed and not reply.error and not reply.ended:
        return replace(reply, error="the stream ended before the reply did")
    if not reply.choices and not reply.error:
        return replace(reply, error=f"the reply holds no choice; it begins {body[:200]!r}")
    return reply


def _decoded(body: bytes, encoding: str) -> bytes:
    """A body without its compression, as far as it came."""
    for bits in COMPRESSIONS.get(encoding.strip().lower(), ()):
        with suppress(zlib.error):
            return _inflated(body, bits)
    return body


def _inflated(body: bytes, bits: int) -> bytes:
    whole = b""
    while body:  # A body may be of several members.
        inflate = zlib.decompressobj(bits)
        whole += inflate.decompress(body)
        body = inflate.unused_data
    return whole


def node_named(headers: Mapping[str, str]) -> str:
    """The node of a request, as its program names it."""
    return headers.get(NODE_HEADER, "").strip() or AGENT


def _calls(exchange: Exchange, place: Place, reply: ReplyBody, note: str) -> list[RecordedCall]:
    """The call of a request: one for each choice."""
    request = place.request
    reason = ""
    if reply.error:
        status = exchange.status
        refused = 400 <= status < 500 and status not in MAY_PASS
        reason = "cancelled" if exchange.was_left else "refused" if refused else "error"
        reason += f" {status}" if status >= 400 else ""
    notes = tuple(filter(None, (note, place.note)))
    return [
        RecordedCall(
            messages=request.messages,
            reply=replace(
                choice,
                seconds=exchange.seconds,
                finish_reason=reason or choice.finish_reason,
                notes=(*choice.notes, *notes),
            ),
            node=node_named(exchange.headers),
            vote=vote,
            model=request.model,
            tools=request.tools,
            sampling=request.sampling,
            error=reply.error or None,
            created=exchange.began,
        )
        for vote, choice in enumerate(reply.choices or (Completion(""),))
    ]
