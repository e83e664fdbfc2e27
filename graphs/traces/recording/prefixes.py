"""Which trajectory a request continues: the one whose conversation its messages begin with.

An agent sends the whole conversation with each call. What a recorded call sent and got back is a
prefix of the next call's messages, found by its digest. Digests stand in the table `conversations`,
so that a trajectory goes on after a restart; those not committed yet stand in memory.

Where two runs of an agent began with the same words, the newest conversation that has not gone on
is taken: each run's calls still make one whole conversation.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.protocols.json_values import items_of, mappings
from reflux.graphs.traces.trajectories import ChatMessage, RecordedCall, load_calls

MAX_HELD = 50_000
"""Digests kept in memory; older ones are read from the table."""


def canonical(message: Mapping[str, Any]) -> str:
    """A message without what programs change when they send it back: white space around its text,
    text as parts, the order of fields, spaces in arguments, thoughts."""
    content = message.get("content")
    parts = items_of(content) if isinstance(content, list) else [{"text": content or ""}]
    text = "".join(str(part["text"]) for part in mappings(parts) if "text" in part)
    others = [part for part in parts if not (isinstance(part, dict) and "text" in part)]
    calls = [_canonical_call(call) for call in message.get("tool_calls") or ()]
    body = [message.get("role"), text.strip(), others, calls]
    return json.dumps([*body, message.get("tool_call_id")], sort_keys=True)


def _canonical_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    with suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return [call.get("id"), function.get("name"), arguments]


def digests(messages: Sequence[ChatMessage], owner: str = "") -> Iterator[tuple[str, bytes]]:
    """(role of the last message, digest) of each prefix of a conversation, shortest first.

    Conversations of different owners, such as users, have no prefix in common.
    """
    digest = after(b"", owner)
    for message in messages:
        digest = after(digest, canonical(message))
        yield str(message.get("role")), digest


def after(digest: bytes, text: str) -> bytes:
    """The digest of a conversation that goes on with a message."""
    return hashlib.blake2b(digest + text.encode(errors="replace"), digest_size=16).digest()


def named(name: str) -> bytes:
    """The digest of a conversation that its server has given a name."""
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=16, person=b"named").digest()


class Found(NamedTuple):
    """A trajectory, and the digest of the conversation that it goes on from."""

    id: str
    digest: bytes


class Prefixes:
    """The conversations on record, by their digests. One thread at a time uses it."""

    def __init__(self, store: Rows) -> None:
        self._store = store
        self._held: OrderedDict[bytes, dict[str, bool]] = OrderedDict()
        """By digest: trajectories, oldest first, and whether each has gone on."""

    def find(self, candidates: Sequence[bytes]) -> Found | None:
        """The trajectory that the first of the digests on record belongs to. It is taken to go on
        there."""
        for digest in candidates:
            known = self._read(digest)
            if not known:
                continue
            waiting = [id for id, has_gone_on in known.items() if not has_gone_on]
            id = (waiting or list(known))[-1]
            known[id] = True
            self._hold(digest, known)
            return Found(id, digest)
        return None

    def add(self, id: str, digest: bytes) -> None:
        """A trajectory has come as far as a conversation."""
        known = self._read(digest)
        known.pop(id, None)
        known[id] = False
        self._hold(digest, known)

    def call_of(self, digest: bytes) -> RecordedCall | None:
        """The committed call that a conversation ends with."""
        sql = "SELECT question, step FROM conversations WHERE digest = ? ORDER BY created DESC"
        for row in self._store.select(sql, (digest,)):
            calls = load_calls(self._store, row["question"])
            return next((call for call in calls if call.step == row["step"]), None)
        return None

    def _read(self, digest: bytes) -> dict[str, bool]:
        if (held := self._held.get(digest)) is not None:
            return held
        sql = "SELECT question, continued FROM conversations WHERE digest = ? ORDER BY created"
        return {
            row["question"]: bool(row["continued"]) for row in self._store.select(sql, (digest,))
        }

    def _hold(self, digest: bytes, known: dict[str, bool]) -> None:
        self._held[digest] = known
        self._held.move_to_end(digest)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
