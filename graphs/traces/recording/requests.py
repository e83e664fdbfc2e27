"""Bodies of requests in three protocols, as messages and tools of the chat protocol.

    /chat/completions   messages as they are; also those of `functions`, the first form of tools
    /responses          `instructions` and items: developers.openai.com/api/reference/responses
    /v1/messages        Anthropic's blocks: docs.anthropic.com/en/api/messages

Nothing is refused: what has no form in the chat protocol stays in its message as a content part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reflux.graphs.traces.protocols.json_values import mapping, mappings
from reflux.graphs.traces.protocols.messages import request_messages
from reflux.graphs.traces.protocols.replies import chat_tools
from reflux.graphs.traces.trajectories import ChatMessage

Protocol = Literal["chat", "responses", "messages"]
KNOWN = ("messages", "input", "instructions", "system", "tools", "model", "functions")
"""Fields of a request that are no sampling."""
ENDINGS: dict[str, Protocol] = {
    "/chat/completions": "chat",
    "/responses": "responses",
    "/messages": "messages",
}


def protocol_of(path: str) -> Protocol | None:
    """The protocol of a request that is posted to a path below `/v1`; None for any other."""
    path = path.rstrip("/")
    if path.endswith("/messages"):  # OpenAI's threads have messages, too.
        return "messages" if path == "/messages" else None
    return next((kind for end, kind in ENDINGS.items() if path.endswith(end)), None)


@dataclass(frozen=True)
class RequestBody:
    """A request in the terms of the chat protocol."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[dict[str, Any], ...]
    model: str
    sampling: Mapping[str, Any]
    """All other fields, as they were sent."""
    previous: str = ""
    """Id of the response whose conversation this one continues, where the server holds it."""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The whole body."""


def read_request(protocol: Protocol, body: Any) -> RequestBody:
    """A request's body, of which every field may be missing or of any form."""
    fields = mapping(body)
    given = mappings(fields.get("messages"))
    return RequestBody(
        tuple(given if protocol == "chat" else request_messages(fields, strict=False)),
        tuple(chat_tools(fields.get("tools") or fields.get("functions"), strict=False)),
        str(fields.get("model") or ""),
        {name: value for name, value in fields.items() if name not in KNOWN},
        str(fields.get("previous_response_id") or ""),
        fields,
    )
