"""Trajectories of any program's agent, whichever way they were recorded: values, writer, reader.

Recording by URL, by callback and by import make the same values, and one writer stores them in the
tables of Reflux's trees, so that lists, review, rows and exports need not ask where one came from:

    questions   one trajectory: `system` and `split` are "recorded", `text` is the last user text of
                its first call, `source` says how it was recorded (NULL for our own trees), `about`
                is JSON: key, name, metadata, tags, told_by. (`about`, as `judgements.detail` stands
                beside it in many a query.)
    calls       its model and tool calls: `role` is the node's name, `step` the running number,
                `messages` those of the chat protocol as they were sent, `tools` and `sampling` the
                request's tools and other fields; a tool call has its arguments as `messages`
    judgements  how it ended ("outcome") and its scores ("feedback")

`reflux.graphs.traces.trajectory_writer` stores the values; `load` gives them back, and those of our
own trees, too.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from reflux.agents.clients.reasoning import text_of
from reflux.agents.redaction import PLACEHOLDER, is_secret, redact, valid_unicode
from reflux.agents.types import Completion
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.recorded_client import completion_of
from reflux.graphs.traces.revisions import CALLS_OF

RECORDED = "recorded"
"""System and split of a foreign trajectory."""
UNFINISHED = "unfinished"
"""Status of a foreign trajectory without an end: its program runs, or was stopped."""
AGENT = "agent"
"""The node of a call whose node is unknown."""

NO_REPLY = Completion("")

ChatMessage = dict[str, Any]
"""A message of the chat protocol, with content parts and tool calls as they were sent."""


def is_accepted(status: str) -> bool:
    """True where no check refused the answer, and the answer is complete and final."""
    return status in ("ok", "unchecked")


@dataclass(frozen=True)
class RecordedCall:
    """A model call or a tool call of a trajectory."""

    messages: tuple[ChatMessage, ...] = ()
    """The request's; none for a tool call."""
    reply: Completion = NO_REPLY
    """The model's, or the tool's, which is `refused` where the tool failed."""
    kind: Literal["model", "tool"] = "model"
    node: str = AGENT
    path: str = ""
    """Of a nested graph, as in our own trees; empty where flat."""
    step: int | None = None
    """Number in the trajectory; None for the next one."""
    attempt: int = 0
    vote: int = 0
    """Number among the choices of one request."""
    model: str = ""
    """The model as the request names it; of a tool call, the tool."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools of the request, in the form of the chat protocol."""
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The other fields of the request."""
    arguments: str = ""
    """Of a tool call: JSON text as the model wrote it."""
    error: str | None = None
    """Why there is no whole reply; `reply` holds what came."""
    created: float = 0.0
    """Unix seconds; 0 for now."""


@dataclass(frozen=True)
class RecordedOutcome:
    """How a trajectory ended."""

    answer: str | None
    status: str = "unchecked"
    """See `reflux.graphs.amplify.state.Status`; or `unfinished`."""
    error: str | None = None


@dataclass(frozen=True)
class Feedback:
    """A score or a comment by a human or a program."""

    score: float | None = None
    """0 to 1 where nothing else is agreed on; None for a comment alone."""
    name: str = ""
    """What is scored, such as `correctness`."""
    comment: str = ""
    author: str = "human"
    path: str = ""


@dataclass(frozen=True)
class Trajectory:
    """What one agent did for one task: its calls, how it ended, and its scores."""

    key: str
    """Names it within its source: two values with the same key are one trajectory."""
    source: str
    """How it was recorded: `url`, `callback`, `import:langfuse`, …; empty for our own trees."""
    calls: tuple[RecordedCall, ...] = ()
    text: str = ""
    """What it is about; if empty, the last user text of the first call."""
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()
    told_by: str = ""
    """How its calls were told from those of others: `header`, `path`, `metadata`, `prefix`, …"""
    outcome: RecordedOutcome | None = None
    feedback: tuple[Feedback, ...] = ()
    rejected: tuple[str, ...] = ()
    """Other answers to it, which were refused."""
    created: float = 0.0
    """Unix seconds; 0 for now."""

    @property
    def id(self) -> str:
        """The source, and a digest of the key (hex, 16)."""
        digest = hashlib.sha256(
            f"{self.source}\x1f{redact(self.key)}".encode(errors="replace")
        ).hexdigest()[:16]
        return f"{self.source.replace(':', '-')}-{digest}"

    @property
    def question(self) -> str:
        """The text that lists show."""
        first = next((call for call in self.calls if call.kind == "model"), None)
        return self.text or (last_user_text(first.messages) if first else "")


def last_user_text(messages: Sequence[ChatMessage]) -> str:
    """The text of the last message of the user; of any message where the user has none."""
    users = [each for each in messages if each.get("role") == "user"] or messages
    texts = (text_of(message.get("content")) for message in reversed(users))
    return next(filter(None, texts), "")


def redacted(value: Any) -> Any:
    """JSON without secrets, and without halves of surrogate pairs."""
    if isinstance(value, str):
        return redact(value if value.isascii() else valid_unicode(value))
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {
            redacted(key): PLACEHOLDER if is_secret(key, each) else redacted(each)
            for key, each in items
        }
    if isinstance(value, list | tuple):
        return [redacted(each) for each in cast(Sequence[Any], value)]
    return value


def load(store: Rows, id: str) -> Trajectory | None:
    """A trajectory by its id, ours or any program's; None where there is none.

    Of our own trees, the steps that no model and no tool took are left out.
    """
    root = next(store.select("SELECT * FROM questions WHERE id = ?", (id,)), None)
    if root is None:
        return None
    about: dict[str, Any] = json.loads(root["about"] or "{}")
    ended = next(store.select(_ENDED, (id,)), None)
    return Trajectory(
        key=about.get("key", id),
        source=root["source"] or "",
        calls=tuple(load_calls(store, id)),
        text=root["text"],
        name=about.get("name", ""),
        metadata=about.get("metadata", {}),
        tags=tuple(about.get("tags", ())),
        told_by=about.get("told_by", ""),
        outcome=_outcome_of(json.loads(ended["detail"])) if ended else None,
        feedback=tuple(load_feedback(store, id)),
        rejected=tuple(refused_answers(store, id)),
        created=root["created"],
    )


_ENDED = (
    "SELECT detail FROM judgements WHERE question = ? AND path = '' AND kind = 'outcome'"
    " ORDER BY id DESC LIMIT 1"
)


def refused_answers(store: Rows, id: str) -> list[str]:
    """The answers to a trajectory that its check refused, in order."""
    sql = (
        "SELECT detail ->> 'answer' AS answer FROM judgements WHERE question = ? AND path = ''"
        " AND kind = 'check' AND ok = 0 AND answer IS NOT NULL ORDER BY id"
    )
    return [row["answer"] for row in store.select(sql, (id,))]


def _outcome_of(detail: Mapping[str, Any]) -> RecordedOutcome:
    return RecordedOutcome(detail["answer"], detail["status"], detail.get("error"))


def load_calls(store: Rows, id: str) -> Iterator[RecordedCall]:
    """The model calls and tool calls of a trajectory, in order."""
    sql = (
        f"SELECT c.* FROM questions q JOIN calls c ON c.question = {CALLS_OF}"  # noqa: S608
        " WHERE q.id = ? AND c.kind IN ('model', 'tool')"
        " ORDER BY iif(q.source IS NULL, 0, c.step), c.id"
    )
    return map(recorded_call, store.select(sql, (id,)))


def recorded_call(row: sqlite3.Row) -> RecordedCall:
    """A model call or a tool call from its row."""
    is_tool = row["kind"] == "tool"
    return RecordedCall(
        messages=() if is_tool else tuple(json.loads(row["messages"] or "[]")),
        reply=completion_of(row),
        kind=row["kind"],
        node=row["role"],
        path=row["path"],
        step=row["step"],
        attempt=row["attempt"],
        vote=row["vote"],
        model=row["model"] or "",
        tools=tuple(json.loads(row["tools"] or "[]")),
        sampling=json.loads(row["sampling"] or "{}"),
        arguments=row["messages"] or "" if is_tool else "",
        error=row["error"],
        created=row["created"],
    )


def load_feedback(store: Rows, id: str) -> Iterator[Feedback]:
    """The scores and comments of a trajectory, in order."""
    sql = (
        "SELECT path, detail, author FROM judgements WHERE question = ? AND kind = 'feedback'"
        " ORDER BY id"
    )
    for row in store.select(sql, (id,)):
        yield Feedback(**json.loads(row["detail"]), author=row["author"], path=row["path"])


def feedback_in_words(feedback: Mapping[str, Any], author: str) -> str:
    """`helpful 0.75 by human: short`."""
    score = "" if feedback["score"] is None else f"{feedback['score']:g} "
    told = f"{feedback['name']} {score}by {author}".strip()
    return f"{told}: {feedback['comment']}" if feedback["comment"] else told
