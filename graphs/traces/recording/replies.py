"""Bodies of replies in three protocols, whole or streamed, as completions.

A reply that broke off is read as far as it came. What no protocol knows is left out, never refused:
the client has it already.
"""

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from reflux.agents.clients.chat_replies import PartialReply
from reflux.agents.clients.refusals import ReplyError
from reflux.agents.types import Completion
from reflux.graphs.traces.protocols.json_values import as_text, items_of, mapping, mappings
from reflux.graphs.traces.protocols.messages import ITEMS, chat_messages
from reflux.graphs.traces.protocols.replies import reply_of
from reflux.graphs.traces.recording.requests import Protocol


@dataclass(frozen=True)
class ReplyBody:
    """A reply, or what came of it."""

    choices: tuple[Completion, ...] = ()
    id: str = ""
    """Of a response, by which later requests may go on."""
    error: str = ""
    """What the server says went wrong."""
    ended: bool = False
    """Whether the protocol says that the reply is whole."""
    raw_texts: tuple[str, ...] = ()
    """The text of each choice with its thoughts in it, as a client may send it back."""


def read_reply(protocol: Protocol, body: bytes, streamed: bool, status: int = 200) -> ReplyBody:
    """A reply's body; `streamed` is whether it is a stream of events."""
    if streamed:
        return STREAMS[protocol](list(events(body)))
    try:
        whole = json.loads(body)
    except ValueError:
        return ReplyBody(error=error_text(body.decode(errors="replace"), status))
    if not isinstance(whole, dict) or status >= 400 or whole.get("error"):
        return ReplyBody(error=error_text(whole, status))
    return WHOLE[protocol](cast(dict[str, Any], whole))


def error_text(body: Any, status: int = 0) -> str:
    """What an error body says, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else None
    text = str(message) if message else error if isinstance(error, str) else json.dumps(error)
    return " ".join(f"{status or ''} {text}".split())[:2_000]


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events; a broken last one is left out."""
    body = body.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data: list[bytes] = []
    name = b""
    for line in (*body.split(b"\n"), b""):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
        elif not line.strip():
            text = b"\n".join(data)
            try:
                event = json.loads(text)
            except ValueError:
                event = {"type": "done"} if data == [b"[DONE]"] else None
            if name == b"error" and data and not (isinstance(event, dict) and "error" in event):
                event = {"type": "error", "error": event or text.decode(errors="replace")}
            if isinstance(event, dict):
                yield cast(dict[str, Any], event)
            data, name = [], b""


def _chat_choices(bodies: list[dict[str, Any]], ended: bool) -> ReplyBody:
    """The choices of chat completions, whole or as chunks."""
    partial: dict[int, PartialReply] = {}
    usage: Any = None
    error, id = "", ""
    for body in bodies:
        usage, id = body.get("usage") or usage, str(body.get("id") or id)
        error = error_text(body) if body.get("error") else error
        for position, choice in enumerate(items_of(body.get("choices"))):
            index = mapping(choice).get("index")
            index = index if isinstance(index, int) else position
            reply = partial.setdefault(index, PartialReply())
            try:
                reply.add_json({"choices": [choice]})
            except (ReplyError, ValueError) as failure:
                error = error or f"the reply is no chat completion: {failure}"[:500]
    raw = tuple("".join(partial[index].raw) for index in sorted(partial))
    ends = all(reply.finish_reason for reply in partial.values())
    completions: list[Completion] = []
    for number, index in enumerate(sorted(partial)):
        reply = partial[index]
        reply.rest()
        reply.usage = usage if number == 0 else None  # All choices are counted once.
        completions.append(reply.completion())
    return ReplyBody(tuple(completions), id, error, bool(partial) and (ended or ends), raw)


def _chat(body: dict[str, Any]) -> ReplyBody:
    return _chat_choices([body], True)


def _chat_stream(chunks: list[dict[str, Any]]) -> ReplyBody:
    return _chat_choices(chunks, any(chunk.get("type") == "done" for chunk in chunks))


