"""Files of other programs as trajectories: what comes in, what does not, and why."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pyarrow import Table, parquet

from reflux.agents.errors import UsageError
from reflux.agents.types import ToolCall
from reflux.graphs.traces.importing.conversations import HALF, IMAGES, NO_REPLY, NO_SCHEMA
from reflux.graphs.traces.importing.importer import SCORES, Import, import_files
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Feedback, Trajectory, load
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from reflux.graphs.traces.tree import load_tree
from tests.support.graphs_with_tools import asking, nested_graph

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
}
CALL = {
    "id": "c1", "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Lima"}'},
}  # fmt: skip
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "How is Lima?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "12 C", "tool_call_id": "c1"}
SAID = {"role": "assistant", "content": "Cold."}
WHOLE = [SYSTEM, ASKED, CALLS, RESULT, SAID]
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def lc(name: str, **fields: Any) -> dict[str, Any]:
    """A message as LangChain serializes it."""
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", name], "kwargs": fields}


ANTHROPIC = [
    ASKED,
    {"role": "assistant", "content": [
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Lima"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "12 C"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Cold."}]},
]  # fmt: skip
RESPONSES = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "How is Lima?"}]},  # noqa: E501
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather",
     "arguments": '{"city": "Lima"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "12 C"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Cold."}]},
]  # fmt: skip
SHAREGPT = [
    {"from": "human", "value": "How is Lima?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lima"}}'},
    {"from": "observation", "value": "12 C"},
    {"from": "gpt", "value": "Cold."},
]
GENAI = [
    {"role": "user", "parts": [{"type": "text", "content": "How is Lima?"}]},
    {"role": "assistant", "parts": [
        {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Lima"}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "12 C"}]},
]  # fmt: skip
LANGCHAIN = [
    lc("HumanMessage", content="How is Lima?"),
    lc("AIMessage", content="", tool_calls=[
        {"name": "weather", "args": {"city": "Lima"}, "id": "c1", "type": "tool_call"}]),
    lc("ToolMessage", content="12 C", tool_call_id="c1"),
]  # fmt: skip
INSPECT = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c1", "function": "weather", "arguments": {"city": "Lima"}, "type": "function"}]},
    {"role": "tool", "content": "12 C", "tool_call_id": "c1", "function": "weather"},
]  # fmt: skip
TIMES = {"startTime": "2026-01-05T10:00:00.000Z", "endTime": "2026-01-05T10:00:02.000Z"}
LANGFUSE = [
    {"id": "root", "traceId": "t1", "type": "AGENT", "name": "helper", **TIMES, "output": "Cold."},
    {"id": "g", "traceId": "t1", "type": "GENERATION", "name": "ask", "model": "gpt-x",
     "parentObservationId": "root", "startTime": "2026-01-05T10:00:01.500Z",
     "endTime": "2026-01-05T10:00:02.000Z", "usageDetails": {"input": 9, "output": 2},
     "modelParameters": {"temperature": 0.5},
     "input": {"messages": WHOLE[1:4], "tools": [TOOL]}, "output": SAID},
    {"id": "w", "traceId": "t1", "type": "TOOL", "name": "weather", "parentObservationId": "root",
     "startTime": "2026-01-05T10:00:01.000Z", "input": {"city": "Lima"}, "output": "12 C"},
]  # fmt: skip
LANGFUSE_SCORE = {"id": "s", "traceId": "t1", "name": "helpful", "value": 0.75, "dataType": "NUMERIC",  # noqa: E501
                  "source": "ANNOTATION", "comment": "short"}  # fmt: skip


def snake(body: dict[str, Any]) -> dict[str, Any]:
    """A row of Langfuse's blob storage."""
    names = {"traceId": "trace_id", "parentObservationId": "parent_observation_id",
             "startTime": "start_time", "endTime": "end_time", "usageDetails": "usage_details",
             "modelParameters": "model_parameters"}  # fmt: skip
    row = {names.get(key, key): value for key, value in body.items()}
    texts = ("input", "output", "model_parameters")
    return {
        k: json.dumps(v) if k in texts and not isinstance(v, str) else v for k, v in row.items()
    }


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def span(id: str, events: Any = (), **attributes: Any) -> dict[str, Any]:
    """A span in OTLP JSON."""

    def value(given: Any) -> dict[str, Any]:
        if isinstance(given, list):
            return {"arrayValue": {"values": [value(each) for each in given]}}
        return {"intValue": str(given)} if isinstance(given, int) else {"stringValue": given}

    listed = [{"key": k.replace("__", "."), "value": value(v)} for k, v in attributes.items()]
    time = {"startTimeUnixNano": "1000000000", "endTimeUnixNano": "2000000000"}
    return {"traceId": "a1", "spanId": id, "parentSpanId": "", "name": id, **time,
            "attributes": listed, "events": list(events)}  # fmt: skip


