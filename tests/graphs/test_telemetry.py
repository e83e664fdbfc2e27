"""Spans: what a run did as OpenTelemetry has it, by the semantic conventions for generative AI."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import Answer, Chain, ChatRequest, Completion, Sampling
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.interrupts import open_interruptible_run
from reflux.graphs.ask import Amplified, Direct, Origin, answer_all
from reflux.graphs.conversation import answer_chat
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.traces.telemetry import (
    CAPTURE,
    NO_SPANS,
    Spans,
    capture_from_env,
    spans_from_env,
)
from tests.support.amplifying import amplified, asking
from tests.support.deferring import overseer, plain

ASKED = Origin("night", 2, "amplified", "addition", "train")
KEY = CallKey("q", "/0.0.1/0.0.2", "answer", 3, 0, 4)
REQUEST = ChatRequest(
    "student-r1",
    (("system", "Be brief."), ("user", "2+2?")),
    Sampling(0.5, 16, seed=7, stop=("\n",)),
)


class Listener:
    """What a collector would be sent."""

    def __init__(self, contents: bool = False) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.spans = Spans(provider, contents)

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, beginning: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name.startswith(beginning)]

    def one(self, beginning: str) -> dict[str, Any]:
        (span,) = self.named(beginning)
        return dict(span.attributes or {})


@pytest.fixture
def heard() -> Listener:
    return Listener()


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def above(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> ReadableSpan | None:
    """The span that it is a child of."""
    by_id = {each.context.span_id: each for each in spans if each.context}
    return by_id[span.parent.span_id] if span.parent else None


@pytest.mark.slow
@settings(max_examples=30)
@given(data=st.data())
async def test_every_span_stands_below_its_node_however_nodes_overtake_each_other(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The tree of spans is the tree of the questions: each path is one step longer than the path
    above it, and every trace is one question's."""
    tree = {"root": ["a", "mid", "b"], "mid": ["c", "deep", "d"], "deep": ["e", "f"]}
    naps = {name: data.draw(st.sampled_from((0, 0.001, 0.004)), name) for name in "abcdef"}
    heard, store = Listener(), TraceStore(tmp_path_factory.mktemp("spans") / "traces.db")
    client = ScriptedClient(lambda _: "4", lambda request: naps[request.messages[-1][1][-1]])
    recorded_client = RecordedClient(client, store, heard.spans)
    context = AmplifyContext(recorded_client, "base", [overseer(tree)], limits=Limits(depth=4))
    try:
        await answer_all(Amplified(context), ASKED, ["root"])
    finally:
        store.close()
    spans = heard.all
    assert Counter(span.name for span in spans) == Counter(
        {"invoke_workflow amplified": 1, "invoke_agent copy": 8, "chat base": 6}
        | {"invoke_agent script:defers": 12}
    )
    for span in spans:
        parent, path = above(span, spans), attribute(span, "reflux.path")
        assert span.end_time and span.start_time and span.end_time >= span.start_time
        if parent is None:
            assert span.name == "invoke_workflow amplified"
            continue
        assert parent.start_time and parent.start_time <= span.start_time
        assert parent.end_time and parent.end_time >= span.end_time
        assert attribute(span, "reflux.depth") == path.count("/")
        at = attribute(parent, "reflux.path") or ""
        assert at == (path.rpartition("/")[0] if span.name == "invoke_agent copy" else path)
    assert len({span.context.trace_id for span in spans if span.context}) == 1


async def test_questions_that_run_side_by_side_are_traces_of_their_own(
    heard: Listener, store: TraceStore
) -> None:
    recorded_client = RecordedClient(ScriptedClient(str, lambda _: 0.002), store, heard.spans)
    system = Direct(AmplifyContext(recorded_client, "base", ()))
    await answer_all(system, ASKED, [f"question {i}" for i in range(20)])
    traces = Counter(span.context.trace_id for span in heard.all if span.context)
    assert list(traces.values()) == [2] * 20
    for span in heard.named("chat"):
        run = above(span, heard.all)
        assert run is not None
        assert attribute(span, "reflux.trajectory") == attribute(run, "reflux.trajectory")
        assert (attribute(span, "reflux.run"), attribute(span, "reflux.round")) == ("night", 2)


