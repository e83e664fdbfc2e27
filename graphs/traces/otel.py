"""Spans as OpenTelemetry's semantic conventions for generative AI have them (1.42, experimental).

What the conventions have no name for is under `reflux.`: `run`, `round`, `system`, `trajectory`,
`depth`, `path`, `role`, `step`, `vote`, `adapter`, `model_digest`, `cached`, `retries`, `status`.
No span holds messages, tools' arguments or results, or the text of an error, unless the first three
are asked for by OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT (`true`, `SPAN_ONLY` or
`SPAN_AND_EVENT`).
"""

# pyright: reportMissingTypeStubs=false

import asyncio
import json
import re
from collections.abc import Mapping
from contextvars import Token
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from langgraph.errors import GraphBubbleUp
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from reflux.agents.errors import EndpointError
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.traces.store import CallKey
from reflux.graphs.traces.telemetry import Span, Spans

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
FLUSH_MILLIS = 3_000
CANCELLED = (asyncio.CancelledError, GeneratorExit)
CAPTURING = ("true", "span_only", "span_and_event")
Attributes = dict[str, Any]
_RUN = context.create_key("reflux.run")
"""Under it a context holds what every span below a run says of that run."""
_LABEL = re.compile(r"-[0-9a-f]{12}$")
"""What makes a question that is asked anew another one; see
`reflux.server.chat_reply.question_source`."""
_ENGINE = re.compile(r"(bf16:)?[0-9a-f]{16}")
"""How digests of the engines in this process begin; see `ChatClient.model_digest`."""


