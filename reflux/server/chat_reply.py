"""Answers in the form of the OpenAI protocol: whole, and as the events of a stream.

While a tree grows, its events are sent as `reasoning_content`, a field that common clients show as
the model's reasoning. The accepted answer is `content`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sse_starlette import ServerSentEvent

from reflux.agents.types import Completion, Delta, TokenLogprob
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.traces.events import Event
from reflux.server.chat_request import ChatRequest
from reflux.server.errors import ApiError


@dataclass(frozen=True)
class Reply:
    """A whole answer: its choices, and the tokens of all model calls for it."""

    choices: Sequence[Completion]
    usage: Mapping[str, int]
    streamed: bool = False
    """Whether the text was already sent in parts."""


AnswerPart = str | tuple[int, Delta] | Reply
"""Reasoning text, a delta of the choice at an index, or, last, the whole reply."""
Put = Callable[[AnswerPart], None]
Emit = Callable[[Event], None]
StreamEvent = str | ServerSentEvent


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Tokens in the protocol's form."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


class ReplyFormat(Protocol):
    """How one request is answered: whole, or as the events of a stream."""

    def whole(self, reply: Reply) -> bytes:
        """The body of a response."""
        ...

    def first_events(self) -> list[StreamEvent]:
        """What begins a stream."""
        ...

    def events(self, part: AnswerPart) -> list[StreamEvent]:
        """What a part of the answer adds to a stream; the whole reply ends it."""
        ...

    def failure(self, error: ApiError) -> list[StreamEvent]:
        """What ends a stream whose answer failed."""
        ...


class ChatFormat:
    """The form of chat completions."""

    def __init__(self, request: ChatRequest, trajectory: str) -> None:
        self._request = request
        self._head = {
            "id": f"chatcmpl-{trajectory}",
            "created": int(time.time()),
            "model": request.model,
        }
        self._with_usage = request.stream_options.include_usage

    def whole(self, reply: Reply) -> bytes:
        choices = [self._choice(index, choice) for index, choice in enumerate(reply.choices)]
        body = {"object": "chat.completion", "choices": choices, "usage": reply.usage}
        return to_json(self._head | body).encode()

    def first_events(self) -> list[StreamEvent]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta) for index in range(self._request.n)]

    def events(self, part: AnswerPart) -> list[StreamEvent]:
        if isinstance(part, str):
            return [self._chunk(0, {"reasoning_content": part})]
        if isinstance(part, Reply):
            return self._last_events(part)
        index, delta = part
        thought = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
        said = {"content": delta.text} if delta.text or not thought else {}
        return [self._chunk(index, thought | said, logprobs=delta.logprobs)]

    def failure(self, error: ApiError) -> list[StreamEvent]:
        return [to_json(error.body())]

    def _last_events(self, reply: Reply) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        for index, choice in enumerate(reply.choices):
            if not reply.streamed and choice.text:
                events.append(self._chunk(index, {"content": choice.text}))
            if choice.tool_calls:
                calls = enumerate(call.to_json() for call in choice.tool_calls)
                numbered = [{"index": number, **call} for number, call in calls]
                events.append(self._chunk(index, {"tool_calls": numbered}))
            events.append(self._chunk(index, {}, finish_reason(choice)))
        if self._with_usage:
            events.append(self._event({"choices": [], "usage": reply.usage}))
        return [*events, "[DONE]"]

    def _choice(self, index: int, choice: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.tool_calls:
            calls = [call.to_json() for call in choice.tool_calls]
            message |= {"content": choice.text or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": finish_reason(choice),
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": reason,
            "logprobs": self._logprobs(logprobs),
        }
        body: dict[str, Any] = {"choices": [choice]}
        return self._event(body | {"usage": None} if self._with_usage else body)

    def _event(self, body: dict[str, Any]) -> str:
        return to_json(self._head | {"object": "chat.completion.chunk"} | body)

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        if not (logprobs and self._request.logprobs):
            return None
        return {"content": logprobs_to_json(logprobs, self._request.top_logprobs), "refusal": None}


def to_json(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


def reasoning_line(event: Event) -> str:
    """An event of a tree as a line of reasoning; empty for events that need no line."""
    path = event["path"]
    indent = "  " * (path.count("/") - 1)
    match event["event"]:
        case "asked":
            model = f" [{event['to']}]" if event["to"] else ""
            return f"{indent}→{model} {_one_line(event['question'])}\n"
        case "tool":
            return f"{indent}{event['tool']}({_one_line(event['arguments'])})\n"
        case "retry":
            reason = f": {_one_line(event['error'])}" if event["error"] else ""
            return f"{indent}the check {event['rule']} failed{reason}; retrying\n"
        case "step" if path and event["step"]["kind"] == "answer":
            return f"{indent}← {_one_line(event['step']['text'])}\n"
        case "answered" if path:
            question = _one_line(event.get("question", ""))
            answer = event["answer"] if is_accepted(event["status"]) else None
            failure = f"({event['error'] or event['status']})"
            result = failure if answer is None else _one_line(answer)
            return f"{indent}← {question}{': ' if question else ''}{result}\n"
        case _:
            return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def logprobs_to_json(logprobs: Sequence[TokenLogprob], limit: int | None) -> list[dict[str, Any]]:
    """Tokens in the protocol's form, each with `limit` alternatives at most."""
    return [
        _token(each.token, each.logprob)
        | {"top_logprobs": [_token(token, value) for token, value in each.top[: limit or 0]]}
        for each in logprobs
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


def finish_reason(choice: Completion) -> str:
    """The model's own; `tool_calls` if and only if there are some."""
    if choice.tool_calls:
        return "tool_calls"
    return "stop" if choice.finish_reason == "tool_calls" else choice.finish_reason
