"""LangSmith's runs: `Run.dict()` of its client, its command line's traces, and its bulk export.

A run names its trace, its parent and its kind; chat models have LangChain's serialized messages, or
OpenAI's, as the wrappers of its SDK record them. `child_runs` may be nested.

Source: https://docs.langchain.com/langsmith/run-data-format
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from reflux.agents.types import Completion
from reflux.graphs.traces.importing.spans import Span, Trace, seconds
from reflux.graphs.traces.protocols.json_values import Body, as_text, loaded, object_in
from reflux.graphs.traces.protocols.messages import chat_messages
from reflux.graphs.traces.protocols.replies import (
    NOT_SAMPLING,
    chat_tools,
    reply_of,
    text_of_output,
)
from reflux.graphs.traces.trajectories import Feedback, RecordedCall

FORM = "langsmith"


def spans_in(body: Body) -> Iterator[tuple[str, Body]]:
    """(trace, run) of each run that an object holds; none of another form."""
    if isinstance(body.get("runs"), list):
        for run in cast(list[Body], body["runs"]):
            yield from spans_in({"trace_id": body.get("trace_id"), **run})
        return
    if "run_type" not in body or "id" not in body:
        return
    trace = str(body.get("trace_id") or body["id"])
    yield trace, {key: value for key, value in body.items() if key != "child_runs"}
    for run in cast(list[Body], loaded(body.get("child_runs")) or []):
        yield from spans_in({"parent_run_id": body["id"], **run, "trace_id": trace})


def trace_of(key: str, bodies: Sequence[Body]) -> Trace:
    """One trace of LangSmith."""
    runs = {str(body["id"]): body for body in bodies}
    spans = [_span(body) for body in runs.values()]
    root = next((b for b in runs.values() if not b.get("parent_run_id")), next(iter(runs.values())))
    kept = {span.id for span in spans if span.call is not None}
    models = [id for id, body in runs.items() if body["run_type"] == "llm"]
    known = _metadata(root)
    return Trace(
        key,
        f"import:{FORM}",
        spans,
        name=str(root.get("name") or ""),
        metadata={k: v for k, v in known.items() if not k.startswith(("langgraph_", "ls_", "lc_"))},
        tags=tuple(map(str, loaded(root.get("tags")) or ())),
        feedback=tuple(_scores(root)),
        lost=sum(id not in kept for id in models),
    )


def _metadata(body: Body) -> Body:
    return object_in(object_in(body.get("extra")).get("metadata"))


def _scores(body: Body) -> Iterator[Feedback]:
    for name, stats in object_in(body.get("feedback_stats")).items():
        score = object_in(stats).get("avg")
        if isinstance(score, int | float):
            yield Feedback(float(score), name, author="langsmith")


def _span(body: Body) -> Span:
    start, end = seconds(body.get("start_time")), seconds(body.get("end_time"))
    parent = body.get("parent_run_id") or ""
    call = _call(body, max(0.0, end - start))
    return Span(
        str(body["id"]),
        str(parent),
        str(body.get("name") or ""),
        start,
        call,
        _metadata(body),
        answer=None if parent else _answer(object_in(body.get("outputs"))),
        error=str(body["error"]).strip() if body.get("error") else None,
    )


def _answer(outputs: Body) -> str | None:
    if "generations" in outputs or "choices" in outputs:
        content = _said(outputs)["content"]
        return content if isinstance(content, str) else None
    return text_of_output(outputs or None)


def _call(body: Body, took: float) -> RecordedCall | None:
    inputs, outputs = object_in(body.get("inputs")), object_in(body.get("outputs"))
    kind = body["run_type"]
    if kind in ("tool", "retriever"):
        given = inputs.get("input", inputs)
        arguments = as_text(given)
        found = outputs.get("output", outputs.get("documents", outputs))
        reply = Completion((text_of_output(found) or "") if found else "", seconds=took)
        return RecordedCall(
            kind="tool", model=str(body.get("name")), arguments=arguments, reply=reply
        )
    if kind != "llm":
        return None
    given = inputs.get("messages", inputs.get("input", inputs.get("prompts")))
    if given is None:
        return None
    extra = object_in(body.get("extra"))
    settings = object_in(extra.get("invocation_params")) or object_in(extra.get("options"))
    try:
        messages = chat_messages(given)
        tools = chat_tools(
            settings.get("tools") or inputs.get("tools") or settings.get("functions")
        )
        said = _said(outputs)
    except ValueError:
        return None
    names = (settings.get("model"), settings.get("model_name"), inputs.get("model"))
    names += (_metadata(body).get("ls_model_name"),)
    return RecordedCall(
        messages=tuple(messages),
        reply=replace(reply_of(said, _usage(body, outputs)), seconds=took),
        model=str(next(filter(None, names), body.get("name") or "")),
        tools=tuple(tools),
        sampling={k: v for k, v in settings.items() if k not in NOT_SAMPLING and v is not None},
    )


def _said(outputs: Body) -> Body:
    """The assistant's message of a model's outputs.

    Raises:
        ValueError: they hold none.
    """
    value: Any = outputs
    for key in ("generations", "choices"):
        while isinstance(value, Mapping) and isinstance(cast(Body, value).get(key), list):
            value = cast(Body, value)[key]
    while isinstance(value, list) and value:
        value = cast(list[Any], value)[0]
    body = cast(Body, value) if isinstance(value, Mapping) else {}
    if isinstance(body.get("message"), Mapping):
        return chat_messages([body["message"]])[-1]
    if isinstance(body.get("messages"), list):
        return chat_messages(body["messages"])[-1]
    if "role" in body or body.get("lc"):
        return chat_messages([body])[-1]
    text = body.get("text", body.get("output", body.get("content")))
    return {"role": "assistant", "content": text if isinstance(text, str) else ""}


def _usage(body: Body, outputs: Body) -> Body:
    """What a model call used, where LangChain or a wrapper put it."""
    value: Any = outputs.get("generations")
    while isinstance(value, list) and value:
        value = cast(list[Any], value)[0]
    message = object_in(object_in(value).get("message"))
    within = object_in(message.get("kwargs", message)).get("usage_metadata")
    said = object_in(outputs.get("llm_output")).get("token_usage")
    found = within or outputs.get("usage_metadata") or outputs.get("usage") or said
    return object_in(found) or {
        name: body[name] for name in ("prompt_tokens", "completion_tokens") if body.get(name)
    }
