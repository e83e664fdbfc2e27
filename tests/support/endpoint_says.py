"""How behaviors of endpoints are written down, and how a server says what it says."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.endpoint_server import Asked, Reply, Respond

THOUGHT = "The user wants the capital of Peru. Bogota? No."
ANSWER = "Lima"
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}


@dataclass(frozen=True)
class Behavior:
    """What a server does, and what the product must give."""

    name: str
    does: str
    respond: Respond
    text: str = ANSWER
    """The answer."""
    reasoning: str = ""
    finish: str = "stop"
    notes: str = ""
    """What the notes on the record hold."""
    error: str = ""
    """A regular expression that the one message matches; empty where an answer comes."""
    requests: int | None = None
    """How often the server is asked for one answer, all retries included, where that matters."""
    tools: bool = False
    """The client grants a tool."""
    schema: bool = False
    """The client asks for JSON under a schema."""
    streams: bool = True
    """The client may ask for the same as a stream."""
    whole: bool = True
    """A whole reply shows the behavior, too; otherwise it is an ordinary answer."""
    sent: Callable[[dict[str, Any]], bool] | None = None
    """What holds for the last body that the server got."""
    path: str = ""
    """Of the base URL, instead of /v1."""

    @property
    def truncated(self) -> bool:
        return self.finish == "length"


def sse(*events: Any, done: bool = True, end: str = "\n\n", **reply: Any) -> Reply:
    """Events of a stream, each a write of its own."""
    texts = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    texts += ["data: [DONE]"] if done else []
    body = [f"{text}{end}".encode() for text in texts]
    return Reply(body, headers={"content-type": "text/event-stream"}, **reply)


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], **more}


def whole(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return {"object": "chat.completion", "choices": [choice], "usage": usage, **more}


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def says(content: Any = ANSWER, finish: str = "stop", **fields: Any) -> Respond:
    """Answer with a message, whole or in pieces as the request asks."""

    def respond(asked: Asked) -> Reply:
        if not asked.streams:
            return Reply(whole({"content": content, **fields}, finish))
        chunks = [chunk({"role": "assistant", "content": ""})]
        for name, value in fields.items():
            texts = pieces(value) if isinstance(value, str) else [value]
            chunks += [chunk({name: text}) for text in texts]
        texts = pieces(content) if isinstance(content, str) else [content]
        chunks += [chunk({"content": text}) for text in texts]
        return sse(*chunks, chunk({}, finish))

    return respond


def fails(status: int, body: Any, times: int = 10**6, **headers: str) -> Respond:
    """Refuse every request, or the first ones."""
    kind = "application/json" if isinstance(body, dict | list) else "text/plain"
    fields = {"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}

    def respond(asked: Asked) -> Reply:
        if asked.number < times:
            return Reply(body, status, headers=fields)
        return says()(asked)

    return respond


def refuses(
    has: Callable[[dict[str, Any]], bool], status: int, body: Any, then: Respond | None = None
) -> Respond:
    """Refuse every request that has something."""

    def respond(asked: Asked) -> Reply:
        if has(asked.body):
            return fails(status, body)(asked)
        return (then or says())(asked)

    return respond


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, **more}}


def has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: any(name in body for name in names)


def lacks(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: not any(name in body for name in names)


def has_system(body: dict[str, Any]) -> bool:
    return any(turn["role"] == "system" for turn in body["messages"])


def alternates(body: dict[str, Any]) -> bool:
    roles = [turn["role"] for turn in body["messages"]]
    return roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
