"""Bodies of requests in three protocols, as messages and tools of the chat protocol.

    /chat/completions   messages as they are; also those of `functions`, the first form of tools
    /responses          `instructions` and items: developers.openai.com/api/reference/responses
    /v1/messages        Anthropic's blocks: docs.anthropic.com/en/api/messages

Nothing is refused: what has no form in the chat protocol stays in its message as a content part.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from reflux.graphs.traces.trajectories import ChatMessage, text_of

Protocol = Literal["chat", "responses", "messages"]
ENDINGS: dict[str, Protocol] = {
    "/chat/completions": "chat",
    "/responses": "responses",
    "/messages": "messages",
}
REASONING = "reasoning_content"
"""The field of an assistant's message that holds its thoughts, as DeepSeek and vLLM name it."""


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
    return RequestBody(
        tuple(MESSAGES[protocol](fields)),
        tuple(tool_of(tool) for tool in mappings(fields.get("tools"))),
        str(fields.get("model") or ""),
        {name: value for name, value in fields.items() if name not in KNOWN},
        str(fields.get("previous_response_id") or ""),
        fields,
    )


KNOWN = ("messages", "input", "instructions", "system", "tools", "model", "functions")


def tool_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the form of the chat protocol; one that a server runs itself stays as it is."""
    if "function" in tool or "name" not in tool:
        return dict(tool)
    kind = tool.get("type") or ("custom" if "input_schema" in tool else "function")
    schema = tool.get("input_schema", tool.get("parameters"))
    if schema is None and kind not in ("function", "custom"):
        return dict(tool)
    function = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": schema,
        "strict": tool.get("strict"),
    }
    function = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": function}


def chat_messages(fields: Mapping[str, Any]) -> list[ChatMessage]:
    """Those of a chat completion request."""
    return [dict(message) for message in mappings(fields.get("messages"))]


def responses_messages(fields: Mapping[str, Any]) -> list[ChatMessage]:
    """Those of a Responses request: tool calls that follow one another are one message."""
    messages: list[ChatMessage] = []
    if instructions := fields.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    items: list[Any] = [given] if isinstance(given, str) else items_of(given)
    for item in items:
        if isinstance(item, str):
            messages.append({"role": "user", "content": item})
        elif isinstance(item, Mapping):
            _add_item(messages, cast(Mapping[str, Any], item))
    return messages


def _add_item(messages: list[ChatMessage], item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message" and "role" in item:
        message = {"role": item["role"], "content": _parts(item.get("content"))}
        if item["role"] == "assistant" and isinstance(message["content"], str):
            _assistant(messages)["content"] += message["content"]
        else:
            messages.append(message)
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments", item.get("input", ""))
        function = {"name": item.get("name", ""), "arguments": arguments}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        _assistant(messages).setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output", "")
        content = output if isinstance(output, str) else _parts(output)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind == "reasoning":
        thoughts = "\n".join(filter(None, (text_of(item.get(n)) for n in ("summary", "content"))))
        if thoughts:
            _assistant(messages)[REASONING] = thoughts
    else:
        messages.append({"role": "assistant", "content": [dict(item)]})


def _assistant(messages: list[ChatMessage]) -> ChatMessage:
    """The assistant's message that goes on: thoughts, then a text or tool calls."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or isinstance(last.get("content"), list):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _parts(content: Any) -> Any:
    """Content of the Responses API as that of the chat protocol; a single text without parts."""
    if not isinstance(content, list):
        return content or ""
    parts: list[Any] = []
    for part in mappings(content):
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text", "refusal", "summary_text"):
            parts.append({"type": "text", "text": part.get("text", part.get("refusal", ""))})
        elif kind == "input_image" and part.get("image_url"):
            image = {"url": part["image_url"]}
            image |= {"detail": part["detail"]} if part.get("detail") else {}
            parts.append({"type": "image_url", "image_url": image})
        else:
            parts.append(dict(part))
    return joined(parts)


def joined(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Parts of a message as one text, where they are nothing but text."""
    if all(set(part) == {"type", "text"} for part in parts):
        return "".join(str(part["text"]) for part in parts)
    return list(parts)


def anthropic_messages(fields: Mapping[str, Any]) -> list[ChatMessage]:
    """Those of a request to Anthropic: each result of a tool is a message of its own."""
    messages: list[ChatMessage] = []
    if system := fields.get("system"):
        texts = [text_of([part]) for part in mappings(system)]
        content = system if isinstance(system, str) else "\n\n".join(texts)
        messages.append({"role": "system", "content": content})
    for turn in mappings(fields.get("messages")):
        content, role = turn.get("content"), turn.get("role", "user")
        if not isinstance(content, list):
            messages.append({"role": role, "content": content or ""})
            continue
        message, results = from_blocks(role, mappings(content))
        messages += results
        if message["content"] or set(message) > {"role", "content"} or not results:
            messages.append(message)
    return messages


def from_blocks(
    role: str, blocks: Sequence[Mapping[str, Any]]
) -> tuple[ChatMessage, list[ChatMessage]]:
    """Anthropic's content blocks: (the message of the role, the results of tools among them)."""
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[ChatMessage] = []
    thoughts: list[str] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text", "")})
        elif kind == "tool_use":
            # Of a stream, the text as the model wrote it, which may be half.
            arguments = block.get("partial_json") or _as_json(block.get("input", {}))
            function = {"name": block.get("name", ""), "arguments": arguments}
            calls.append({"id": block.get("id", ""), "type": "function", "function": function})
        elif kind == "tool_result":
            content = _anthropic_content(block.get("content"))
            result = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
            results.append(result | ({"is_error": True} if block.get("is_error") else {}))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "image":
            parts.append(_image(mapping(block.get("source")), block))
        else:
            parts.append(dict(block))
    message: ChatMessage = {"role": role, "content": joined(parts)}
    message |= {REASONING: "\n".join(thoughts)} if thoughts else {}
    message |= {"tool_calls": calls} if calls else {}
    return message, results


def _anthropic_content(content: Any) -> Any:
    if not isinstance(content, list):
        return content or ""
    return from_blocks("tool", mappings(content))[0]["content"]


def _image(source: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    if source.get("type") == "url":
        url = source.get("url", "")
    elif source.get("type") == "base64":
        url = f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
    else:
        return dict(block)
    return {"type": "image_url", "image_url": {"url": url}}


MESSAGES: dict[Protocol, Callable[[Mapping[str, Any]], list[ChatMessage]]] = {
    "chat": chat_messages,
    "responses": responses_messages,
    "messages": anthropic_messages,
}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def items_of(value: Any) -> list[Any]:
    """The items of a list; none of anything else."""
    return cast(list[Any], value) if isinstance(value, list) else []


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list."""
    return [cast(Mapping[str, Any], each) for each in items_of(value) if isinstance(each, Mapping)]
