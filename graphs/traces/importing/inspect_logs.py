"""Inspect's logs: each sample is a trajectory, its model and tool events are the calls.

A `.json` log is one object; a `.eval` log is a ZIP file of `header.json` and one file for each
sample. Long texts stand in a sample's `attachments`, the messages of its events in a pool that
`input_refs` names. A log without events, as Reflux itself writes it, has the sample's messages.

Source: https://inspect.aisi.org.uk/reference/inspect_ai.log.html and inspect_ai.event.html
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from reflux.agents.clients.reasoning import text_of
from reflux.agents.errors import UsageError
from reflux.agents.types import Completion
from reflux.graphs.traces.importing.conversations import Found, conversation
from reflux.graphs.traces.importing.spans import Span, Trace, seconds, trajectory_of
from reflux.graphs.traces.protocols.json_values import Body, as_text, mapping
from reflux.graphs.traces.protocols.messages import chat_messages
from reflux.graphs.traces.protocols.replies import chat_tools, reply_of
from reflux.graphs.traces.trajectories import (
    Feedback,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
)

FORM = "inspect"
MARKS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""What Inspect's scorers write: correct, incorrect, partial, no answer."""
ATTACHED = "attachment://"


def is_log(body: Body) -> bool:
    """Whether an object is a whole log."""
    return {"version", "eval", "status"} <= body.keys() and isinstance(body["eval"], dict)


def samples_of(body: Body) -> Iterator[Body]:
    """The samples of a log, each with what the log says of its evaluation."""
    for sample in cast(list[Body], body.get("samples") or []):
        yield {"eval": body["eval"], "sample": sample}


def samples_in(path: Path) -> Iterator[tuple[str, Body]]:
    """(name, sample) of each in a `.eval` file, one at a time.

    Raises:
        UsageError: it is no log of Inspect.
    """
    try:
        with zipfile.ZipFile(path) as log:
            names = log.namelist()
            start = "header.json" if "header.json" in names else "_journal/start.json"
            about = json.loads(log.read(start))["eval"]
            for name in sorted(name for name in names if name.startswith("samples/")):
                yield name, {"eval": about, "sample": json.loads(log.read(name))}
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"{path} is no whole log of Inspect ({error}); a .eval file holds header.json and "
            "samples/"
        ) from error


def read(body: Body) -> Found:
    """The trajectory of one sample.

    Raises:
        ValueError: it holds no call.
    """
    about, sample = cast(Body, body["eval"]), _resolved(cast(Body, body["sample"]))
    run = str(about.get("eval_id") or about.get("run_id") or about.get("created") or "")
    name = str(about.get("task") or "")
    key = str(sample.get("uuid") or f"{run}:{name}:{sample.get('id')}:{sample.get('epoch')}")
    model = str(about.get("model") or "")
    metadata = {
        "task": name,
        "sample": sample.get("id"),
        "epoch": sample.get("epoch"),
        "model": model,
    }
    trajectory = Trajectory(
        key,
        f"import:{FORM}",
        name=name,
        metadata={k: v for k, v in metadata.items() if v not in (None, "")},
        told_by="sample",
        feedback=tuple(_scores(sample)),
    )
    events = cast(list[Body], sample.get("events") or [])
    if any(event.get("event") == "model" for event in events):
        found = trajectory_of(Trace(key, trajectory.source, _spans(sample, events)))
        done = replace(trajectory, calls=found.trajectory.calls, created=found.trajectory.created)
        remarks = tuple(each for each in found.remarks if "outermost" not in each)
    else:
        found = conversation(trajectory, chat_messages(sample["messages"]), model=model)
        done, remarks = found.trajectory, found.remarks
    return Found(replace(done, outcome=_outcome(sample, done)), remarks)


def _outcome(sample: Body, trajectory: Trajectory) -> RecordedOutcome | None:
    if error := sample.get("error"):
        text = error.get("message") if isinstance(error, dict) else error
        return RecordedOutcome(None, "failed", str(text).strip())
    choices = cast(list[Body], mapping(sample.get("output")).get("choices") or [])
    text = text_of(mapping(choices[0].get("message")).get("content")) if choices else None
    if text is None and trajectory.outcome is not None:
        text = trajectory.outcome.answer
    if limit := mapping(sample.get("limit")):
        return RecordedOutcome(text, "over_budget", f"limit of {limit.get('type')}")
    return RecordedOutcome(text, "unchecked" if text else "unfinished")


