"""Spans of any tracer, put together to one trajectory for each trace.

A span is a call, or what calls happened within: a node, an agent, a graph. LangGraph's metadata
name node and nesting where a tracer kept them; otherwise the enclosing spans do.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from reflux.agents.types import ToolCall
from reflux.graphs.traces.importing.conversations import IMAGES, NO_REPLY, NO_SCHEMA, Found
from reflux.graphs.traces.importing.nested_paths import Paths
from reflux.graphs.traces.protocols.replies import images_in
from reflux.graphs.traces.trajectories import (
    AGENT,
    UNFINISHED,
    Feedback,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
)

NO_ROOT = "traces without their outermost span: how they ended is unknown"
NO_MESSAGES = "model calls whose tracer kept no messages are left out"


@dataclass(frozen=True)
class Span:
    """One span of a trace."""

    id: str
    parent: str = ""
    name: str = ""
    start: float = 0.0
    """Unix seconds."""
    call: RecordedCall | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a tracer kept of LangGraph's: node, checkpoint namespace and step."""
    is_agent: bool = False
    """An agent, whose calls are a level deeper where it runs within another."""
    answer: str | None = None
    """What it returned; of the outermost span."""
    error: str | None = None


@dataclass(frozen=True)
class Trace:
    """What a tracer knows of a whole trace."""

    key: str
    source: str
    spans: Sequence[Span]
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    lost: int = 0
    """Model calls without messages."""


def trajectory_of(trace: Trace) -> Found:
    """The trajectory of a trace.

    Raises:
        ValueError: it holds no call.
    """
    spans = sorted(trace.spans, key=lambda span: span.start)
    known = {span.id: span for span in spans}
    paths = Paths()
    for span in spans:
        if isinstance(step := span.metadata.get("langgraph_step"), int) and _namespace(span):
            paths.steps.setdefault(_namespace(span), step)
    calls: list[RecordedCall] = []
    for span in spans:
        above = _above(span, known)
        within_model = any(each.call and each.call.kind == "model" for each in above)
        if span.call is None or (within_model and span.call.kind == "model"):
            continue  # Two tracers saw the same call.
        nested = (
            _namespace(span)[:-1] or tuple(each.id for each in reversed(above) if each.is_agent)[1:]
        )  # The outermost agent is the trajectory itself.
        calls.append(
            replace(
                span.call,
                node=_node(span, above),
                path=paths.of(nested),
                step=len(calls),
                created=span.start,
                error=span.error if span.call.error is None else span.call.error,
            )
        )
    if not calls:
        raise ValueError(f"{NO_MESSAGES}, and there is no other" if trace.lost else NO_REPLY)
    remarks = [NO_MESSAGES] if trace.lost else []
    remarks += _remarks(calls)
    roots = [span for span in spans if span.parent not in known]
    whole = len(roots) == 1 and not roots[0].parent
    remarks += [] if whole else [NO_ROOT]
    done = Trajectory(
        trace.key,
        trace.source,
        tuple(calls),
        name=trace.name or roots[0].name,
        metadata=trace.metadata,
        tags=trace.tags,
        told_by="trace",
        outcome=_outcome(calls, roots[0] if whole else None),
        feedback=trace.feedback,
        created=spans[0].start,
    )
    return Found(done, tuple(dict.fromkeys(remarks)))


def _remarks(calls: Sequence[RecordedCall]) -> list[str]:
    used = [(set(_names(call.reply.tool_calls)), call) for call in calls if call.kind == "model"]
    schemas = [{t["function"]["name"] for t in call.tools if "parameters" in t["function"]}
               for _, call in used]  # fmt: skip
    bare = any(names - known for (names, _), known in zip(used, schemas, strict=True))
    images = any(images_in(call.messages) for call in calls)
    return [*([NO_SCHEMA] if bare else []), *([IMAGES] if images else [])]


def _names(calls: Sequence[ToolCall]) -> Iterator[str]:
    return (call.name for call in calls)


def _above(span: Span, known: Mapping[str, Span]) -> list[Span]:
    """The spans around it, the nearest first."""
    above: list[Span] = []
    seen = {span.id}
    while (parent := known.get(span.parent)) is not None and parent.id not in seen:
        above.append(parent)
        seen.add(parent.id)
        span = parent
    return above


def _namespace(span: Span) -> tuple[str, ...]:
    value = span.metadata.get("langgraph_checkpoint_ns") or span.metadata.get("checkpoint_ns")
    return tuple(filter(None, str(value or "").split("|")))


def _node(span: Span, above: Sequence[Span]) -> str:
    """The node that made a call: LangGraph's, else the nearest span around it but the outermost."""
    if named := span.metadata.get("langgraph_node"):
        return str(named)
    inner = [each.name for each in above[:-1] if each.name and each.call is None]
    agents = [each.name for each in above if each.is_agent and each.name]
    return next(iter([*inner, *agents]), "") or AGENT


def _outcome(calls: Sequence[RecordedCall], root: Span | None) -> RecordedOutcome:
    models = [call for call in calls if call.kind == "model"]
    last = models[-1].reply.text if models and not models[-1].reply.tool_calls else None
    if root is None:
        return RecordedOutcome(last, "unchecked" if last else UNFINISHED)
    if root.error is not None:
        return RecordedOutcome(None, "failed", root.error)
    answer = root.answer if root.answer else last
    return RecordedOutcome(answer, UNFINISHED if answer is None else "unchecked")


class Spool:
    """Spans on disk, until all of a trace are read: files list them in any order."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # A temporary file, which goes with the connection.
        self._database.execute("CREATE TABLE spans (form TEXT, trace TEXT, body TEXT)")

    def add(self, form: str, trace: str, body: str) -> None:
        """Keep one span, in the JSON of its tracer."""
        self._database.execute("INSERT INTO spans VALUES (?, ?, ?)", (form, trace, body))

    def traces(self) -> Iterator[tuple[str, str, list[str]]]:
        """(form, trace, spans) of each trace, in the order in which they began to be read."""
        database = self._database
        database.execute("CREATE INDEX IF NOT EXISTS traced ON spans (form, trace)")
        order = "SELECT form, trace FROM spans GROUP BY form, trace ORDER BY min(rowid)"
        sql = "SELECT body FROM spans WHERE form = ? AND trace = ? ORDER BY rowid"
        for form, trace in database.execute(order):
            with closing(database.execute(sql, (form, trace))) as rows:
                yield form, trace, [body for (body,) in rows]

    def close(self) -> None:
        self._database.close()


def seconds(value: Any) -> float:
    """Unix seconds of a time in any of the forms that tracers write; 0 for none."""
    if isinstance(value, int | float):
        for unit in (1e18, 1e15, 1e12):  # Nano-, micro- or milliseconds.
            if value > unit / 10:
                return float(value) / (unit / 1e9)
        return float(value)
    if not isinstance(value, str) or not value:
        return 0.0
    if value.isdigit():
        return seconds(int(value))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return 0.0
    return (
        moment.timestamp()
        if moment.tzinfo
        else datetime.fromisoformat(f"{value}+00:00").timestamp()
    )