def event(name: str, **attributes: str) -> dict[str, Any]:
    return {"name": name, "attributes": [
        {"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]}  # fmt: skip  # noqa: E501


CHAT = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "gpt-x"}
EVENTS = [
    event("gen_ai.user.message", content="How is Lima?"),
    event("gen_ai.assistant.message", tool_calls=json.dumps([CALL])),
    event("gen_ai.tool.message", content="12 C", id="c1"),
    event("gen_ai.choice", finish_reason="stop", message=json.dumps(SAID)),
]
NUMBERED = {
    "gen_ai__prompt__0__role": "user", "gen_ai__prompt__0__content": "How is Lima?",
    "gen_ai__prompt__1__role": "assistant",
    "gen_ai__prompt__1__tool_calls__0__id": "c1",
    "gen_ai__prompt__1__tool_calls__0__name": "weather",
    "gen_ai__prompt__1__tool_calls__0__arguments": '{"city": "Lima"}',
    "gen_ai__prompt__2__role": "tool", "gen_ai__prompt__2__content": "12 C",
    "gen_ai__prompt__2__tool_call_id": "c1",
    "gen_ai__completion__0__role": "assistant", "gen_ai__completion__0__content": "Cold.",
}  # fmt: skip
OPENINFERENCE = {
    "llm__input_messages__0__message__role": "user",
    "llm__input_messages__0__message__content": "How is Lima?",
    "llm__input_messages__1__message__role": "assistant",
    "llm__input_messages__1__message__tool_calls__0__tool_call__id": "c1",
    "llm__input_messages__1__message__tool_calls__0__tool_call__function__name": "weather",
    "llm__input_messages__1__message__tool_calls__0__tool_call__function__arguments":
        '{"city": "Lima"}',
    "llm__input_messages__2__message__role": "tool",
    "llm__input_messages__2__message__content": "12 C",
    "llm__input_messages__2__message__tool_call_id": "c1",
    "llm__output_messages__0__message__role": "assistant",
    "llm__output_messages__0__message__content": "Cold.",
}  # fmt: skip
RUN = {"id": "r1", "trace_id": "r1", "run_type": "llm", "name": "ChatX", "start_time":
       "2026-01-05T10:00:00", "end_time": "2026-01-05T10:00:01",
       "extra": {"invocation_params": {"model": "gpt-x", "tools": [TOOL]}}}  # fmt: skip
LOG = {"version": 2, "status": "success", "eval": {"eval_id": "e", "task": "geo", "model": "gpt-x"}}
MODEL_EVENT = {"event": "model", "model": "gpt-x", "timestamp": "2026-01-05T10:00:00+00:00",
               "tools": [TOOL["function"]], "config": {"temperature": 0.5}, "input": INSPECT,
               "output": {"choices": [{"message": SAID, "stop_reason": "stop"}],
                          "usage": {"input_tokens": 9, "output_tokens": 2}}}  # fmt: skip
SAMPLE = {"id": 1, "epoch": 1, "messages": INSPECT, "output": {"choices": [{"message": SAID}]},
          "scores": {"match": {"value": "C", "explanation": "right"}}}  # fmt: skip

FORMS: dict[str, tuple[str, Any]] = {
    # Name: (source, what a file holds).
    "openai rows": ("messages", {"messages": WHOLE, "tools": [TOOL]}),
    "anthropic blocks": ("messages", {"messages": ANTHROPIC, "tools": [
        {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}]}),
    "openai functions": ("messages", {"functions": [TOOL["function"]], "messages": [
        ASKED, {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "weather", "content": "12 C"}, SAID]}),
    "stored completion": ("openai", {"object": "chat.completion", "id": "x", "model": "gpt-x",
        "messages": WHOLE[:4], "tools": [TOOL], "usage": {"prompt_tokens": 9, "completion_tokens": 2},  # noqa: E501
        "choices": [{"message": SAID, "finish_reason": "stop"}]}),
    "stored response": ("openai", {"object": "response", "id": "x", "model": "gpt-x",
        "input": RESPONSES[:3], "output": RESPONSES[3:], "tools": [TOOL["function"] | {
            "type": "function"}]}),
    "request and response": ("openai", {"request": {"messages": WHOLE[:4], "tools": [TOOL]},
        "response": {"choices": [{"message": SAID, "finish_reason": "stop"}]}}),
    "trl": ("trl", {"prompt": WHOLE[:4], "completion": [SAID], "tools": [TOOL]}),
    "sharegpt": ("sharegpt", {"conversations": SHAREGPT, "tools": json.dumps([TOOL["function"]])}),
    "langfuse": ("langfuse", LANGFUSE),
    "langfuse blob": ("langfuse", [snake(each) for each in LANGFUSE]),
    "langfuse trace": ("langfuse", {"id": "t1", "name": "helper", "userId": "u", "output": "Cold.",
        "observations": LANGFUSE, "scores": [LANGFUSE_SCORE]}),
    "langfuse api": ("langfuse", {"data": LANGFUSE, "meta": {"page": 1}}),
    "langsmith": ("langsmith", RUN | {"inputs": {"messages": [LANGCHAIN]}, "outputs": {
        "generations": [[{"text": "Cold.", "message": lc("AIMessage", content="Cold.")}]]}}),
    "langsmith openai": ("langsmith", RUN | {"inputs": {"messages": WHOLE[1:4]}, "outputs": {
        "choices": [{"message": SAID}], "usage_metadata": {"input_tokens": 9, "output_tokens": 2}}}),  # noqa: E501
    "otel": ("opentelemetry", otlp(span("s", **CHAT, **{
        "gen_ai__input__messages": json.dumps(GENAI),
        "gen_ai__output__messages": json.dumps([
            {"role": "assistant", "parts": [{"type": "text", "content": "Cold."}],
             "finish_reason": "stop"}]),
        "gen_ai__tool__definitions": json.dumps([TOOL["function"]])}))),
    "otel events": ("opentelemetry", otlp(span("s", events=EVENTS, **CHAT))),
    "otel logs": ("opentelemetry", {
        **otlp(span("s", **CHAT)),
        "resourceLogs": [{"scopeLogs": [{"logRecords": [
            {"traceId": "a1", "spanId": "s", "eventName": each["name"],
             "attributes": [], "body": {"kvlistValue": {"values": each["attributes"]}}}
            for each in EVENTS]}]}]}),
    "otel numbered": ("opentelemetry", otlp(span("s", **CHAT, **NUMBERED))),
    "openinference": ("opentelemetry", otlp(span("s", **OPENINFERENCE,
                                                 openinference__span__kind="LLM"))),
    "inspect messages": ("inspect", LOG | {"samples": [
        SAMPLE | {"messages": [*INSPECT, SAID], "events": []}]}),
    "inspect events": ("inspect", LOG | {"samples": [SAMPLE | {"events": [MODEL_EVENT]}]}),
    "inspect pool": ("inspect", LOG | {"samples": [SAMPLE | {
        "events": [MODEL_EVENT | {"input": [], "input_refs": [[0, 3]]}],
        "events_data": {"messages": [{"role": "user", "content": "attachment://h"}, *INSPECT[1:]]},
        "attachments": {"h": "How is Lima?"}}]}),
}  # fmt: skip


def write(path: Path, content: Any, lines: bool = False) -> Path:
    values = content if isinstance(content, list) else [content]
    text = (
        "".join(json.dumps(each) + "\n" for each in values)
        if lines
        else json.dumps(content, indent=1)
    )
    path.write_text(text)
    return path


def imported(
    folder: Path, *files: Path, skip_broken: bool = False
) -> tuple[Import, list[Trajectory]]:
    """The report, and the trajectories that are on the record afterwards."""
    store = TraceStore(folder / "run" / "traces.db")
    try:
        report = import_files(files, store, TrajectoryWriter(store), skip_broken)
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        for id in ids:
            load_tree(store, id)
        found = [load(store, id) for id in ids]
    finally:
        store.close()
    return report, [each for each in found if each is not None]


@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_last_call(name: str, lines: bool, tmp_path: Path) -> None:
    source, content = FORMS[name]
    file = write(tmp_path / "file", content, lines)
    report, (one,) = imported(tmp_path, file)
    assert one.source == f"import:{source}" and report.forms == {source: 1}
    last = [call for call in one.calls if call.kind == "model"][-1]
    messages = [each for each in last.messages if each["role"] != "system"]
    assert [each["role"] for each in messages] == ["user", "assistant", "tool"]
    assert messages[0]["content"] == "How is Lima?"
    (call,) = messages[1]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Lima"}
    assert messages[2]["content"] == "12 C" and messages[2]["tool_call_id"] == call["id"]
    assert last.reply.text == "Cold."
    assert one.outcome is not None and one.outcome.answer == "Cold."
    if last.tools:
        assert last.tools[0]["function"] == TOOL["function"]
    again, (same,) = imported(tmp_path, file)
    assert (again.trajectories, again.calls, again.known) == (0, 0, 1)
    assert same == one


def test_scores_that_come_later_and_alone_join_their_trace(tmp_path: Path) -> None:
    """As the blob storage exports them: in files of their own."""
    score = {"id": "s9", "traceId": "t1", "name": "stars", "value": 0.5, "dataType": "NUMERIC"}
    scores = write(tmp_path / "scores", [score, {**score, "id": "s8", "traceId": "t2"}], True)
    imported(tmp_path, write(tmp_path / "traces", LANGFUSE, True))
    report, (one,) = imported(tmp_path, scores)
    assert one.feedback == (Feedback(0.5, "stars", "", "api"),)
    assert (report.trajectories, report.known, report.remarks) == (0, 1, {SCORES: 1})
    assert report.left_out == {"scores of a trace that is not on the record": (1, "trace t2")}
    assert imported(tmp_path, scores)[1] == [one]


def test_a_conversation_is_a_call_for_each_reply(tmp_path: Path) -> None:
    row = {"messages": WHOLE, "tools": [TOOL], "metadata": {"user": "u"}}
    report, (one,) = imported(tmp_path, write(tmp_path / "f", row))
    first, tool, last = one.calls
    assert first.reply.tool_calls == (ToolCall("c1", "weather", '{"city": "Lima"}'),)
    assert list(first.messages) == WHOLE[:2] and list(last.messages) == WHOLE[:4]
    assert (tool.kind, tool.model, tool.arguments, tool.reply.text) == (
        "tool", "weather", '{"city": "Lima"}', "12 C",
    )  # fmt: skip
    assert (report.trajectories, report.calls, report.remarks) == (1, 3, {})
    assert one.text == "How is Lima?" and one.metadata == {"user": "u"}


@pytest.mark.parametrize(
    ("row", "remark"),
    [
        ({"messages": WHOLE}, NO_SCHEMA),
        ({"messages": WHOLE[:3], "tools": [TOOL]}, HALF),
        ({"messages": [*WHOLE, ASKED], "tools": [TOOL]}, HALF),
        ({"messages": [{"role": "user", "content": [PICTURE]}, SAID]}, IMAGES),
        ({"messages": [ASKED, RESULT, SAID]}, "tool results without the call that they answer"),
        ({"messages": [ASKED, {**SAID, "weight": 0}, ASKED, SAID]}, "replies of weight 0 are context alone"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_odd_comes_in_and_is_said(row: Any, remark: str, tmp_path: Path) -> None:
    report, (one,) = imported(tmp_path, write(tmp_path / "f", row))
    assert report.remarks == {remark: 1}
    if remark == HALF:
        assert one.outcome is None
    if remark == IMAGES:
        assert one.calls[0].messages[0]["content"] == [PICTURE]


@pytest.mark.parametrize(
    ("row", "answer", "refused"),
    [
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "Hot."}]}, "Cold.", "Hot."),  # noqa: E501
        ({"prompt": "How is Lima?", "chosen": "Cold.", "rejected": "Hot."}, "Cold.", "Hot."),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "Hot."}]}, "Cold.", "Hot."),  # noqa: E501
        ({"input": {"messages": [ASKED]}, "preferred_output": [SAID],
          "non_preferred_output": [{**SAID, "content": "Hot."}]}, "Cold.", "Hot."),
        ({"instruction": "How is Lima?", "input": "", "chosen": "Cold.", "rejected": "Hot."}, "Cold.", "Hot."),  # noqa: E501
        ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[3],
          "rejected": {"from": "gpt", "value": "Hot."}}, "Cold.", "Hot."),
    ],
)  # fmt: skip
def test_preferences_keep_the_rejected_reply(
    row: Any, answer: str, refused: str, tmp_path: Path
) -> None:
    _, (one,) = imported(tmp_path, write(tmp_path / "f", row))
    assert one.outcome is not None and one.outcome.answer == answer
    assert one.rejected == (refused,)
    assert len(one.calls) == 1 and one.calls[0].messages[-1]["content"] == "How is Lima?"