def _scores(sample: Body) -> Iterator[Feedback]:
    for name, body in mapping(sample.get("scores")).items():
        score = mapping(body)
        value = score.get("value")
        number = MARKS.get(value) if isinstance(value, str) else value
        comment = str(score.get("explanation") or "")
        if isinstance(number, int | float):
            yield Feedback(float(number), name, comment, f"scorer:{name}")
        elif value is not None:
            text = "; ".join(filter(None, (json.dumps(value), comment)))
            yield Feedback(None, name, text, f"scorer:{name}")


def _spans(sample: Body, events: Sequence[Body]) -> list[Span]:
    """Agents and calls of a sample's events; a span of another kind is skipped over."""
    pool = cast(list[Any], mapping(sample.get("events_data")).get("messages") or [])
    begun = {str(e["id"]): e for e in events if e.get("event") == "span_begin" and "id" in e}

    def agent_around(id: Any) -> str:
        seen: set[str] = set()
        while (span := begun.get(str(id))) is not None and str(id) not in seen:
            if span.get("type") == "agent":
                return str(id)
            seen.add(str(id))
            id = span.get("parent_id")
        return "sample"

    spans = [Span("sample", is_agent=True)]
    for id, event in begun.items():
        if event.get("type") == "agent":
            outer = agent_around(event.get("parent_id"))
            start = seconds(event.get("timestamp"))
            spans.append(Span(id, outer, str(event.get("name") or ""), start, is_agent=True))
    for number, event in enumerate(events):
        call = _call(event, pool) if event.get("event") in ("model", "tool") else None
        if call is not None:
            error = event.get("error")
            why = error.get("message") if isinstance(error, dict) else error
            spans.append(
                Span(
                    str(event.get("uuid") or f"event {number}"),
                    agent_around(event.get("span_id")),
                    start=seconds(event.get("timestamp")),
                    call=call,
                    error=str(why) if why else None,
                )
            )
    first = min(span.start for span in spans[1:])
    return [replace(spans[0], start=first), *spans[1:]]


def _call(event: Body, pool: Sequence[Any]) -> RecordedCall | None:
    took = float(event.get("working_time") or 0)
    if event["event"] == "tool":
        text = as_text(event.get("result"))
        finish = "refused" if event.get("error") else "stop"
        return RecordedCall(
            kind="tool", model=str(event.get("function")),
            arguments=as_text(event.get("arguments") or {}),
            reply=Completion(text, seconds=took, finish_reason=finish),
        )  # fmt: skip
    given = event.get("input") or [
        each for start, end in event.get("input_refs") or () for each in pool[start:end]
    ]
    output = mapping(event.get("output"))
    choices = cast(list[Body], output.get("choices") or [])
    if not given:
        return None
    said = chat_messages([choices[0]["message"]])[-1] if choices else {"content": ""}
    finish = str(choices[0].get("stop_reason") or "") if choices else "error"
    config = mapping(event.get("config"))
    return RecordedCall(
        messages=tuple(chat_messages(given)),
        reply=replace(reply_of(said, output.get("usage"), finish), seconds=took),
        model=str(event.get("model") or ""),
        tools=tuple(chat_tools(event.get("tools"))),
        sampling={name: value for name, value in config.items() if value is not None},
    )


def _resolved(sample: Body) -> Body:
    """A sample with its attachments in place."""
    held = mapping(sample.get("attachments"))
    if not held:
        return sample

    def within(value: Any) -> Any:
        if isinstance(value, str):
            key = value.removeprefix(ATTACHED)
            return held.get(key, value) if key != value else value
        if isinstance(value, Mapping):
            return {key: within(each) for key, each in cast(Body, value).items()}
        return (
            [within(each) for each in cast(list[Any], value)] if isinstance(value, list) else value
        )

    return {key: within(value) for key, value in sample.items() if key != "attachments"}