def _response(body: Mapping[str, Any]) -> ReplyBody:
    """A response of the Responses API."""
    items = mappings(body.get("output"))
    read = [each for each in items if each.get("type") in ("message", *ITEMS)]
    notes = [
        f"the server ran {each.get('type')}: {as_text(each)[:2_000]}"
        for each in items if each not in read
    ]  # fmt: skip
    status = str(body.get("status") or "completed")
    reason = mapping(body.get("incomplete_details")).get("reason") or status
    finish = "" if status == "completed" else str(reason)
    turn = next(iter(chat_messages(read, strict=False, items=True)), {})
    completion = replace(reply_of(turn, body.get("usage"), finish), notes=tuple(notes))
    error = error_text(body.get("error")) if body.get("error") else ""
    ended = status in ("completed", "incomplete")
    return ReplyBody((completion,), str(body.get("id") or ""), error, ended, (completion.text,))


def _response_stream(given: list[dict[str, Any]]) -> ReplyBody:
    """The events of a response: its last one holds the whole, else the parts that came."""
    id, error, items = "", "", dict[int, dict[str, Any]]()
    for event in given:
        kind, response = str(event.get("type")), mapping(event.get("response"))
        id = str(response.get("id") or id)
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            return _response(response)
        if kind == "error":
            error = error_text(event)
        index = event.get("output_index")
        if not isinstance(index, int):
            continue
        if kind in ("response.output_item.added", "response.output_item.done"):
            items[index] = dict(mapping(event.get("item")))
        item, delta = items.setdefault(index, {}), str(event.get("delta", ""))
        if kind == "response.output_text.delta":
            item |= {"type": "message", "role": "assistant"}
            parts = mappings(item.get("content")) or [{}]
            item["content"] = [{"text": str(parts[0].get("text") or "") + delta}]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] = item.get("arguments", "") + delta
    output = [items[index] for index in sorted(items)]
    whole = _response({"output": output, "status": "cancelled"})
    return replace(whole, id=id, error=error, ended=False)


def _anthropic(body: Mapping[str, Any]) -> ReplyBody:
    """A message of Anthropic."""
    said = {"role": "assistant", "content": items_of(body.get("content"))}
    message = chat_messages([said], strict=False)[-1]
    completion = reply_of(message, body.get("usage"), str(body.get("stop_reason") or "stop"))
    ended = body.get("stop_reason") is not None
    return ReplyBody((completion,), str(body.get("id") or ""), "", ended, (completion.text,))


PIECES = {"text": "text", "thinking": "thinking", "input": "partial_json"}
"""Fields of a block, by what of a delta goes on with them; an `input` so is text, maybe half."""


def _anthropic_stream(given: list[dict[str, Any]]) -> ReplyBody:
    """The events of a message, of which each block comes in deltas."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    error, ended = "", False
    for event in given:
        kind, delta = event.get("type"), mapping(event.get("delta"))
        index = event.get("index", 0)
        if kind == "message_start":
            message |= mapping(event.get("message"))
        elif kind == "content_block_start":
            blocks[index] = dict(mapping(event.get("content_block")))
        elif kind == "content_block_delta":
            block = blocks.setdefault(index, {"type": "text"})
            for name, part in PIECES.items():
                if said := delta.get(part):
                    block[name] = (block.get(name) or "") + str(said)
        elif kind == "message_delta":
            message |= {name: value for name, value in delta.items() if value is not None}
            message["usage"] = {**message.get("usage", {}), **mapping(event.get("usage"))}
        elif kind == "error":
            error = error_text(event)
        ended = ended or kind == "message_stop"
    content = [blocks[index] for index in sorted(blocks)]
    return replace(_anthropic(message | {"content": content}), error=error, ended=ended)


WHOLE: dict[Protocol, Callable[[dict[str, Any]], ReplyBody]] = {
    "chat": _chat,
    "responses": _response,
    "messages": _anthropic,
}
STREAMS: dict[Protocol, Callable[[list[dict[str, Any]]], ReplyBody]] = {
    "chat": _chat_stream,
    "responses": _response_stream,
    "messages": _anthropic_stream,
}
