"""Where a request belongs: the trajectory that it names, or whose conversation it continues."""

import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from reflux.graphs.traces.database import Rows, read_only
from reflux.graphs.traces.protocols.json_values import mapping
from reflux.graphs.traces.protocols.replies import message_of
from reflux.graphs.traces.recording.prefixes import Prefixes, after, canonical, digests, named
from reflux.graphs.traces.recording.replies import ReplyBody
from reflux.graphs.traces.recording.requests import RequestBody
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    UNFINISHED,
    ChatMessage,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
)
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

TRAJECTORY_HEADER = "x-reflux-trajectory"
NAMES = (
    "reflux_trajectory", "trajectory", "trajectory_id", "trace_id", "session_id", "thread_id",
    "conversation_id", "run_id",
)  # fmt: skip
"""Keys of a request's `metadata` that name its trajectory; the first that is there counts."""
USERS = ("user", "safety_identifier")


@dataclass(frozen=True)
class Place:
    """Where the calls of a request are recorded."""

    trajectory: Trajectory | str
    """One that begins, or the id of one that is on record."""
    request: RequestBody
    """With the messages that its server holds."""
    owner: str
    known: Sequence[tuple[str, bytes]]
    """Role and digest of each prefix of the messages; see `prefixes.digests`."""
    is_named: bool
    """The request names its trajectory, so that no digest needs to find it."""
    continues: bytes | None = None
    note: str = ""
    """What is missing."""

    @property
    def id(self) -> str:
        return self.trajectory if isinstance(self.trajectory, str) else self.trajectory.id

    @property
    def opening(self) -> bytes:
        """Names the trajectory by what the request says of it: the same for each of its calls."""
        if self.is_named:
            return self.id.encode()
        firsts = (digest for role, digest in self.known if role not in ("system", "developer"))
        return next(firsts, b"")


class Places:
    """Finds where requests belong, and records their calls there; from any thread."""

    def __init__(self, store: TraceStore, source: str, key_field: str = "") -> None:
        """`key_field` is the field of a request's body that names its trajectory, such as `user` or
        `metadata.session`, before all others but the header and the path."""
        self._source, self._key_field = source, key_field
        self._writer = TrajectoryWriter(store)
        self._connection = read_only(store.path)
        self._prefixes = Prefixes(Rows(store.path, self._connection))
        self._lock = threading.Lock()
        self._last: Future[None] | None = None

    def close(self) -> None:
        """Wait for what is under way to be committed."""
        self._wait()
        self._connection.close()

    def find(self, request: RequestBody, headers: Mapping[str, str], key: str = "") -> Place:
        """Where a request belongs; `key` is the trajectory's name in the path."""
        with self._lock:
            return self._find(request, headers, key)

    def _find(self, request: RequestBody, headers: Mapping[str, str], key: str) -> Place:
        note = ""
        if request.previous:
            earlier = self._earlier(request)
            note = f"the messages before {request.previous} are not on record"
            if earlier is not None:  # Instructions do not go on to the next response.
                note = ""
                system = [each for each in request.messages if each.get("role") == "system"]
                others = [each for each in request.messages if each.get("role") != "system"]
                request = replace(request, messages=(*system, *earlier, *others))
        owner = "\x1f".join(str(request.fields.get(name) or "") for name in USERS)
        owner += str(mapping(request.fields.get("metadata")).get("user_id") or "")
        known = list(digests(request.messages, owner))
        name, told_by = self._key(request, headers, key)
        begun = replace(_begun(request), source=self._source)
        if name:
            trajectory = replace(begun, key=name, told_by=told_by)
            return Place(trajectory, request, owner, known, True, None, note)
        found = self._prefixes.find(_candidates(request, known))
        if found is not None:
            return Place(found.id, request, owner, known, False, found.digest, note)
        trajectory = replace(begun, key=uuid.uuid4().hex, told_by="prefix")
        return Place(trajectory, request, owner, known, False, None, note)

    def add(self, place: Place, calls: Sequence[RecordedCall], reply: ReplyBody) -> "Future[None]":
        """Record the calls of a request, of which `reply` is what its program got."""
        with self._lock:
            is_response = "input" in place.request.fields  # Whose id later requests may name.
            ends = [named(reply.id)] if reply.id and is_response else []
            ends += [] if place.is_named else _ends(place, reply)
            for digest in ends:
                self._prefixes.add(place.id, digest)
            outcome = _outcome(_answer(calls))
            self._last = self._writer.add(place.trajectory, calls, outcome, ends, place.continues)
            return self._last

    def _wait(self) -> None:
        if self._last is not None:
            with suppress(Exception):  # Who added it is told.
                self._last.result()

    def _earlier(self, request: RequestBody) -> list[ChatMessage] | None:
        """The conversation that the server holds for a request that names its last response."""
        self._wait()
        call = self._prefixes.call_of(named(request.previous))
        if call is None:
            return None
        messages = [each for each in call.messages if each.get("role") != "system"]
        return [*messages, message_of(call.reply)]

    def _key(self, request: RequestBody, headers: Mapping[str, str], path: str) -> tuple[str, str]:
        """(name of the trajectory, who gave it); empty where none did."""
        if header := headers.get(TRAJECTORY_HEADER, "").strip():
            return header, "header"
        if path:
            return path, "path"
        if self._key_field and (value := _at(request.fields, self._key_field)):
            return value, self._key_field
        metadata = mapping(request.fields.get("metadata"))
        if name := next((name for name in NAMES if metadata.get(name)), ""):
            return str(metadata[name]), "metadata"
        # Of the Responses API: an id, or an object that holds it.
        conversation = request.fields.get("conversation")
        if id := mapping(conversation).get("id") or conversation:
            return str(id), "conversation"
        return "", ""


def _at(fields: Mapping[str, Any], place: str) -> str:
    value: Any = fields
    for name in place.split("."):
        value = mapping(value).get(name)
    return str(value) if isinstance(value, str | int) and value != "" else ""


def _begun(request: RequestBody) -> Trajectory:
    metadata = dict(mapping(request.fields.get("metadata")))
    metadata |= {name: value for name in USERS if (value := request.fields.get(name))}
    return Trajectory("", "", metadata=metadata)


def _candidates(request: RequestBody, known: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Digests of conversations that a request may continue, the longest first."""
    before = [digest for role, digest in known[:-1] if role == "assistant"]
    whole = [digest for _, digest in known[-1:]]  # Of a call that failed, and is made again.
    named_by = [named(request.previous)] if request.previous else []
    return [*named_by, *whole, *reversed(before)]


def _ends(place: Place, reply: ReplyBody) -> list[bytes]:
    """Digests of the conversations that an exchange leaves: with each reply, or as it was."""
    before = place.known[-1][1] if place.known else after(b"", place.owner)
    if reply.error:
        return [before]
    ends: dict[bytes, None] = {}
    for choice, raw in zip(reply.choices, reply.raw_texts, strict=False):
        for text in (choice.text, raw):
            ends[after(before, canonical(message_of(choice, text)))] = None
    return list(ends)


def _answer(calls: Sequence[RecordedCall]) -> RecordedCall:
    """The call whose reply its program got."""
    return next((call for call in calls if call.error is None), calls[-1])


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