def test_alpaca_with_history_and_judged_rows(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Now Quito?", "input": "in C", "output": "13 C", "system": "Be brief.",
         "history": [["How is Lima?", "Cold."]]},
        {"prompt": "a", "completion": "b", "label": False},
    ]  # fmt: skip
    _, (alpaca, judged) = imported(tmp_path, write(tmp_path / "f", rows))
    assert [call.reply.text for call in alpaca.calls] == ["Cold.", "13 C"]
    assert alpaca.calls[-1].messages[-1]["content"] == "Now Quito?\nin C"
    assert [(each.name, each.score) for each in judged.feedback] == [("label", 0.0)]


def test_a_trace_is_a_tree_with_scores_wherever_its_rows_stand(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", LANGFUSE[::-1], lines=True)
    scores = write(tmp_path / "scores.jsonl", LANGFUSE_SCORE, lines=True)
    _, (one,) = imported(tmp_path, scores, rows)
    assert [(call.kind, call.node, call.path) for call in one.calls] == [
        ("tool", "helper", ""), ("model", "helper", ""),
    ]  # fmt: skip
    last = one.calls[1]
    assert (last.model, last.sampling, last.reply.seconds) == ("gpt-x", {"temperature": 0.5}, 0.5)
    assert (last.reply.prompt_tokens, last.reply.completion_tokens) == (9, 2)
    assert one.created == 1767607200.0
    (score,) = one.feedback
    assert (score.score, score.name, score.comment, score.author) == (
        0.75,
        "helpful",
        "short",
        "human",
    )


def test_a_later_export_adds_the_calls_that_an_earlier_one_lacked(tmp_path: Path) -> None:
    part = write(tmp_path / "part", LANGFUSE[:1] + LANGFUSE[2:])
    imported(tmp_path, part)
    report, (one,) = imported(tmp_path, write(tmp_path / "all", LANGFUSE))
    assert (report.trajectories, report.calls) == (1, 1)
    assert [call.kind for call in one.calls] == ["tool", "model"]


def test_langsmith_as_its_own_client_makes_it(tmp_path: Path) -> None:
    collector = RunCollectorCallbackHandler()
    nested_graph().invoke(asking("all"), {"callbacks": [collector], "metadata": {"user": "u"}})
    (run,) = collector.traced_runs
    runs = [run]
    for each in runs:  # It grows.
        runs += each.child_runs
    lines = [json.loads(each.model_dump_json(fallback=str)) for each in runs]
    report, (one,) = imported(tmp_path, write(tmp_path / "runs.jsonl", lines[::-1], lines=True))
    assert sorted({call.path for call in one.calls}) == ["", "/0.2.0", "/0.2.1", "/0.2.2"]
    assert {call.node for call in one.calls} == {"plan", "agent", "tools"}
    assert one.metadata["user"] == "u" and report.remarks == {}
    inner = [call for call in one.calls if call.path == "/0.2.1"]
    assert [call.kind for call in inner] == ["model", "tool", "model"]
    assert inner[0].reply.prompt_tokens == 3 and inner[0].tools[0]["function"]["name"] == "add"


def test_opentelemetry_as_its_own_sdk_exports_it(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"}
    inner = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}
    with tracer.start_as_current_span("invoke_agent boss", attributes=agent):
        with (
            tracer.start_as_current_span("invoke_agent helper", attributes=inner),
            tracer.start_as_current_span("chat gpt-x") as chat,
        ):
            chat.set_attribute("gen_ai.operation.name", "chat")
            chat.set_attribute("gen_ai.request.model", "gpt-x")
            chat.set_attribute("gen_ai.request.temperature", 0.5)
            chat.set_attribute("gen_ai.usage.input_tokens", 9)
            chat.set_attribute("gen_ai.input.messages", json.dumps(GENAI[:1]))
            chat.set_attribute("gen_ai.output.messages", json.dumps(GENAI[1:2]))
            chat.add_event("gen_ai.evaluation.result", {
                "gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": 0.5,
            })  # fmt: skip
        with tracer.start_as_current_span("execute_tool weather") as tool:
            tool.set_attribute("gen_ai.operation.name", "execute_tool")
            tool.set_attribute("gen_ai.tool.name", "weather")
            tool.set_attribute("gen_ai.tool.call.arguments", '{"city": "Lima"}')
            tool.set_attribute("gen_ai.tool.call.result", "12 C")
    body = MessageToDict(encode_spans(exporter.get_finished_spans()))
    _, (one,) = imported(tmp_path, write(tmp_path / "f", body, lines=True))
    chat_call, tool_call = one.calls
    assert (chat_call.path, chat_call.node) == ("/0.0.0", "helper")
    assert chat_call.reply.tool_calls == (ToolCall("c1", "weather", '{"city": "Lima"}'),)
    assert (chat_call.sampling, chat_call.reply.prompt_tokens) == ({"temperature": 0.5}, 9)
    assert (tool_call.path, tool_call.node, tool_call.reply.text) == ("", "boss", "12 C")
    assert [(each.name, each.score) for each in one.feedback] == [("relevance", 0.5)]


def test_inspect_scores_errors_limits_and_agents(tmp_path: Path) -> None:
    begin = {"event": "span_begin", "id": "a", "type": "agent", "name": "solver",
             "timestamp": "2026-01-05T09:59:59+00:00"}  # fmt: skip
    samples = [
        SAMPLE | {"events": [begin, MODEL_EVENT | {"span_id": "a"}]},
        SAMPLE | {"id": 2, "events": [MODEL_EVENT], "limit": {"type": "token", "limit": 5}},
        SAMPLE | {"id": 3, "events": [MODEL_EVENT], "error": {"message": "boom"}},
    ]
    _, (solved, limited, failed) = imported(
        tmp_path, write(tmp_path / "f", LOG | {"samples": samples})
    )
    assert (solved.calls[0].node, solved.calls[0].path) == ("solver", "/0.0.0")
    assert [(s.name, s.score, s.comment, s.author) for s in solved.feedback] == [
        ("match", 1.0, "right", "scorer:match")
    ]
    outcomes = [each.outcome for each in (solved, limited, failed)]
    assert [each.status for each in outcomes if each] == ["unchecked", "over_budget", "failed"]
    assert solved.metadata == {"task": "geo", "sample": 1, "epoch": 1, "model": "gpt-x"}


def test_a_log_of_inspect_as_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as log:
        log.writestr("header.json", json.dumps(LOG))
        for number in (1, 2):
            body = SAMPLE | {"id": number, "events": [MODEL_EVENT]}
            log.writestr(f"samples/{number}_epoch_1.json", json.dumps(body))
    report, found = imported(tmp_path, tmp_path / "log.eval")
    assert report.forms == {"inspect": 2}
    assert [each.metadata["sample"] for each in found] == [1, 2]


def test_rows_of_a_parquet_file(tmp_path: Path) -> None:
    inputs, outputs = {"messages": WHOLE[1:4]}, {"choices": [{"message": SAID}]}
    row = {key: RUN[key] for key in ("id", "trace_id", "run_type", "name", "start_time")}
    row |= {"extra": json.dumps(RUN["extra"])}
    row |= {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs)}
    parquet.write_table(Table.from_pylist([row]), tmp_path / "runs.parquet")
    _, (one,) = imported(tmp_path, tmp_path / "runs.parquet")
    assert one.source == "import:langsmith" and one.calls[0].reply.text == "Cold."
    assert one.calls[0].tools == (TOOL,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "once upon a time"}\n', "it looks like texts for pre-training"),
        ('{"question": "1?", "answer": "1"}\n', "`reflux eval --data` takes"),
        ('{"a": 1, "b": 2}\n', r"nothing in it is a conversation or a span \(keys of line 1: a, b\)"),  # noqa: E501
        ("question,answer,score\n1,2,3\n", "it looks like CSV or a table"),
        ("hello\n", "it looks like plain text"),
        ("<html>", "it looks like HTML or XML"),
        ("", "is empty"),
        ('{"messages": [\n{"role": "us', "is no whole JSON"),
        ("PK\x03\x04 nothing", "no whole log of Inspect"),
        ('[]\n', "it holds no objects"),
        ("null", "item 1: null, no JSON object"),
        (b'{"messages": "\xe9"}', "byte 15 is no UTF-8: save the file as UTF-8"),
        (gzip.compress(b'{"messages": []}\n', mtime=0)[:-9], "no whole gzip file: .* again"),
        (b"\x1f\x8b\x08\0nothing", "no whole gzip file: .* export it again"),
        (None, "is a folder: name the files in it"),
    ],
)  # fmt: skip
def test_a_file_of_no_known_form_says_what_it_looks_like(
    content: str | bytes | None, says: str, tmp_path: Path
) -> None:
    if content is None:
        (tmp_path / "f").mkdir()
    else:
        (tmp_path / "f").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=says):
        imported(tmp_path, tmp_path / "f")


