"""OpenTelemetry's `gen_ai` spans in OTLP JSON, as a collector's file exporter writes them.

Messages are read from the attributes `gen_ai.input.messages`, `gen_ai.output.messages`,
`gen_ai.system_instructions` and `gen_ai.tool.definitions`; from the events of earlier conventions
(`gen_ai.user.message`, `gen_ai.choice`), on spans or as log records; from log records
`gen_ai.client.inference.operation.details`; and from the numbered attributes of instrumentations
(`gen_ai.prompt.0.role`, OpenInference's `llm.input_messages.0.message.role`).

Source: https://github.com/open-telemetry/semantic-conventions-genai (docs/gen-ai), and
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from reflux.agents.types import Completion
from reflux.graphs.traces.importing.spans import Span, Trace, seconds
from reflux.graphs.traces.protocols.json_values import Body, as_text, loaded, object_in
from reflux.graphs.traces.protocols.messages import chat_messages
from reflux.graphs.traces.protocols.replies import chat_tools, reply_of, text_of_output
from reflux.graphs.traces.trajectories import Feedback, RecordedCall

FORM = "opentelemetry"
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
MODELS = ("chat", "text_completion", "generate_content", "completion", "LLM")
TOOLS = ("execute_tool", "TOOL", "tool")
AGENTS = ("invoke_agent", "create_agent", "AGENT", "invoke_workflow")
ROLES = ("system", "user", "assistant", "tool")
REQUEST = "gen_ai.request."
USAGE = "gen_ai.usage."
USED = {
    "prompt_tokens": (f"{USAGE}input_tokens", f"{USAGE}prompt_tokens", "llm.token_count.prompt"),
    "completion_tokens": (
        f"{USAGE}output_tokens", f"{USAGE}completion_tokens", "llm.token_count.completion"
    ),
}  # fmt: skip
"""Attributes that count tokens, the newest first."""


def spans_in(body: Body) -> Iterator[tuple[str, Body]]:
    """(trace, span or log record) of each that an object holds; none of another form.

    Attributes are plain values then, resources are left out.
    """
    for resource in _lists(body, "resourceSpans", "resource_spans"):
        for scope in _lists(resource, "scopeSpans", "scope_spans", "instrumentationLibrarySpans"):
            for span in _lists(scope, "spans"):
                yield str(span.get("traceId") or span.get("trace_id")), _plain(span)
    for resource in _lists(body, "resourceLogs", "resource_logs"):
        for scope in _lists(resource, "scopeLogs", "scope_logs"):
            for record in _lists(scope, "logRecords", "log_records"):
                if trace := record.get("traceId") or record.get("trace_id"):
                    yield str(trace), _plain(record) | {"is": "log"}


def _lists(body: Body, *names: str) -> Iterator[Body]:
    for name in names:
        yield from cast(list[Body], body.get(name) or [])


def _plain(span: Body) -> Body:
    events = [_plain(event) for event in _lists(span, "events")]
    plain = {"attributes": _attributes(span.get("attributes")), "events": events}
    body = span.get("body")
    return {**span, **plain, "body": _value(body) if isinstance(body, dict) else body}


def _attributes(value: Any) -> Body:
    if isinstance(value, list):
        return {str(each["key"]): _value(each.get("value")) for each in cast(list[Body], value)}
    return cast(Body, value) if isinstance(value, dict) else {}


def _value(value: Any) -> Any:
    """A value of OTLP's `AnyValue` as plain JSON."""
    if not isinstance(value, Mapping):
        return value
    kind, inner = next(iter(cast(dict[str, Any], value).items()), ("", cast(Any, "")))
    if kind in ("stringValue", "boolValue", "bytesValue"):
        return inner
    if kind == "intValue":  # 64 bits, as text.
        return int(inner)
    if kind == "doubleValue":
        return float(inner)
    if kind == "arrayValue":
        return [_value(each) for each in cast(Body, inner).get("values") or ()]
    return _attributes(cast(Body, inner).get("values")) if kind == "kvlistValue" else dict(value)


def trace_of(key: str, bodies: Sequence[Body]) -> Trace:
    """One trace of OpenTelemetry."""
    spans = {_id(body): body for body in bodies if body.get("is") != "log"}
    logs: dict[str, list[Body]] = {}
    for body in bodies:
        if body.get("is") == "log":
            logs.setdefault(_id(body), []).append(body)
    for id in logs.keys() - spans.keys():  # Logs without spans hold the calls all the same.
        at = {"spanId": id, "startTimeUnixNano": logs[id][0].get("timeUnixNano")}
        spans[id] = {**at, "attributes": {}, "events": []}
    read = [_span(body, logs.get(id, [])) for id, body in spans.items()]
    given = next(
        (body for body in spans.values() if "gen_ai.conversation.id" in body["attributes"]), None
    )
    events = [
        *(e for b in spans.values() for e in b["events"]),
        *(log for each in logs.values() for log in each),
    ]
    asks = [id for id, b in spans.items() if _operation(b["attributes"]) in MODELS]
    kept = {span.id for span in read if span.call is not None}
    return Trace(
        key,
        f"import:{FORM}",
        read,
        metadata={"conversation": given["attributes"]["gen_ai.conversation.id"]} if given else {},
        feedback=tuple(_score(each["attributes"]) for each in events if _event(each) == EVALUATION),
        lost=sum(id not in kept for id in asks),
    )


