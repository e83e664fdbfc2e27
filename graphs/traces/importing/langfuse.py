"""Langfuse's exports: observations, traces with their observations, and scores.

Rows of the public API and of the page's export have names such as `traceId`, those of the blob
storage `trace_id`; input, output and metadata may be JSON in a text.

Source: https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields and
`GET /api/public/observations`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from reflux.agents.types import Completion
from reflux.graphs.traces.importing.spans import Span, Trace, seconds
from reflux.graphs.traces.protocols.json_values import (
    Body,
    as_text,
    loaded,
    mapping,
    mappings,
    object_in,
)
from reflux.graphs.traces.protocols.messages import chat_messages
from reflux.graphs.traces.protocols.replies import chat_tools, reply_of, text_of_output
from reflux.graphs.traces.trajectories import Feedback, RecordedCall

FORM = "langfuse"
KINDS = ("SPAN", "EVENT", "GENERATION", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR")
KINDS += ("EMBEDDING", "GUARDRAIL")
KEPT = ("userId", "sessionId", "release", "version", "environment")


def spans_in(body: Body) -> Iterator[tuple[str, Body]]:
    """(trace, observation, trace or score) of each that an object holds; none of another form."""
    body = _camel(body)
    if isinstance(body.get("observations"), list) and "id" in body:
        yield str(body["id"]), body | {"observations": None, "is": "trace"}
        for name, kind in (("observations", "observation"), ("scores", "score")):
            for each in mappings(body.get(name)):
                yield str(body["id"]), _camel(each) | {"is": kind}
    elif body.get("traceId") and body.get("type") in KINDS:
        yield str(body["traceId"]), body | {"is": "observation"}
    elif body.get("traceId") and "name" in body and body.keys() & {"value", "stringValue"}:
        yield str(body["traceId"]), body | {"is": "score"}
    elif {"id", "timestamp", "name"} <= body.keys() and body.keys() & {"userId", "sessionId"}:
        yield str(body["id"]), body | {"is": "trace"}


def _camel(body: Body) -> Body:
    def name(key: str) -> str:
        return re.sub(r"_([a-z])", lambda match: match[1].upper(), key)

    return {name(key): value for key, value in body.items()} if "trace_id" in body else body


def trace_of(key: str, bodies: Sequence[Body]) -> Trace:
    """One trace of Langfuse."""
    about = next((body for body in bodies if body["is"] == "trace"), {})
    observed = {str(body["id"]): body for body in bodies if body["is"] == "observation"}
    scores = {str(body.get("id")): body for body in bodies if body["is"] == "score"}
    first = next(iter(observed.values()), cast(Body, {}))
    more = {name: about.get(name) or first.get(name) for name in KEPT}
    spans = [_span(body) for body in observed.values()]
    if about and about.get("output") is not None:  # The trace is around its observations.
        top = f"trace {key}"
        spans = [_below(span, top, observed) for span in spans]
        start = min((span.start for span in spans), default=0.0)
        spans.insert(
            0, Span(top, name="", start=start, answer=text_of_output(loaded(about["output"])))
        )
    generations = [body for body in observed.values() if body["type"] == "GENERATION"]
    kept = [span for span in spans if span.call is not None and span.call.kind == "model"]
    return Trace(
        key,
        f"import:{FORM}",
        spans,
        name=str(about.get("name") or first.get("traceName") or ""),
        metadata={
            **object_in(about.get("metadata")),
            **{name: value for name, value in more.items() if value},
        },
        tags=tuple(map(str, about.get("tags") or first.get("tags") or ())),
        feedback=tuple(_score(body) for body in scores.values()),
        lost=len(generations) - len(kept),
    )


def _below(span: Span, top: str, observed: Mapping[str, Body]) -> Span:
    return span if span.parent in observed else replace(span, parent=top)


def _score(body: Body) -> Feedback:
    value, text = body.get("value"), str(body.get("stringValue") or "")
    is_number = isinstance(value, int | float)
    comment = "; ".join(
        filter(None, ("" if is_number else text or str(value), body.get("comment")))
    )
    human = body.get("source") == "ANNOTATION" or body.get("authorUserId")
    author = "human" if human else str(body.get("source") or "api").lower()
    return Feedback(float(value) if is_number else None, str(body["name"]), comment, author)


def _span(body: Body) -> Span:
    start, end = seconds(body.get("startTime")), seconds(body.get("endTime"))
    failed = body.get("level") == "ERROR"
    outer = body.get("parentObservationId") or ""
    output = loaded(body.get("output"))
    return Span(
        str(body["id"]),
        str(outer),
        str(body.get("name") or ""),
        start,
        _call(body, loaded(body.get("input")), output, max(0.0, end - start)),
        object_in(body.get("metadata")),
        body["type"] == "AGENT",
        None if outer else text_of_output(output),
        str(body.get("statusMessage") or "failed") if failed else None,
    )


def _call(body: Body, given: Any, output: Any, took: float) -> RecordedCall | None:
    kind = body["type"]
    if kind in ("TOOL", "RETRIEVER"):
        arguments = as_text(given)
        reply = Completion(text_of_output(output) or "", seconds=took)
        return RecordedCall(kind="tool", model=str(body["name"]), arguments=arguments, reply=reply)
    if kind != "GENERATION" or given in (None, ""):
        return None
    asked = mapping(given)
    try:
        messages = chat_messages(given)
        said = _said(output)
        tools = chat_tools(asked.get("tools") or loaded(body.get("toolDefinitions")))
    except ValueError:
        return None
    usage = loaded(body.get("usageDetails")) or loaded(body.get("usage"))
    return RecordedCall(
        messages=tuple(messages),
        reply=replace(reply_of(said, usage), seconds=took),
        model=str(body.get("model") or body.get("providedModelName") or ""),
        tools=tuple(tools),
        sampling=object_in(body.get("modelParameters")),
    )


def _said(output: Any) -> Body:
    """The assistant's message of an output.

    Raises:
        ValueError: it is none.
    """
    if output is None or isinstance(output, str):
        return {"role": "assistant", "content": output or ""}
    body = mapping(output)
    if body and "role" not in body and "type" not in body:
        for key in ("message", "completion", "output", "text"):
            if key in body:
                return _said(body[key])
        if isinstance(body.get("choices"), list):
            return _said(body["choices"][0])
        return {"role": "assistant", "content": as_text(output)}
    return chat_messages(output)[-1]
