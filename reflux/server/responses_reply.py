"""Answers in the form of the Responses API: items of output, whole or as typed events in order.

    response.created, response.in_progress
    for each item:  response.output_item.added … deltas … response.output_item.done
    response.completed, response.incomplete or response.failed

An item is `reasoning` (its text as a summary, the form that clients show), `message` or
`function_call`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sse_starlette import ServerSentEvent

from reflux.agents.types import Completion, TokenLogprob, ToolCall
from reflux.server.chat_reply import (
    AnswerPart,
    Reply,
    StreamEvent,
    finish_reason,
    logprobs_to_json,
    to_json,
)
from reflux.server.errors import ApiError

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons for an incomplete response, by the finish reason of chat completions."""
PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


def new_item(kind: str, trajectory: str, index: int, call: ToolCall | None = None) -> Any:
    """An item that has only begun; the trajectory in its id finds it again."""
    item: dict[str, Any] = {"id": f"{PREFIXES[kind]}_{trajectory}_{index}", "type": kind}
    match kind:
        case "reasoning":
            return item | {"summary": []}
        case "message":
            return item | {"status": "in_progress", "role": "assistant", "content": []}
        case _:
            call = call or ToolCall("", "", "")
            item |= {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            return item | {"status": "completed"}


def summary_part(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


class ResponseFormat:
    """The form of one response; `echo` holds the fields of the request that it repeats."""

    def __init__(
        self, trajectory: str, echo: Mapping[str, Any], top_logprobs: int | None = None
    ) -> None:
        """`top_logprobs`: None for no log-probabilities."""
        self._trajectory = trajectory
        self._echo = echo
        self._top_logprobs = top_logprobs
        self._created = int(time.time())
        self._completed: int | None = None
        """Seconds since 1970, the same in what is kept and in what is sent."""
        self._output: list[dict[str, Any]] = []
        """The items of a stream that are done."""
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        """Of the item that has begun."""
        self._kind = ""
        """Of the item that has begun; empty between items."""
        self._number = 0

    def whole(self, reply: Reply) -> bytes:
        return to_json(self.response(reply)).encode()

    def response(self, reply: Reply) -> dict[str, Any]:
        """The response as it is sent, and kept."""
        choice = reply.choices[0]
        return self._response(choice, self._items(choice), reply.usage)

    def first_events(self) -> list[StreamEvent]:
        body = self._body("in_progress", [])
        names = ("response.created", "response.in_progress")
        return [self._event(name, response=body) for name in names]

    def events(self, part: AnswerPart) -> list[StreamEvent]:
        if isinstance(part, Reply):
            return self._last_events(part)
        if isinstance(part, str):
            return self._add("reasoning", part)
        _, delta = part
        thought = self._add("reasoning", delta.reasoning) if delta.reasoning else []
        if not (delta.text or delta.logprobs):
            return thought
        return thought + self._add("message", delta.text, delta.logprobs)

    def failure(self, error: ApiError) -> list[StreamEvent]:
        detail = {"code": "server_error", "message": error.detail.message}
        body = self._body("failed", self._output) | {"error": detail}
        return [self._event("response.failed", response=body)]

    def _last_events(self, reply: Reply) -> list[StreamEvent]:
        choice, events = reply.choices[0], list[StreamEvent]()
        begun = {item["type"] for item in self._output} | {self._kind}
        if choice.reasoning and not begun & {"reasoning", "message"}:
            events += self._add("reasoning", choice.reasoning)
        if "message" not in begun and _has_message(choice):
            events += self._add("message", choice.text, choice.logprobs)
        events += self._close(_item_status(choice))
        for call in choice.tool_calls:
            events += self._call_events(call)
        body = self._response(choice, self._output, reply.usage)
        return [*events, self._event(f"response.{body['status']}", response=body)]

    def _add(
        self, kind: str, text: str, logprobs: Sequence[TokenLogprob] = ()
    ) -> list[StreamEvent]:
        """Add text to the item of a kind, which begins if another, or none, has begun."""
        events: list[StreamEvent] = []
        if self._kind != kind:
            events += [*self._close("completed"), *self._begin(kind)]
        self._texts.append(text)
        self._logprobs += logprobs
        if kind == "reasoning":
            name = "response.reasoning_summary_text.delta"
            return [*events, self._in_item(name, summary_index=0, delta=text)]
        told = self._logprobs_of(logprobs)
        name = "response.output_text.delta"
        return [*events, self._in_item(name, content_index=0, delta=text, logprobs=told)]

    def _begin(self, kind: str) -> list[StreamEvent]:
        self._kind, self._texts, self._logprobs = kind, [], []
        added = self._item_event("added", self._new(kind))
        if kind == "reasoning":
            name, part = "response.reasoning_summary_part.added", summary_part("")
            return [added, self._in_item(name, summary_index=0, part=part)]
        part = self._text_part("", ())
        return [added, self._in_item("response.content_part.added", content_index=0, part=part)]

    def _close(self, status: str) -> list[StreamEvent]:
        """End the item that has begun, if there is one."""
        if not self._kind:
            return []
        text, logprobs = "".join(self._texts), tuple(self._logprobs)
        if self._kind == "reasoning":
            index = {"summary_index": 0}
            item = self._new("reasoning") | {"summary": [summary_part(text)]}
            names = ("reasoning_summary_text.done", "reasoning_summary_part.done")
            ends = ({"text": text}, {"part": summary_part(text)})
        else:
            index, part = {"content_index": 0}, self._text_part(text, logprobs)
            item = self._new("message") | {"status": status, "content": [part]}
            names = ("output_text.done", "content_part.done")
            ends = ({"text": text, "logprobs": self._logprobs_of(logprobs)}, {"part": part})
        events: list[StreamEvent] = [
            self._in_item(f"response.{name}", **index, **end)
            for name, end in zip(names, ends, strict=True)
        ]
        events.append(self._item_event("done", item))
        self._output.append(item)
        self._kind = ""
        return events

    def _call_events(self, call: ToolCall) -> list[StreamEvent]:
        self._kind = "function_call"
        item = self._new(self._kind, call)
        begun = item | {"arguments": "", "status": "in_progress"}
        name = "response.function_call_arguments"
        events: list[StreamEvent] = [
            self._item_event("added", begun),
            self._in_item(f"{name}.delta", delta=call.arguments),
            self._in_item(f"{name}.done", arguments=call.arguments, name=call.name),
            self._item_event("done", item),
        ]
        self._output.append(item)
        self._kind = ""
        return events

    def _new(self, kind: str, call: ToolCall | None = None) -> dict[str, Any]:
        return new_item(kind, self._trajectory, len(self._output), call)

    def _items(self, choice: Completion) -> list[dict[str, Any]]:
        """The items of a whole reply."""
        items: list[dict[str, Any]] = []
        if choice.reasoning:
            item = new_item("reasoning", self._trajectory, 0)
            items.append(item | {"summary": [summary_part(choice.reasoning)]})
        if _has_message(choice):
            item = new_item("message", self._trajectory, len(items))
            part = self._text_part(choice.text, choice.logprobs)
            items.append(item | {"status": _item_status(choice), "content": [part]})
        for call in choice.tool_calls:
            items.append(new_item("function_call", self._trajectory, len(items), call))
        return items

    def _response(
        self, choice: Completion, output: list[dict[str, Any]], usage: Mapping[str, int]
    ) -> dict[str, Any]:
        reason = INCOMPLETE.get(finish_reason(choice))
        body = self._body("incomplete" if reason else "completed", output)
        details = {"reason": reason} if reason else None
        self._completed = self._completed or int(time.time())
        return body | {
            "completed_at": None if reason else self._completed,
            "incomplete_details": details,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self._trajectory}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(output),
            "usage": None,
            **self._echo,
        }

    def _text_part(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        told = self._logprobs_of(logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}

    def _logprobs_of(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        limit = self._top_logprobs
        return [] if limit is None else logprobs_to_json(logprobs, limit)

    def _item_event(self, what: str, item: Mapping[str, Any]) -> StreamEvent:
        index = len(self._output)
        return self._event(f"response.output_item.{what}", output_index=index, item=item)

    def _in_item(self, name: str, /, **fields: Any) -> StreamEvent:
        """An event of the item that has begun."""
        place = {"item_id": self._new(self._kind)["id"], "output_index": len(self._output)}
        return self._event(name, **place, **fields)

    def _event(self, name: str, /, **fields: Any) -> StreamEvent:
        body = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return ServerSentEvent(to_json(body), event=name, sep="\n")


def _has_message(choice: Completion) -> bool:
    """Agents take a response without any item as a reason to ask again."""
    return bool(choice.text) or (finish_reason(choice) not in INCOMPLETE and not choice.tool_calls)


def _item_status(choice: Completion) -> str:
    return "incomplete" if finish_reason(choice) in INCOMPLETE else "completed"
