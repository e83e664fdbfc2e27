"""Exchanges of programs with an endpoint become calls of trajectories, in a thread of their own.

Whoever forwards a reply hands over what it has forwarded and goes on: nothing here delays a client.
What cannot be read is recorded as it is, and `failed` says so; nothing is raised.
"""

import gzip
import json
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from reflux.agents.types import Completion
from reflux.graphs.traces.database import Rows, read_only
from reflux.graphs.traces.recording.prefixes import Prefixes, digests, named
from reflux.graphs.traces.recording.replies import ReplyBody, read_reply
from reflux.graphs.traces.recording.requests import Protocol, RequestBody, mapping, read_request
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    AGENT,
    UNFINISHED,
    ChatMessage,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
)
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

TRAJECTORY_HEADER = "x-reflux-trajectory"
NODE_HEADER = "x-reflux-node"
NAMES = (
    "reflux_trajectory", "trajectory", "trajectory_id", "trace_id", "session_id", "thread_id",
    "conversation_id", "run_id",
)  # fmt: skip
"""Keys of a request's `metadata` that name its trajectory; the first that is there counts."""
USERS = ("user", "safety_identifier")
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
    notes: tuple[str, ...] = ()


class Recorder:
    """Records exchanges in the order in which they end."""

    def __init__(
        self,
        store: TraceStore,
        source: str = "url",
        key_field: str = "",
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            key_field: the field of a request's body that names its trajectory, such as `user` or
                `metadata.session`, before all others but the header and the path.
            warn: is told once what cannot be recorded, from another thread.
        """
        self.recorded = 0
        """Exchanges that are committed."""
        self.failed = 0
        """Exchanges that are not on record, or not as calls."""
        self._store, self._source, self._key_field = store, source, key_field
        self._writer, self._warn = TrajectoryWriter(store), warn
        self._queue: SimpleQueue[Exchange | None] = SimpleQueue()
        self._last: Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, exchange: Exchange) -> None:
        """Have an exchange recorded."""
        self._queue.put(exchange)

    def close(self) -> None:
        """Record what was put, and end."""
        self._queue.put(None)
        self._thread.join()
        if self._last is not None:
            with suppress(Exception):  # `_done` has told.
                self._last.result()

    def _run(self) -> None:
        with closing(read_only(self._store.path)) as connection:
            prefixes = Prefixes(Rows(self._store.path, connection))
            while (exchange := self._queue.get()) is not None:
                try:
                    self._last = self._record(exchange, prefixes)
                    self._last.add_done_callback(self._done)
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

    def _record(self, exchange: Exchange, prefixes: Prefixes) -> "Future[None]":
        request, unread = _request_of(exchange)
        earlier = self._earlier(request, prefixes)
        if earlier is not None:  # Instructions do not go on to the next response.
            system = [each for each in request.messages if each.get("role") == "system"]
            others = [each for each in request.messages if each.get("role") != "system"]
            request = replace(request, messages=(*system, *earlier, *others))
        elif request.previous:
            unread = f"the messages before {request.previous} are not on record"
        reply = _reply_of(exchange)
        calls = _calls(exchange, request, reply, unread)
        key, told_by = self._key(exchange, request)
        owner = "\x1f".join(str(request.fields.get(name) or "") for name in USERS)
        owner += str(mapping(request.fields.get("metadata")).get("user_id") or "")
        known = list(digests(request.messages, owner))
        trajectory: Trajectory | str
        continues: bytes | None = None
        if key:
            trajectory = replace(_begun(request), key=key, source=self._source, told_by=told_by)
        else:
            found = prefixes.find(_candidates(request, known))
            begun = replace(_begun(request), key=uuid.uuid4().hex, source=self._source)
            trajectory = found.id if found else replace(begun, told_by="prefix")
            continues = found.digest if found else None
        id = trajectory if isinstance(trajectory, str) else trajectory.id
        ends = [named(reply.id)] if exchange.protocol == "responses" and reply.id else []
        if not key:
            ends += _ends(request.messages, calls, reply, owner, known)
        for digest in ends:
            prefixes.add(id, digest)
        return self._writer.add(trajectory, calls, _outcome(calls[0]), ends, continues)

    def _earlier(self, request: RequestBody, prefixes: Prefixes) -> list[ChatMessage] | None:
        """The conversation that the server holds for a request that names its last response."""
        if not request.previous:
            return None
        if self._last is not None:
            with suppress(Exception):  # `_done` has told.
                self._last.result()
        call = prefixes.call_of(named(request.previous))
        if call is None:
            return None
        messages = [each for each in call.messages if each.get("role") != "system"]
        return [*messages, said(call.reply)]

    def _key(self, exchange: Exchange, request: RequestBody) -> tuple[str, str]:
        """(name of the trajectory, who gave it); empty where none did."""
        fields = request.fields
        if self._key_field and (value := _at(fields, self._key_field)):
            named_by = value, self._key_field
        else:
            metadata = mapping(fields.get("metadata"))
            name = next((name for name in NAMES if metadata.get(name)), "")
            named_by = (str(metadata[name]), "metadata") if name else ("", "")
        conversation = fields.get("conversation")
        if not named_by[0] and conversation and exchange.protocol == "responses":
            id = mapping(conversation).get("id") or conversation
            named_by = str(id), "conversation"
        header = exchange.headers.get(TRAJECTORY_HEADER, "").strip()
        path = (exchange.key, "path") if exchange.key else named_by
        return (header, "header") if header else path


def _at(fields: Mapping[str, Any], place: str) -> str:
    value: Any = fields
    for name in place.split("."):
        value = mapping(value).get(name)
    return str(value) if isinstance(value, str | int) and value != "" else ""


def _begun(request: RequestBody) -> Trajectory:
    metadata = dict(mapping(request.fields.get("metadata")))
    metadata |= {name: value for name in USERS if (value := request.fields.get(name))}
    return Trajectory("", "", metadata=metadata)


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
    streamed = "event-stream" in exchange.content_type
    body = _decoded(exchange.reply, exchange.encoding)
    try:
        reply = read_reply(exchange.protocol, body, streamed, exchange.status)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reply = ReplyBody(error=f"the reply is of no known form: {error}; it begins {body[:200]!r}")
    if exchange.failure:
        return replace(reply, error=exchange.failure)
    if streamed and not reply.error and not reply.ended:
        return replace(reply, error="the stream ended before the reply did")
    if not reply.choices and not reply.error:
        return replace(reply, error=f"the reply holds no choice; it begins {body[:200]!r}")
    return reply


def _decoded(body: bytes, encoding: str) -> bytes:
    """A body without its compression, as far as it came."""
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(encoding.strip().lower())
    if bits is None:
        return body
    with suppress(zlib.error, gzip.BadGzipFile):
        return zlib.decompressobj(bits).decompress(body)
    return body


def _calls(
    exchange: Exchange, request: RequestBody, reply: ReplyBody, unread: str
) -> list[RecordedCall]:
    """The call of a request: one for each choice."""
    reason = ""
    if reply.error:
        status = exchange.status
        refused = 400 <= status < 500 and status not in MAY_PASS
        reason = "cancelled" if exchange.was_left else "refused" if refused else "error"
        reason += f" {status}" if status >= 400 else ""
    notes = tuple(filter(None, (*exchange.notes, unread)))
    return [
        RecordedCall(
            messages=request.messages,
            reply=replace(
                choice,
                seconds=exchange.seconds,
                finish_reason=reason or choice.finish_reason,
                notes=(*choice.notes, *notes),
            ),
            node=exchange.headers.get(NODE_HEADER, "").strip() or AGENT,
            vote=vote,
            model=request.model,
            tools=request.tools,
            sampling=request.sampling,
            error=reply.error or None,
            created=exchange.began,
        )
        for vote, choice in enumerate(reply.choices or (Completion(""),))
    ]


def said(reply: Completion, text: str | None = None) -> ChatMessage:
    """A reply as the assistant's message of the next request."""
    message: ChatMessage = {"role": "assistant", "content": reply.text if text is None else text}
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in reply.tool_calls
    ]
    return message | ({"tool_calls": calls} if calls else {})


