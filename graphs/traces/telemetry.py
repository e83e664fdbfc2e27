"""Spans of what a run does: the run, the nodes of its tree, H's steps, calls and tools.

They are OpenTelemetry's (`graphs/traces/otel.py`) where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
Otherwise nothing of its SDK is imported, and every span is one shared object that does nothing.

    invoke_workflow amplified            the run: one root question
    ├── invoke_agent H                   a step of H, with the calls that it made for it
    ├── invoke_agent copy                a node: a sub-question, however it is answered
    │   ├── chat base                    a call
    │   └── execute_tool calculator      a tool's work
    └── …

What is replayed from the call log has no span: nothing was done.
"""

import os
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.traces.store import CallKey

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of which one turns spans on: where they are sent, by OTLP over HTTP."""
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"


class Span:
    """The span of those who do not listen; entered and left as all spans are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End it; what was raised within goes on its way."""

    def replied(self, reply: Completion) -> None:
        """What a call came to, without secrets."""

    def said(self, reply: ToolReply) -> None:
        """What a tool came to, without secrets."""

    def ended(self, status: str) -> None:
        """How a question ended; see `reflux.graphs.amplify.state.Status`."""


NO_SPAN = Span()


class Spans:
    """Begins spans; these are none. A span begun within another is its child, whichever task it is
    in: a task inherits the span that it was made in."""

    provider: Any = None
    """OpenTelemetry's provider of tracers, for libraries that have spans of their own."""

    def run(self, question_id: str, asked: Mapping[str, object]) -> Span:
        """One root question; `asked` is as `reflux.graphs.ask.Origin` has it."""
        return NO_SPAN

    def node(self, path: str, who: str, model: str) -> Span:
        """A sub-question; `who` answers it, a copy of X where empty."""
        return NO_SPAN

    def step(self, key: CallKey, overseer: str) -> Span:
        """A step of H."""
        return NO_SPAN

    def call(
        self, key: CallKey, request: ChatRequest, digest: str, *, streamed: bool = False
    ) -> Span:
        """A model call; a streamed one has no children, for its reader may be anywhere."""
        return NO_SPAN

    def tool(self, key: CallKey, name: str, arguments: str) -> Span:
        """A tool's work."""
        return NO_SPAN

    def flush(self) -> None:
        """Send what has ended, where that was not done yet; may take seconds."""


NO_SPANS = Spans()


def spans_of(env: Mapping[str, str]) -> Spans:
    """The spans that an environment asks for.

    Raises:
        MissingError: it asks for some, and OpenTelemetry's SDK is not installed.
        UsageError: it asks for them over another protocol than HTTP.
    """
    endpoint = next((name for name in ENDPOINTS if env.get(name, "").strip()), None)
    if endpoint is None or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return NO_SPANS
    if env.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return NO_SPANS
    protocol = next((env[name].strip() for name in PROTOCOLS if env.get(name, "").strip()), SPOKEN)
    if protocol != SPOKEN:
        raise UsageError(
            f"spans are sent by {SPOKEN} and not by {protocol!r}: set {PROTOCOLS[0]}={SPOKEN}, and "
            f"{endpoint} to the collector's HTTP port (4318 as a rule)"
        )
    try:
        from reflux.graphs.traces.otel import otel_spans
    except ImportError as error:
        raise MissingError(
            f"{endpoint} asks for spans, and {error.name or error} is not installed: "
            "pip install 'reflux-ida[otel]', or unset the variable"
        ) from error
    return otel_spans(env)


@cache
def own_spans() -> Spans:
    """Those of this process; its environment is read once.

    Raises:
        MissingError, UsageError: see `spans_of`.
    """
    return spans_of(os.environ)