async def test_a_call_says_what_was_asked_of_which_model_and_what_it_took(
    heard: Listener, store: TraceStore
) -> None:
    reply = Completion("4", 9, 1, 0.5, "length", retries=("500 busy",))
    await RecordedClient(ScriptedClient(lambda _: reply), store, heard.spans).ask(KEY, REQUEST)
    (span,) = heard.all
    assert (span.name, span.kind) == ("chat student-r1", SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "reflux",
        "gen_ai.request.model": "student-r1",
        "gen_ai.request.max_tokens": 16,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.request.stream": False,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 1,
        "reflux.cached": False,
        "reflux.depth": 2,
        "reflux.model_digest": "scripted:student-r1",
        "reflux.path": "/0.0.1/0.0.2",
        "reflux.retries": 1,
        "reflux.role": "answer",
        "reflux.step": 3,
        "reflux.vote": 4,
    }


@pytest.mark.parametrize(
    ("digest", "model", "says"),
    [
        ("0123456789abcdef+fedcba9876543210", "student-r1", {"reflux.adapter": "student-r1"}),
        ("bf16:0123456789abcdef0123456789abcdef", "mine", {"reflux.adapter": "mine"}),
        ("0123456789abcdef", "base", {}),
        (
            "http://10.1.2.3:8000/v1#lora",
            "lora",
            {"server.address": "10.1.2.3", "server.port": 8000},
        ),
        ("https://[::1]/v1#m", "m", {"server.address": "::1", "server.port": 443}),
    ],
)
def test_the_digest_of_the_weights_tells_adapter_or_address(
    heard: Listener, digest: str, model: str, says: dict[str, Any]
) -> None:
    with heard.spans.call(KEY, ChatRequest(model, (("user", "?"),)), digest):
        pass
    where = {"reflux.adapter", "server.address", "server.port"}
    found = {name: value for name, value in heard.one("chat").items() if name in where}
    assert found == says
    assert heard.one("chat")["gen_ai.provider.name"] == ("openai" if "://" in digest else "reflux")


async def test_a_call_that_is_replayed_has_no_span_and_one_from_the_cache_says_so(
    heard: Listener, store: TraceStore
) -> None:
    reply = Completion("4", cached=True)
    recorded_client = RecordedClient(ScriptedClient(lambda _: reply), store, heard.spans)
    await recorded_client.ask(KEY, REQUEST)
    await recorded_client.ask(KEY, REQUEST)
    assert heard.one("chat")["reflux.cached"] is True


async def test_a_failure_is_told_by_its_kind_and_never_by_its_text(
    heard: Listener, store: TraceStore
) -> None:
    def fail(_: ChatRequest) -> str:
        error = EndpointError("the endpoint says: your question '2+2?' is bad")
        error.status = 422
        raise error

    with pytest.raises(EndpointError):
        await RecordedClient(ScriptedClient(fail), store, heard.spans).ask(KEY, REQUEST)
    (span,) = heard.all
    assert span.status.status_code is StatusCode.ERROR
    assert attribute(span, "error.type") == "422"
    assert "2+2" not in span.to_json()


