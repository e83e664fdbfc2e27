"""OpenTelemetry spans of a run: the root question, nodes, overseer steps, calls and tools.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns them on. They follow the semantic conventions for generative AI
(1.42, experimental); what the conventions have no name for is under `reflux.`.

    invoke_workflow amplified            the run: one root question
    ├── invoke_agent OVERSEER            a step of the overseer, with the calls that it made
    ├── invoke_agent copy                a node: a sub-question, however it is answered
    │   ├── chat base                    a model call
    │   └── execute_tool calculator      a tool call
    └── …

A call that is replayed from the call log has no span. Messages, tool arguments and tool results
are left out unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for them; the text of
an error always is. While spans are off, each is the shared `NO_SPAN`: the API's own no-op context
manager takes 3 µs, and three of them are 3% of a recorded call.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from contextvars import Token
from functools import cache
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from langgraph.errors import GraphBubbleUp
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from reflux.agents.errors import EndpointError, MissingError, UsageError, pip_install
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.traces.store import CallKey

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SUPPORTED_PROTOCOL = "http/protobuf"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CAPTURING = ("true", "span_only", "span_and_event")
FLUSH_MILLIS = 3_000
Attributes = dict[str, Any]
_RUN = context.create_key("reflux.run")
"""Context key of the attributes that every span below a run repeats."""
_LABEL = re.compile(r"-[0-9a-f]{12}$")
"""Suffix that makes a repeated question a new one; see `reflux.graphs.ask.Origin.new`."""
_ENGINE = re.compile(r"(bf16:)?[0-9a-f]{16}")
"""Beginning of an in-process engine's digest; see `ChatClient.model_digest`."""