def _candidates(request: RequestBody, known: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Digests of conversations that a request may continue, the longest first."""
    before = [digest for role, digest in known[:-1] if role == "assistant"]
    whole = [digest for _, digest in known[-1:]]  # Of a call that failed, and is made again.
    named_by = [named(request.previous)] if request.previous else []
    return [*named_by, *whole, *reversed(before)]


def _ends(
    messages: Sequence[ChatMessage],
    calls: Sequence[RecordedCall],
    reply: ReplyBody,
    owner: str,
    known: Sequence[tuple[str, bytes]],
) -> list[bytes]:
    """Digests of the conversations that an exchange leaves: with each reply, or as it was."""
    if reply.error:
        return [digest for _, digest in known[-1:]]
    ends: dict[bytes, None] = {}
    for call, raw in zip(calls, reply.raw_texts, strict=False):
        for text in {call.reply.text: None, raw: None}:
            *_, (_, digest) = digests([*messages, said(call.reply, text)], owner)
            ends[digest] = None
    return list(ends)


def _outcome(call: RecordedCall) -> RecordedOutcome:
    """How a trajectory stands after a call: ended where the model asks for no tool."""
    reply = call.reply
    if call.error is not None:
        status = "stopped" if reply.finish_reason.startswith("cancelled") else "failed"
        return RecordedOutcome(reply.text or None, status, call.error)
    if reply.tool_calls:
        return RecordedOutcome(None, UNFINISHED)
    if reply.filtered:
        return RecordedOutcome(reply.text or None, "failed", "a content filter cut the reply")
    return RecordedOutcome(reply.text, "truncated" if reply.truncated else "unchecked")