def otel_spans(env: Mapping[str, str]) -> Spans:
    """Spans that go where the variables of OpenTelemetry say.

    A program that has set up OpenTelemetry itself gets them through its own provider.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        named = "OTEL_SERVICE_NAME" in env or "service.name=" in env.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": "reflux"})
        provider = TracerProvider(resource=resource)  # It sends what is left when Python ends.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelSpans(provider, capturing(env))


def capturing(env: Mapping[str, str]) -> bool:
    """True where spans are to hold what was said."""
    return env.get(CAPTURE, "").strip().lower() in CAPTURING


class OtelSpan(Span):
    """One span. While it is entered, spans of the same task and of tasks made in it are below."""

    def __init__(self, span: trace.Span, check_range: Context | None, contents: bool) -> None:
        """`check_range` is the context of what is below it; None where nothing is."""
        self._span = span
        self._within = check_range
        self._contents = contents
        self._token: Token[Context] | None = None

    def __enter__(self) -> "OtelSpan":
        if self._within is not None:
            self._token = context.attach(self._within)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End it; that a node waits for a person is no error of its."""
        if self._token is not None:
            context.detach(self._token)
        if kind is not None and issubclass(kind, GraphBubbleUp):
            self._span.set_attribute("reflux.status", "waiting")
        elif kind is not None:
            self._failed(_kind(kind, error))
        self._span.end()

    def replied(self, reply: Completion) -> None:
        """Tokens, and how it ended."""
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
            self._span.set_attribute("gen_ai.output.messages", _said(reply))

    def said(self, reply: ToolReply) -> None:
        """A refusal is an error."""
        if not reply.ok:
            self._failed("refused")
        if self._contents:
            self._span.set_attribute("gen_ai.tool.call.result", reply.text)

    def ended(self, status: str) -> None:
        """Accepted, or why not."""
        self._span.set_attribute("reflux.status", status)
        if status == "failed":
            self._failed(status)

    def _failed(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


class OtelSpans(Spans):
    """Spans that a provider sends on."""

    def __init__(self, provider: TracerProvider, contents: bool = False) -> None:
        """`contents`: whether they hold what was said."""
        self.provider: TracerProvider = provider
        self._tracer = provider.get_tracer("reflux")
        self._contents = contents

    def run(self, question_id: str, asked: Mapping[str, object]) -> Span:
        """The root of a trace, or below the span of the program that asks."""
        system = _LABEL.sub("", str(asked.get("system") or "amplified"))
        told = {"reflux.system": system, "reflux.trajectory": question_id}
        told |= {f"reflux.{it}": asked[it] for it in ("run", "round") if asked.get(it) is not None}
        attributes: Attributes = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": system,
        }
        below = context.set_value(_RUN, told)
        return self._begin(f"invoke_workflow {system}", attributes | told, below)

    def node(self, path: str, who: str, model: str) -> Span:
        """An agent at work; a tool that H asks is no agent, and has its own span below."""
        agent = who or "copy"
        return self._inside(
            f"invoke_agent {agent}",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": agent,
                "gen_ai.request.model": model,
                **_place(path),
            },
        )

    def step(self, key: CallKey, overseer: str) -> Span:
        """H at work."""
        return self._inside(
            f"invoke_agent {overseer}",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": overseer,
                "reflux.role": "overseer",
                "reflux.step": key.step,
                **_place(key.path),
            },
        )

    def call(
        self, key: CallKey, request: ChatRequest, digest: str, *, streamed: bool = False
    ) -> Span:
        """What the request asks for, and of whom."""
        drawn = request.sampling
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": request.model,
            "gen_ai.request.max_tokens": drawn.max_tokens,
            "gen_ai.request.temperature": drawn.temperature,
            "gen_ai.request.seed": drawn.seed,
            "gen_ai.request.stream": streamed,
            "reflux.model_digest": digest,
            "reflux.role": key.role,
            "reflux.step": key.step,
            "reflux.vote": key.vote,
            **_place(key.path),
            **_provider(request.model, digest),
        }
        if drawn.stop:
            attributes["gen_ai.request.stop_sequences"] = drawn.stop
        if self._contents:
            attributes |= _asked(request)
        begin = self._begin if streamed else self._inside
        return begin(f"chat {request.model}", attributes, kind=SpanKind.CLIENT)

    def tool(self, key: CallKey, name: str, arguments: str) -> Span:
        """Which tool; what it was asked only where that is wanted."""
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "reflux.role": key.role,
            **_place(key.path),
        }
        if self._contents:
            attributes["gen_ai.tool.call.arguments"] = arguments
        return self._inside(f"execute_tool {name}", attributes)

    def flush(self) -> None:
        """Send what has ended; a collector that is away is not waited for long."""
        self.provider.force_flush(FLUSH_MILLIS)

    def _inside(
        self, name: str, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL
    ) -> OtelSpan:
        return self._begin(name, attributes, context.get_current(), kind)

    def _begin(
        self,
        name: str,
        attributes: Attributes,
        below: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> OtelSpan:
        run: Any = context.get_value(_RUN) or {}
        span = self._tracer.start_span(name, kind=kind, attributes={**run, **attributes})
        check_range = None if below is None else trace.set_span_in_context(span, below)
        return OtelSpan(span, check_range, self._contents)


def _kind(kind: type[BaseException], error: BaseException | None) -> str:
    """A failure in one of few words: an endpoint's status, `cancelled`, or the exception's name."""
    if isinstance(error, EndpointError) and error.status:
        return str(error.status)
    return "cancelled" if issubclass(kind, CANCELLED) else kind.__name__


def _place(path: str) -> Attributes:
    return {"reflux.path": path, "reflux.depth": path.count("/")}


def _provider(model: str, digest: str) -> Attributes:
    """Who answers, by the digest of the weights: a remote endpoint's is its address and a name."""
    url, hash_sign, _ = digest.rpartition("#")
    if hash_sign and "://" in url:
        told: Attributes = {"gen_ai.provider.name": "openai"}  # The protocol that is spoken.
        parts = urlsplit(url)
        if parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            told |= {"server.address": parts.hostname, "server.port": port}
        return told
    told = {"gen_ai.provider.name": "reflux"}
    if _ENGINE.match(digest) and model != "base":
        told["reflux.adapter"] = model  # A student's name is its adapter's.
    return told


def _asked(request: ChatRequest) -> Attributes:
    turns = request.payload()
    system = [_text(turn["content"]) for turn in turns if turn["role"] == "system"]
    rest = [_message(turn) for turn in turns if turn["role"] != "system"]
    said: Attributes = {"gen_ai.input.messages": json.dumps(rest)}
    if any(part["content"] for part in system):
        said["gen_ai.system_instructions"] = json.dumps(system)
    return said


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        response = {"type": "tool_call_response", "response": turn["content"]}
        return {"role": "tool", "parts": [{**response, "id": turn.get("tool_call_id")}]}
    called = [
        {"type": "tool_call", "id": call["id"], **call["function"]}
        for call in turn.get("tool_calls", ())
    ]
    said = [_text(turn["content"])] if turn["content"] or not called else []
    return {"role": turn["role"], "parts": said + called}


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _said(reply: Completion) -> str:
    parts: list[dict[str, Any]] = [_text(reply.text)] if reply.text else []
    parts += [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in reply.tool_calls
    ]
    message = {"role": "assistant", "parts": parts, "finish_reason": reply.finish_reason}
    return json.dumps([message])