class Span:
    """One span. Spans that begin in the same task, or in tasks created in it, are its children."""

    def __init__(self, span: trace.Span, inner: Context | None = None, contents: bool = False):
        """`inner` is the context of its children; None where it has none."""
        self._span = span
        self._inner = inner
        self._contents = contents
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        if self._inner is not None:
            self._token = context.attach(self._inner)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End it. Waiting for human input is not an error."""
        if self._token is not None:
            context.detach(self._token)
        if isinstance(error, GraphBubbleUp):
            self._span.set_attribute("reflux.status", "waiting")
        elif isinstance(error, EndpointError) and error.status:
            self._fail(str(error.status))
        elif error is not None:
            cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            self._fail("cancelled" if cancelled else type(error).__name__)
        self._span.end()

    def replied(self, reply: Completion) -> None:
        """Record tokens and finish reason of a redacted reply."""
        if self is NO_SPAN:
            return
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": (reply.finish_reason,),
                "gen_ai.usage.input_tokens": reply.prompt_tokens,
                "gen_ai.usage.output_tokens": reply.completion_tokens,
                "reflux.cached": reply.cached,
                "reflux.retries": len(reply.retries),
            }
        )
        if self._contents:
            self._span.set_attribute("gen_ai.output.messages", _output(reply))

    def tool_replied(self, reply: ToolReply) -> None:
        """Record a redacted tool reply; a refusal is an error."""
        if not reply.ok:
            self._fail("refused")
        if self._contents:
            self._span.set_attribute("gen_ai.tool.call.result", reply.text)

    def ended(self, status: str) -> None:
        """Record how a question ended; see `reflux.graphs.amplify.state.Status`."""
        self._span.set_attribute("reflux.status", status)
        if status == "failed":
            self._fail(status)

    def _fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


NO_SPAN = Span(trace.INVALID_SPAN)


class Spans:
    """Begins the spans of one tracer provider; without a provider they do nothing."""

    def __init__(self, provider: "TracerProvider | None" = None, contents: bool = False) -> None:
        """`contents`: spans hold messages, tool arguments and tool results."""
        self.provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("reflux")
        self._contents = contents

    def run(self, question_id: str, provenance: Mapping[str, object]) -> Span:
        """A root question; the root of a trace, or below the span of the calling program.

        `provenance` has the fields of `reflux.graphs.ask.Origin`.
        """
        system = _LABEL.sub("", str(provenance.get("system") or "amplified"))
        shared: Attributes = {"reflux.system": system, "reflux.trajectory": question_id}
        for name in ("run", "round"):
            if (value := provenance.get(name)) is not None:
                shared[f"reflux.{name}"] = value
        attributes = {"gen_ai.workflow.name": system, **shared}
        return self._begin("invoke_workflow", system, attributes, context.set_value(_RUN, shared))

    def node(self, path: str, agent: str, model: str) -> Span:
        """A sub-question; `agent` answers it, a copy of the agent where empty."""
        return self._agent(agent or "copy", path, {"gen_ai.request.model": model})

    def step(self, key: CallKey, overseer: str) -> Span:
        """A step of the overseer."""
        return self._agent(overseer, key.path, {"reflux.role": "overseer", "reflux.step": key.step})

    def _agent(self, name: str, path: str, attributes: Attributes) -> Span:
        attributes |= {"gen_ai.agent.name": name, **_location(path)}
        return self._begin("invoke_agent", name, attributes)

    def call(
        self, key: CallKey, request: ChatRequest, digest: str, *, streamed: bool = False
    ) -> Span:
        """A model call; a streamed one has no children, because its reader may be in any task."""
        if self.provider is None:
            return NO_SPAN
        sampling = request.sampling
        attributes: Attributes = {
            "gen_ai.request.model": request.model,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.stream": streamed,
            "reflux.model_digest": digest,
            "reflux.role": key.role,
            "reflux.step": key.step,
            "reflux.vote": key.vote,
            **_location(key.path),
            **_provider(request.model, digest),
        }
        if sampling.stop:
            attributes["gen_ai.request.stop_sequences"] = sampling.stop
        if self._contents:
            attributes |= _input(request)
        return self._begin("chat", request.model, attributes, has_children=not streamed)

    def tool(self, key: CallKey, name: str, arguments: str) -> Span:
        """A tool call."""
        attributes: Attributes = {
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "reflux.role": key.role,
            **_location(key.path),
        }
        if self._contents:
            attributes["gen_ai.tool.call.arguments"] = arguments
        return self._begin("execute_tool", name, attributes)

    def flush(self) -> None:
        """Send the spans that have ended; waits for an unreachable collector 3 s at most."""
        if self.provider is not None:
            self.provider.force_flush(FLUSH_MILLIS)

    def _begin(
        self,
        operation: str,
        target: str,
        attributes: Attributes,
        inner: Context | None = None,
        has_children: bool = True,
    ) -> Span:
        """A span whose children see `inner`, by default the current context."""
        if self.provider is None:
            return NO_SPAN
        run: Any = context.get_value(_RUN) or {}
        span = self._tracer.start_span(
            f"{operation} {target}",
            kind=SpanKind.CLIENT if operation == "chat" else SpanKind.INTERNAL,
            attributes={**run, "gen_ai.operation.name": operation, **attributes},
        )
        below = trace.set_span_in_context(span, inner) if has_children else None
        return Span(span, below, self._contents)


NO_SPANS = Spans()


def spans_from_env(env: Mapping[str, str]) -> Spans:
    """The spans that an environment asks for; `NO_SPANS` where it asks for none.

    A program that has set up OpenTelemetry itself gets them through its own provider.

    Raises:
        MissingError: OpenTelemetry's SDK is not installed.
        UsageError: the protocol is not HTTP.
    """
    set_to = {name: value.strip() for name, value in env.items() if value.strip()}
    endpoint = next((name for name in ENDPOINTS if name in set_to), None)
    disabled = set_to.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or disabled or set_to.get("OTEL_TRACES_EXPORTER", "").lower() == "none":
        return NO_SPANS
    protocol = next((set_to[name] for name in PROTOCOLS if name in set_to), SUPPORTED_PROTOCOL)
    if protocol != SUPPORTED_PROTOCOL:
        raise UsageError(
            f"spans cannot be sent by {protocol!r}: set {PROTOCOLS[0]}={SUPPORTED_PROTOCOL}, and "
            f"{endpoint} to the collector's HTTP port (usually 4318)"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingError(
            f"{endpoint} asks for spans, and {error.name or error} is not installed: "
            f"{pip_install('otel')}, or unset the variable"
        ) from error
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        resources = env.get("OTEL_RESOURCE_ATTRIBUTES", "")
        named = "OTEL_SERVICE_NAME" in env or "service.name=" in resources
        resource = Resource.create({} if named else {"service.name": "reflux"})
        provider = TracerProvider(resource=resource)  # It sends what is left when Python ends.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider, capture_from_env(env))


def capture_from_env(env: Mapping[str, str]) -> bool:
    """True where spans are to hold messages and tool results."""
    return env.get(CAPTURE, "").strip().lower() in CAPTURING


@cache
def process_spans() -> Spans:
    """The spans of this process; its environment is read once.

    Raises:
        MissingError, UsageError: see `spans_from_env`.
    """
    return spans_from_env(os.environ)


def _location(path: str) -> Attributes:
    return {"reflux.path": path, "reflux.depth": path.count("/")}


def _provider(model: str, digest: str) -> Attributes:
    """The provider; a remote endpoint's digest is its URL and the model's name."""
    url = digest.rpartition("#")[0]
    if "://" not in url:
        # A student has the name of its adapter.
        adapter = {"reflux.adapter": model} if _ENGINE.match(digest) and model != "base" else {}
        return {"gen_ai.provider.name": "reflux", **adapter}
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    server = {"server.address": parts.hostname, "server.port": port} if parts.hostname else {}
    return {"gen_ai.provider.name": "openai", **server}  # The protocol.


def _input(request: ChatRequest) -> Attributes:
    messages = request.payload()
    system = [_text(turn["content"]) for turn in messages if turn["role"] == "system"]
    rest = [_message(turn) for turn in messages if turn["role"] != "system"]
    attributes: Attributes = {"gen_ai.input.messages": json.dumps(rest)}
    if any(part["content"] for part in system):
        attributes["gen_ai.system_instructions"] = json.dumps(system)
    return attributes


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        response = {"type": "tool_call_response", "response": turn["content"]}
        return {"role": "tool", "parts": [{**response, "id": turn.get("tool_call_id")}]}
    calls = [
        {"type": "tool_call", "id": call["id"], **call["function"]}
        for call in turn.get("tool_calls", ())
    ]
    text = [_text(turn["content"])] if turn["content"] or not calls else []
    return {"role": turn["role"], "parts": text + calls}


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _output(reply: Completion) -> str:
    calls = [call.to_json() for call in reply.tool_calls]
    turn = {"role": "assistant", "content": reply.text, "tool_calls": calls}
    return json.dumps([{**_message(turn), "finish_reason": reply.finish_reason}])
