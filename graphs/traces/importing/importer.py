"""Imports files of other programs as trajectories: known by content, and none twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.importing import (
    conversations,
    inspect_logs,
    langfuse,
    langsmith,
    opentelemetry,
)
from reflux.graphs.traces.importing.conversations import Found
from reflux.graphs.traces.importing.files import Item, items_of
from reflux.graphs.traces.importing.spans import Spool, trajectory_of
from reflux.graphs.traces.protocols.json_values import Body
from reflux.graphs.traces.trajectories import RecordedCall, Trajectory, load_calls, redacted
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

TRACERS = {each.FORM: each for each in (langfuse, langsmith, opentelemetry)}
KNOWN = (
    "OpenAI (fine-tuning rows, stored completions), Langfuse, LangSmith, OpenTelemetry (OTLP "
    "JSON), Inspect, ShareGPT, Alpaca, TRL"
)
LOOKS = (
    ({"text"}, "texts for pre-training"),
    ({"instances"}, "a batch of requests"),
    ({"custom_id", "body"}, "the requests of a batch, without the replies"),
    ({"custom_id", "response"}, "the replies of a batch, without the requests"),
    ({"nbformat"}, "a notebook"),
    ({"spans"}, "spans that are not in OTLP's form (`resourceSpans`)"),
    ({"question", "answer"}, "questions with answers, which `reflux eval --data` takes"),
)
"""What a file of no known form looks like, by keys of its objects."""
SCORES = "scores alone, which were added to what is on the record"
IN_FLIGHT = 256
"""Trajectories that are handed to the writer before it is waited for."""


@dataclass
class Import:
    """What came in, and what did not."""

    files: int = 0
    forms: Counter[str] = field(default_factory=Counter[str])
    """Trajectories by form."""
    trajectories: int = 0
    calls: int = 0
    known: int = 0
    """Trajectories that were on the record already, with all their calls."""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    """(how many, the first one's file and place) by reason."""
    remarks: Counter[str] = field(default_factory=Counter[str])
    """Trajectories by what a reader should know of how they were read."""

    def leave_out(self, reason: str, place: str) -> None:
        """Count what does not come in."""
        count, first = self.left_out.get(reason, (0, place))
        self.left_out[reason] = (count + 1, first)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        left_out = [
            {"reason": reason, "count": count, "first": first}
            for reason, (count, first) in self.left_out.items()
        ]
        return {**vars(self), "forms": dict(self.forms), "remarks": dict(self.remarks),
                "left_out": left_out}  # fmt: skip


def import_files(
    paths: Sequence[Path],
    store: Rows | None,
    writer: TrajectoryWriter | None = None,
    skip_broken: bool = False,
) -> Import:
    """Store the trajectories of files that the `store` lacks; without a `writer`, count them.

    Raises:
        UsageError: a file is missing, of no known form, or holds a broken line.
    """
    report = Import(files=len(paths))
    intake = Intake(store, writer, report)
    spool = Spool()
    try:
        for path in paths:
            for found in _conversations(path, spool, report, skip_broken):
                intake.take(found)
        for form, key, bodies in spool.traces():
            try:
                trace = TRACERS[form].trace_of(key, [json.loads(body) for body in bodies])
                if trace.spans or not trace.feedback:
                    intake.take(trajectory_of(trace))
                else:
                    intake.score(Trajectory(key, trace.source, feedback=trace.feedback))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                report.leave_out(_reason(error), f"trace {key}")
    finally:
        spool.close()
        intake.wait()
    return report


def _conversations(path: Path, spool: Spool, report: Import, skip_broken: bool) -> Iterator[Found]:
    """The trajectories that one object each holds; spans go to the spool."""
    recognized = 0
    unknown: list[Item] = []
    for item in items_of(path):
        where = f"{path}, {item.place}"
        if item.problem:
            if not skip_broken:
                raise UsageError(
                    f"{where}: {item.problem}; nothing was imported: correct it, or keep the rest "
                    "with --skip-broken"
                )
            report.leave_out("broken: not a JSON object", where)
            continue
        try:
            if spanned := _spans(item.body, spool):
                recognized += spanned
            elif (read := reader_of(item.body)) is not None:
                recognized += 1
                yield read(item.body)
            else:
                unknown.append(item) if not unknown else None
                report.leave_out("of no known form", where)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            report.leave_out(_reason(error), where)
    if not recognized:
        raise UsageError(f"{path} is of no known form: {_looks(unknown)}; known are {KNOWN}")


def _spans(body: Body, spool: Spool) -> int:
    count = 0
    for form, tracer in TRACERS.items():
        for trace, span in tracer.spans_in(body):
            spool.add(form, trace, json.dumps(span))
            count += 1
        if count:
            break
    return count


def reader_of(body: Body) -> Callable[[Body], Found] | None:
    """What reads an object that holds a whole trajectory; None for one of another form."""
    if "sample" in body and "eval" in body:
        return inspect_logs.read
    return conversations.read if conversations.form_of(body) else None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"without {error}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"of a form that is not known: {text}"


def _looks(items: Sequence[Item]) -> str:
    if not items:
        return "it holds no objects"
    keys = items[0].body.keys()
    known = next((what for needed, what in LOOKS if needed <= keys), None)
    shown = ", ".join(list(keys)[:8]) or "none"
    kind = f"it looks like {known}" if known else "nothing in it is a conversation or a span"
    return f"{kind} (keys of {items[0].place}: {shown})"


class Intake:
    """Hands trajectories to the writer, and waits for it now and then."""

    def __init__(self, store: Rows | None, writer: TrajectoryWriter | None, report: Import) -> None:
        self._store = store
        self._writer = writer
        self._report = report
        self._pending: list[Future[None]] = []
        self._ids: set[str] = set()
        """Of what is pending; without a writer, of all."""

    def take(self, found: Found) -> None:
        """Count a trajectory, and store what of it is new."""
        trajectory, report = found.trajectory, self._report
        fresh = self._fresh(trajectory)
        if not fresh:
            report.known += 1
            return
        report.trajectories += 1
        report.forms[trajectory.source.removeprefix("import:")] += 1
        report.calls += len(fresh)
        report.remarks.update(found.remarks)

    def score(self, trajectory: Trajectory) -> None:
        """Store the scores of a trajectory whose calls came in by an earlier import.

        Raises:
            ValueError: they did not.
        """
        sql = "SELECT text FROM questions WHERE id = ?"
        row = self._store and next(self._store.select(sql, (trajectory.id,)), None)
        if not row:
            raise ValueError("scores of a trace that is not on the record")
        self._report.known += 1
        self._report.remarks[SCORES] += 1
        if self._writer is not None:
            self._pending.append(self._writer.record(replace(trajectory, text=row["text"])))

    def _fresh(self, trajectory: Trajectory) -> Sequence[RecordedCall]:
        """The calls that are not on the record, which are stored."""
        if trajectory.id in self._ids:
            return ()
        self._ids.add(trajectory.id)
        stored = load_calls(self._store, trajectory.id) if self._store is not None else ()
        known = {_identity(call) for call in stored}
        fresh = [call for call in trajectory.calls if _identity(call) not in known]
        if (writer := self._writer) is None:
            return fresh
        if not known:
            self._pending.append(writer.record(trajectory))
        else:  # An export that holds more of a trace than an earlier one, or the same.
            self._pending.append(
                writer.record(replace(trajectory, calls=(), text=trajectory.question))
            )
            if fresh:
                later = [replace(call, step=None) for call in fresh]
                self._pending.append(writer.add(trajectory, later))
        if len(self._pending) >= IN_FLIGHT:
            self.wait()
        return fresh

    def wait(self) -> None:
        """Wait until what was handed over is on disk.

        Raises:
            RefluxError: it cannot be written.
        """
        for done in self._pending:
            done.result()
        self._pending.clear()
        if self._writer is not None:
            self._ids.clear()


def _identity(call: RecordedCall) -> str:
    """What tells a call from others of its trajectory, as it stands on the record."""
    reply = [call.reply.text, call.reply.reasoning, [vars(each) for each in call.reply.tool_calls]]
    body = [call.kind, call.node, call.path, call.arguments, call.messages, reply, call.vote]
    return json.dumps(redacted(body), sort_keys=True)
