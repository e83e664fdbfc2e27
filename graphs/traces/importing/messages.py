"""Messages of other programs as messages of the chat protocol.

Read are, by their fields:

    role, content                OpenAI's chat API; with blocks also Anthropic's
    type: function_call, …       items of OpenAI's Responses API
    role, parts                  OpenTelemetry's `gen_ai.input.messages`, and Gemini's contents
    from, value                  ShareGPT, with `function_call` and `observation`
    lc, id, kwargs · type, data  LangChain's serialized messages
    role, tool_calls: function   Inspect's messages, whose calls hold a name and an object

What is not text, such as an image, is kept as the part that it was.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from reflux.agents.clients.reasoning import reasoning_of, text_of

Body = dict[str, Any]
ROLES = {
    **dict.fromkeys(("user", "human", "input"), "user"),
    **dict.fromkeys(("assistant", "ai", "gpt", "model", "chatgpt", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    "system": "system",
    "developer": "developer",
}  # fmt: skip
"""Roles of the chat protocol, by the names that programs give them."""
CLASSES = {
    "HumanMessage": "user",
    "AIMessage": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
    "FunctionMessage": "tool",
}
"""Roles by the classes of LangChain, whose chunks have the same names and an ending."""
TEXTS = ("text", "input_text", "output_text")
THOUGHTS = ("thinking", "reasoning", "redacted_thinking", "thought")
REQUESTS = ("tool_use", "tool_call", "function_call", "toolCall")
RESULTS = ("tool_result", "tool_call_response", "function_call_output", "tool_response")
KEPT = ("name", "weight", "refusal", "audio")
"""Further fields of a message that the chat protocol knows."""


def chat_messages(value: Any) -> list[Body]:
    """The messages of a request or a conversation, in order, as chat messages.

    A text is one message of the user. Tool calls and results without ids get some, in order.

    Raises:
        ValueError: a message has no known form; the text says which.
    """
    if isinstance(value, Mapping):
        body = cast(Mapping[str, Any], value)
        value = body["messages"] if isinstance(body.get("messages"), list) else [value]
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"messages are a {type(value).__name__}, expected a list")
    items = cast(list[Any], value)
    if len(items) == 1 and isinstance(items[0], list):  # LangChain asks in batches.
        items = cast(list[Any], items[0])
    messages = [message for item in items for message in _read(item)]
    return _with_ids(_joined(messages))


def _read(item: Any) -> list[Body]:
    """The messages that one item stands for: an item with tool results is several."""
    if isinstance(item, str):
        return [{"role": "user", "content": item}]
    if isinstance(item, list) and len(cast(list[Any], item)) == 2:  # A pair (role, content).
        role, content = cast(list[Any], item)
        return _read({"role": role, "content": content})
    if not isinstance(item, Mapping):
        raise ValueError(f"a message is a {type(item).__name__}, expected an object")
    body = _unwrapped(cast(Body, item))
    kind = body.get("type")
    if "role" not in body and kind in (*REQUESTS, *RESULTS, "reasoning"):
        return _of_parts("assistant", [body], body)
    name = body.get("role") or body.get("from") or kind
    if name not in ROLES:
        known = "user, assistant, system, developer, tool"
        raise ValueError(f"a message has the role {name!r}; known are {known}")
    role = ROLES[name]
    content = next(
        (body[key] for key in ("content", "parts", "value", "text") if key in body), None
    )
    if name in ("function_call", "tool_call") and "from" in body:
        return [{"role": role, "content": "", "tool_calls": _requests(from_json(content))}]
    if isinstance(content, list):
        return _of_parts(role, cast(list[Any], content), body)
    if isinstance(content, Mapping):
        return _of_parts(role, [content], body)
    text = "" if content is None else content if isinstance(content, str) else json.dumps(content)
    return [_message(role, text, body)]


def _unwrapped(body: Body) -> Body:
    """A serialized message of LangChain as its fields, under `role`."""
    if body.get("lc") and isinstance(body.get("id"), list) and isinstance(body.get("kwargs"), dict):
        name = str(body["id"][-1]).removesuffix("Chunk")
        fields = dict(cast(Body, body["kwargs"]))
        role = CLASSES.get(name) or fields.get("role")
    elif isinstance(body.get("data"), dict) and "type" in body:
        fields = dict(cast(Body, body["data"]))
        role = fields.get("role") or CLASSES.get(
            str(body["type"]).removesuffix("Chunk"), body["type"]
        )
    elif "role" not in body and isinstance(body.get("content"), str | list) and "type" in body:
        fields, role = dict(body), body["type"]
    else:
        return body
    more = fields.get("additional_kwargs")
    return {**(more if isinstance(more, dict) else {}), **_without_empty(fields), "role": role}


def _without_empty(fields: Body) -> Body:
    return {
        key: value
        for key, value in fields.items()
        if value not in (None, [], {}) or key == "content"
    }


def _of_parts(role: str, parts: list[Any], body: Body) -> list[Body]:
    """A message whose content is a list of parts, and one more for each tool result in it."""
    kept: list[Any] = []
    calls: list[Body] = []
    results: list[Body] = []
    thoughts: list[str] = []
    for part in parts:
        kind = cast(Body, part).get("type") if isinstance(part, Mapping) else "text"
        if isinstance(part, str):
            kept.append({"type": "text", "text": part})
        elif not isinstance(part, Mapping):
            raise ValueError(f"a part of a message is a {type(part).__name__}, expected an object")
        elif kind in TEXTS or (kind is None and isinstance(cast(Body, part).get("text"), str)):
            field = "text" if isinstance(cast(Body, part).get("text"), str) else "content"
            kept.append({"type": "text", "text": str(cast(Body, part).get(field) or "")})
        elif kind in THOUGHTS:
            thoughts.append(text_of(part) or text_of(cast(Body, part).get("summary")))
        elif kind in REQUESTS or "functionCall" in part:
            calls += _requests(cast(Body, part).get("functionCall", part))
        elif kind in RESULTS or "functionResponse" in part:
            results.append(_result(cast(Body, cast(Body, part).get("functionResponse", part))))
        else:
            kept.append(part)
    own = role != "tool" or not results
    message = _message(role, _content(kept), body, calls, "\n".join(filter(None, thoughts)))
    has_any = message["content"] or "tool_calls" in message or "reasoning_content" in message
    return [*results, *([message] if own and (has_any or not results) else [])]


def _content(parts: Sequence[Any]) -> Any:
    """One text as a text; several parts as they are."""
    if not parts:
        return ""
    only = cast(Body, parts[0]) if len(parts) == 1 else {}
    return (
        only["text"]
        if only.get("type") == "text" and set(only) == {"type", "text"}
        else list(parts)
    )


def _message(
    role: str, content: Any, body: Body, calls: Sequence[Body] = (), thoughts: str = ""
) -> Body:
    message: Body = {"role": role, "content": content}
    more = [*calls, *_requests(body.get("tool_calls")), *_requests(body.get("invalid_tool_calls"))]
    # LangChain repeats the calls of a message in its content and in its fields.
    calls = list({call["id"] or str(call["function"]): call for call in more}.values())
    if not calls and isinstance(body.get("function_call"), dict):  # OpenAI's first form.
        calls = _requests(body["function_call"])
    if role == "assistant" and calls:
        message["tool_calls"] = list(calls)
    if role == "assistant" and (thoughts := thoughts or reasoning_of(body)):
        message["reasoning_content"] = thoughts
    if role == "tool" and (id := body.get("tool_call_id") or body.get("call_id")):
        message["tool_call_id"] = str(id)
    if role == "tool" and isinstance(name := body.get("function"), str):
        message["name"] = name  # Inspect's.
    return message | {key: body[key] for key in KEPT if body.get(key) is not None}


def _result(part: Body) -> Body:
    """A tool's result as a message."""
    keys = ("content", "response", "result", "output")
    content: Any = next((part[key] for key in keys if part.get(key) is not None), "")
    if isinstance(content, list) and all(
        isinstance(each, Mapping) for each in cast(list[Any], content)
    ):
        content = _of_parts("tool", cast(list[Any], content), {})[0]["content"]
    text = content if isinstance(content, str | list) else json.dumps(content)
    id = part.get("tool_use_id") or part.get("call_id") or part.get("id")
    message: Body = {"role": "tool", "content": text}
    message |= {"tool_call_id": str(id)} if id else {}
    return message | ({"name": part["name"]} if part.get("name") else {})