def _id(body: Body) -> str:
    return str(body.get("spanId") or body.get("span_id") or "")


def _event(body: Body) -> str:
    return str(
        body.get("eventName") or body.get("name") or body["attributes"].get("event.name") or ""
    )


def _score(attributes: Body) -> Feedback:
    value = attributes.get("gen_ai.evaluation.score.value")
    texts = (attributes.get(f"gen_ai.evaluation.{key}") for key in ("score.label", "explanation"))
    score = float(value) if isinstance(value, int | float) else None
    name = str(attributes.get("gen_ai.evaluation.name") or "")
    return Feedback(score, name, "; ".join(str(text) for text in texts if text), "evaluator")


def _operation(attributes: Body) -> str:
    names = ("gen_ai.operation.name", "openinference.span.kind", "llm.request.type")
    return str(next((attributes[name] for name in names if attributes.get(name)), ""))


def _span(body: Body, logs: Sequence[Body]) -> Span:
    attributes: Body = dict(body["attributes"])
    events = [*body["events"], *logs]
    for event in events:
        if _event(event) == DETAILS:
            attributes |= event["attributes"] | (
                event["body"] if isinstance(event.get("body"), dict) else {}
            )
    start = seconds(body.get("startTimeUnixNano") or body.get("start_time_unix_nano"))
    end = seconds(body.get("endTimeUnixNano") or body.get("end_time_unix_nano"))
    operation = _operation(attributes)
    status = cast(Body, body.get("status") or {})
    failed = status.get("code") in (2, "STATUS_CODE_ERROR") or attributes.get("error.type")
    why = status.get("message") or attributes.get("error.type") or "failed"
    is_agent = operation in AGENTS
    name = attributes.get("gen_ai.agent.name") if is_agent else None
    parent = body.get("parentSpanId") or body.get("parent_span_id") or ""
    call = None
    if operation in TOOLS or attributes.get("gen_ai.tool.name"):
        call = _tool(attributes)
    elif operation in MODELS or "gen_ai.request.model" in attributes or logs:
        call = None if is_agent else _model(attributes, events)
    if call is not None:
        call = replace(call, reply=replace(call.reply, seconds=max(0.0, end - start)))
    return Span(
        _id(body),
        str(parent),
        str(name or body.get("name") or ""),
        start,
        call,
        object_in(attributes.get("metadata")),
        is_agent,
        None if parent else _answer(attributes),
        str(why) if failed else None,
    )


def _answer(attributes: Body) -> str | None:
    for name in ("gen_ai.output.messages", "output.value", "traceloop.entity.output"):
        if attributes.get(name):
            return text_of_output(loaded(attributes[name]))
    return None


def _tool(attributes: Body) -> RecordedCall:
    given = attributes.get("gen_ai.tool.call.arguments", attributes.get("input.value", ""))
    result = attributes.get("gen_ai.tool.call.result", attributes.get("output.value", ""))
    name = attributes.get("gen_ai.tool.name") or attributes.get("tool.name") or "tool"
    arguments = as_text(given)
    return RecordedCall(
        kind="tool", model=str(name), arguments=arguments,
        reply=Completion(text_of_output(result) or ""),
    )  # fmt: skip


def _model(attributes: Body, events: Sequence[Body]) -> RecordedCall | None:
    try:
        asked, said, finish = _messages(attributes, events)
        given = attributes.get("gen_ai.tool.definitions") or attributes.get("gen_ai.request.tools")
        tools = chat_tools(loaded(given)) or _numbered_tools(attributes)
    except ValueError:
        return None
    if not asked:
        return None
    usage = {name: _first(attributes, *names) for name, names in USED.items()}
    reasons = attributes.get("gen_ai.response.finish_reasons")
    finish = finish or (str(reasons[0]) if isinstance(reasons, list) and reasons else "")
    model = _first(attributes, "gen_ai.request.model", "gen_ai.response.model", "llm.model_name")
    return RecordedCall(
        messages=tuple(asked),
        reply=reply_of(said, usage, finish),
        model=str(model or ""),
        tools=tuple(tools),
        sampling={
            name.removeprefix(REQUEST): value for name, value in attributes.items()
            if name.startswith(REQUEST) and name not in (f"{REQUEST}model", f"{REQUEST}tools")
        },
    )  # fmt: skip