async def test_a_call_that_is_cancelled_says_so(heard: Listener, store: TraceStore) -> None:
    recorded_client = RecordedClient(
        ScriptedClient(lambda _: "4", lambda _: 60), store, heard.spans
    )
    task = asyncio.create_task(recorded_client.ask(KEY, REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.one("chat")["error.type"] == "cancelled"


async def test_a_streamed_call_ends_with_its_stream_also_where_the_reader_leaves(
    heard: Listener, store: TraceStore
) -> None:
    recorded_client = RecordedClient(ScriptedClient(lambda _: "4"), store, heard.spans)
    async with aclosing(recorded_client.stream(KEY, REQUEST)) as pieces:
        assert [piece async for piece in pieces]
        assert heard.one("chat")["gen_ai.usage.output_tokens"] == 1
    async with aclosing(recorded_client.stream(CallKey("q", "", "answer", 9), REQUEST)) as pieces:
        await anext(pieces)
    whole, left = heard.all
    assert (
        attribute(whole, "gen_ai.request.stream") is True and attribute(whole, "error.type") is None
    )
    assert attribute(left, "error.type") == "cancelled"


async def test_replies_side_by_side_are_calls_of_one_conversation(
    heard: Listener, store: TraceStore
) -> None:
    recorded_client = RecordedClient(
        ScriptedClient(lambda _: "4", lambda _: 0.001), store, heard.spans
    )
    await answer_chat(recorded_client, ASKED, "2+2?", [REQUEST] * 3, hear=lambda at, delta: None)
    (run,) = heard.named("invoke_workflow")
    assert [above(span, heard.all) for span in heard.named("chat")] == [run] * 3
    assert attribute(run, "reflux.status") == "unchecked"


async def test_a_tools_work_is_a_span_and_its_refusal_an_error(
    heard: Listener, store: TraceStore
) -> None:
    recorded_client = RecordedClient(ScriptedClient(str), store, heard.spans)

    async def work() -> ToolReply:
        return ToolReply("17 is no list", False)

    await recorded_client.tool(KEY, "calculator", "sum(17)", work)
    (span,) = heard.all
    assert (span.name, span.kind) == ("execute_tool calculator", SpanKind.INTERNAL)
    assert attribute(span, "gen_ai.tool.name") == "calculator"
    assert attribute(span, "error.type") == "refused"
    assert "is no list" not in span.to_json() and "sum(" not in span.to_json()


async def test_a_link_of_a_chain_is_a_call_below_the_step_that_began_it(
    heard: Listener, store: TraceStore
) -> None:
    def follow(question: str, answer: str) -> str | Answer:
        return str(int(question) + 1) if question != "3" else Answer("done")

    h = ScriptedOverseer("counting", lambda question, transcript, may_ask: Chain("1"), follow)
    recorded_client = RecordedClient(ScriptedClient(lambda _: "4"), store, heard.spans)
    await answer_all(Amplified(AmplifyContext(recorded_client, "base", [h])), ASKED, ["root"])
    assert [attribute(span, "reflux.step") for span in heard.named("chat")] == [0, 1, 2]
    assert {attribute(span, "reflux.role") for span in heard.named("chat")} == {"chain"}


async def test_a_node_that_fails_is_an_error_and_the_run_that_goes_on_is_none(
    heard: Listener, store: TraceStore
) -> None:
    def reply(request: ChatRequest) -> str:
        if request.messages[-1][1] == "bad":
            raise EndpointError("down")
        return "fine"

    system = amplified(store, ScriptedClient(reply), asking("good", "bad"))
    system.context.recorded_client.spans = heard.spans
    await answer_all(system, ASKED, ["root"])
    ended = {
        attribute(n, "reflux.path"): n.status.status_code for n in heard.named("invoke_agent copy")
    }
    assert ended == {"/0.0.0": StatusCode.UNSET, "/0.0.1": StatusCode.ERROR}
    assert attribute(heard.named("invoke_workflow")[0], "reflux.status") == "unchecked"


async def test_waiting_for_a_person_is_no_error_and_each_reply_is_a_run_of_the_same_trajectory(
    heard: Listener, store: TraceStore, tmp_path: Path
) -> None:
    h = overseer({"root": ["a", "who?"]})
    recorded_client = RecordedClient(ScriptedClient(lambda _: "x"), store, heard.spans)
    await store.add_question({"id": "q", "text": "root", **vars(ASKED)})
    async with open_interruptible_run(
        AmplifyContext(recorded_client, "base", [h]), tmp_path / "c.db"
    ) as interruptible_run:
        waits = await interruptible_run.ask("root", "q")
        assert not [s for s in heard.all if s.status.status_code is StatusCode.ERROR]
        await interruptible_run.reply("q", {waits.pending[0].id: plain("me")})
    runs = heard.named("invoke_workflow")
    assert [attribute(run, "reflux.status") for run in runs] == ["waiting", "unchecked"]
    assert {
        (attribute(run, "reflux.trajectory"), attribute(run, "reflux.round")) for run in runs
    } == {("q", 2)}


async def test_no_span_holds_what_was_said_unless_the_conventions_variable_asks_for_it(
    store: TraceStore,
) -> None:
    async def told_with(env: dict[str, str], key: CallKey) -> list[str]:
        heard = Listener(capture_from_env(env))
        recorded_client = RecordedClient(
            ScriptedClient(lambda _: "the answer is four"), store, heard.spans
        )

        async def work() -> ToolReply:
            return ToolReply("the tool says so")

        await recorded_client.ask(key, REQUEST)
        await recorded_client.tool(CallKey("q", key.path, "tool"), "search", "words to find", work)
        return [span.to_json() for span in heard.all]

    contents = ("2+2?", "Be brief.", "the answer is four", "words to find", "the tool says so")
    for number, env in enumerate(({}, {CAPTURE: "NO_CONTENT"}, {CAPTURE: "EVENT_ONLY"})):
        quiet = "".join(await told_with(env, CallKey("q", f"/{number}", "answer")))
        assert not [words for words in contents if words in quiet]
    call, tool = map(json.loads, await told_with({CAPTURE: "true"}, CallKey("q", "/9", "answer")))
    messages = {name: json.loads(call["attributes"][f"gen_ai.{name}"]) for name in MESSAGES}
    assert messages == {
        "system_instructions": [{"type": "text", "content": "Be brief."}],
        "input.messages": [{"role": "user", "parts": [{"type": "text", "content": "2+2?"}]}],
        "output.messages": [
            {
                "role": "assistant",
                "parts": [{"type": "text", "content": "the answer is four"}],
                "finish_reason": "stop",
            }
        ],
    }
    assert tool["attributes"]["gen_ai.tool.call.arguments"] == "words to find"
    assert tool["attributes"]["gen_ai.tool.call.result"] == "the tool says so"


MESSAGES = ("system_instructions", "input.messages", "output.messages")


def known() -> Iterator[str]:
    """Every name of the installed conventions."""
    for name, value in vars(gen_ai_attributes).items():
        if name.startswith("GEN_AI_"):
            yield value


async def test_every_gen_ai_name_is_one_of_the_installed_conventions(store: TraceStore) -> None:
    heard = Listener(contents=True)
    system = amplified(store, ScriptedClient(lambda _: "4"), asking("a", "b"))
    system.context.recorded_client.spans = heard.spans
    await answer_all(system, ASKED, ["root"])
    await system.context.recorded_client.tool(
        KEY, "search", "x", lambda: asyncio.sleep(0, ToolReply("y"))
    )
    used = {name for span in heard.all for name in span.attributes or {} if "gen_ai" in name}
    assert len(used) > 12
    assert used <= set(known())
    operations = {attribute(span, "gen_ai.operation.name") for span in heard.all}
    allowed = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}
    assert operations == {"invoke_workflow", "invoke_agent", "chat", "execute_tool"}
    assert operations <= allowed


URL = "http://127.0.0.1:4318"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL},
    ],
)
def test_there_are_no_spans_unless_they_are_asked_for(env: dict[str, str]) -> None:
    assert spans_from_env(env) is NO_SPANS


def test_a_protocol_that_is_not_spoken_is_refused_with_the_remedy() -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(UsageError, match=r"'grpc'.*http/protobuf.*4318"):
        spans_from_env(env)


def test_the_missing_extra_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingError, match=r"opentelemetry.sdk.*pip install.*\[otel\]"):
        spans_from_env({"OTEL_EXPORTER_OTLP_ENDPOINT": URL})