def test_broken_lines_are_named_and_the_rest_is_kept_where_asked(tmp_path: Path) -> None:
    good = json.dumps({"messages": [ASKED, SAID]})
    other = json.dumps({"messages": [ASKED]})
    file = tmp_path / "f.jsonl"
    file.write_text(f'{good}\n{{"messages": [\n\n{other}\n[1]\n{json.dumps({"a": 1})}\n')
    with pytest.raises(UsageError, match=r"f\.jsonl, line 2: .*--skip-broken"):
        import_files([file], None)
    report, found = imported(tmp_path, file, skip_broken=True)
    assert len(found) == report.trajectories == 1
    assert report.left_out == {
        "broken: not a JSON object": (2, f"{file}, line 2"),
        NO_REPLY: (1, f"{file}, line 4"),
        "of no known form": (1, f"{file}, line 6"),
    }


def test_zipped_lines_and_the_same_row_twice(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write(f"{json.dumps({'messages': [ASKED, SAID]})}\n" * 3)
    report, found = imported(tmp_path, file)
    assert (len(found), report.trajectories, report.known) == (1, 1, 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_and_texts_with_half_a_surrogate_pair(
    encoding: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.jsonl"
    row = {"messages": [{"role": "user", "content": "\ud83d"}, {**SAID, "content": "é\ud800"}]}
    file.write_bytes(f"{json.dumps(row)}\r\n".encode(encoding))
    for known in (0, 1):
        report, (one,) = imported(tmp_path, file)
        assert report.known == known
    assert (one.calls[0].messages[0]["content"], one.calls[0].reply.text) == ("\ufffd", "é\ufffd")


def test_every_choice_is_kept_and_a_refusal_is_a_reply(tmp_path: Path) -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "No."}
    choices = [{"index": 1, "message": refusal}, {"index": 0, "message": SAID}]
    stored = {"object": "chat.completion", "messages": [ASKED], "choices": choices}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    _, (one,) = imported(tmp_path, write(tmp_path / "f", {**stored, "usage": usage}))
    assert [(call.step, call.vote, call.reply.text) for call in one.calls] == [
        (0, 0, "Cold."), (0, 1, "No."),
    ]  # fmt: skip
    assert [call.reply.prompt_tokens for call in one.calls] == [3, 0]


def test_secrets_are_redacted_before_they_are_stored(tmp_path: Path) -> None:
    key = "sk-abcdefghijklmnopqrstuvwx"
    row = {
        "messages": [{"role": "user", "content": f"use {key}"}, {**SAID, "content": f"got {key}"}]
    }
    file = write(tmp_path / "f", row)
    imported(tmp_path, file)
    again, _ = imported(tmp_path, file)
    assert again.known == 1
    assert key.encode() not in (tmp_path / "run" / "traces.db").read_bytes()