def _requests(value: Any) -> list[Body]:
    """Tool calls of any program in the form of the chat protocol.

    Raises:
        ValueError: one names no tool.
    """
    if value is None:
        return []
    calls: list[Body] = []
    for call in cast(list[Any], value if isinstance(value, list) else [value]):
        if not isinstance(call, Mapping):
            raise ValueError(f"a tool call is a {type(call).__name__}, expected an object")
        body = cast(Body, call)
        inner = cast(Body, body["function"] if isinstance(body.get("function"), dict) else body)
        name = inner.get("name") or body.get("function")
        if not isinstance(name, str) or not name:
            raise ValueError("a tool call names no tool")
        keys = ("arguments", "args", "input", "parameters")
        given = next((inner[key] for key in keys if inner.get(key) is not None), {})
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        # An item of the Responses API has its own id beside that of the call.
        id = body.get("call_id") or body.get("id") or inner.get("id") or ""
        calls.append(
            {"id": str(id), "type": "function", "function": {"name": name, "arguments": text}}
        )
    return calls


def from_json(value: Any) -> Any:
    """What a text of JSON holds.

    Raises:
        ValueError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"a tool call is not JSON ({error})") from error


def _joined(messages: Sequence[Body]) -> list[Body]:
    """Items of one turn of the Responses API, thoughts, text and tool calls, as one message."""
    joined: list[Body] = []
    for message in messages:
        last = joined[-1] if joined else {}
        both = message["role"] == last.get("role") == "assistant"
        follows = not message["content"] and (
            "tool_calls" in message or "reasoning_content" in message
        )
        only_thoughts = (
            both and set(last) == {"role", "content", "reasoning_content"} and not last["content"]
        )
        if both and (only_thoughts or (follows and "weight" not in last)):
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            content = last["content"] or message["content"]
            joined[-1] = (
                last | message | {"content": content} | ({"tool_calls": calls} if calls else {})
            )
        else:
            joined.append(message)
    return joined


def _with_ids(messages: Sequence[Body]) -> list[Body]:
    """Give ids to tool calls, and results the ids of the calls that they answer, in order."""
    waiting: list[tuple[str, str]] = []
    number = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            if not call["id"]:
                call["id"] = f"call_{number}"
            number += 1
            waiting.append((call["id"], call["function"]["name"]))
        if message["role"] != "tool":
            continue
        id, name = message.get("tool_call_id"), message.get("name")
        match = next((each for each in waiting if each[0] == id), None)
        match = match or next((each for each in waiting if name and each[1] == name), None)
        match = match or (waiting[0] if waiting and not id else None)
        if match is not None:
            waiting.remove(match)
            message["tool_call_id"] = id or match[0]
    return list(messages)