def _first(attributes: Body, *names: str) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def _messages(attributes: Body, events: Sequence[Body]) -> tuple[list[Body], Body, str]:
    """(the request's messages, the reply, why it ended) in any generation of the conventions.

    Raises:
        ValueError: a message has no known form.
    """
    if attributes.get("gen_ai.input.messages"):
        said = cast(list[Body], loaded(attributes.get("gen_ai.output.messages")) or [])
        system = loaded(attributes.get("gen_ai.system_instructions"))
        asked = chat_messages(loaded(attributes["gen_ai.input.messages"]))
        if system:
            head = {"role": "system", "parts": system if isinstance(system, list) else [system]}
            asked = [*chat_messages([head]), *asked]
        finish = str(said[0].get("finish_reason") or "") if said else ""
        return asked, _assistant(said), finish
    asked = [_event_message(event) for event in events if _event_role(event)]
    if asked:
        choice = next((event for event in events if _event(event) == "gen_ai.choice"), None)
        body = _event_body(choice) if choice else {}
        message = loaded(body.get("message")) or body
        said = [{"role": "assistant", **message}] if isinstance(message, dict) and choice else []
        return chat_messages(asked), _assistant(said), str(body.get("finish_reason") or "")
    for ask, say in (
        ("gen_ai.prompt", "gen_ai.completion"),
        ("llm.input_messages", "llm.output_messages"),
    ):
        numbered = _numbered(attributes, ask)
        if numbered:
            replies = _numbered(attributes, say)
            finish = str(replies[0].get("finish_reason") or "") if replies else ""
            return chat_messages(numbered), _assistant(replies), finish
    return [], {}, ""


def _assistant(messages: Sequence[Body]) -> Body:
    if not messages:
        return {"role": "assistant", "content": ""}
    return chat_messages([{**messages[0], "role": "assistant"}])[-1]


def _event_role(event: Body) -> str:
    match = re.fullmatch(r"gen_ai\.(system|user|assistant|tool)\.message", _event(event))
    return match[1] if match else ""


def _event_body(event: Body) -> Body:
    """What an event says, in its body or in its attributes."""
    named = {k.removeprefix("gen_ai.event."): v for k, v in event["attributes"].items()}
    content = loaded(named.get("content"))  # The whole event, as JSON.
    body = loaded(event.get("body"))
    fields: Body = {}
    for each in (named, content, body):
        fields |= cast(Body, each) if isinstance(each, dict) else {}
    return {k: loaded(v) if k in ("tool_calls", "message") else v for k, v in fields.items()}


def _event_message(event: Body) -> Body:
    body = _event_body(event)
    keys = ("content", "tool_calls", "id", "name")
    message = {key: body[key] for key in keys if body.get(key) is not None}
    if "id" in message:
        message["tool_call_id"] = message.pop("id")
    return {"content": "", **message, "role": _event_role(event)}


def _numbered(attributes: Body, prefix: str) -> list[Body]:
    """Messages out of attributes such as `gen_ai.prompt.0.tool_calls.0.name`."""
    tree: Any = {}
    for name, value in attributes.items():
        if not name.startswith(f"{prefix}."):
            continue
        place = tree
        *path, last = name.removeprefix(f"{prefix}.").split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = value
    messages = [each.get("message", each) for each in _listed(tree)]
    for message in messages:
        calls = [each.get("tool_call", each) for each in _listed(message.get("tool_calls"))]
        if calls:
            message["tool_calls"] = calls
        elif "tool_calls" in message:
            del message["tool_calls"]
        if isinstance(message.get("content"), str) and message.get("role") in ROLES:
            parts = loaded(message["content"])
            typed = isinstance(parts, list) and all(
                isinstance(p, dict) and "type" in p for p in parts
            )
            message["content"] = parts if typed else message["content"]
    return messages


def _listed(tree: Any) -> list[Any]:
    if not isinstance(tree, dict):
        return []
    numbered = sorted((int(key), value) for key, value in cast(Body, tree).items() if key.isdigit())
    return [value for _, value in numbered if isinstance(value, dict)]


def _numbered_tools(attributes: Body) -> list[Body]:
    functions = _numbered(attributes, "llm.request.functions")
    for function in functions:
        function["parameters"] = loaded(function.get("parameters"))
    schemas = (
        loaded(each.get("tool", {}).get("json_schema"))
        for each in _numbered(attributes, "llm.tools")
    )
    return chat_tools(functions or [each for each in schemas if each])
