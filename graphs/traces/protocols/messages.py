"""Messages of any program as messages of the chat protocol.

Read are, by their fields:

    role, content                OpenAI's chat API; with blocks also Anthropic's
    type: function_call, …       items of OpenAI's Responses API
    role, parts                  OpenTelemetry's `gen_ai.input.messages`, and Gemini's contents
    from, value                  ShareGPT, with `function_call` and `observation`
    lc, id, kwargs · type, data  LangChain's serialized messages
    role, tool_calls: function   Inspect's messages, whose calls hold a name and an object

What is not text is kept as the part that it was, an image as that of the chat protocol.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from reflux.agents.clients.reasoning import reasoning_of, text_of
from reflux.graphs.traces.protocols.json_values import (
    Body,
    as_text,
    from_json,
    items_of,
    mapping,
    mappings,
)

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
TEXTS = ("text", "input_text", "output_text", "summary_text", "refusal")
THINKS = "reasoning_content"
"""The field of an assistant's message that holds its thoughts, as DeepSeek and vLLM name it."""
THOUGHTS = ("thinking", "reasoning", "redacted_thinking", "thought")
REQUESTS = ("tool_use", "tool_call", "function_call", "custom_tool_call", "toolCall")
RESULTS = ("tool_result", "tool_call_response", "tool_response")
RESULTS += ("function_call_output", "custom_tool_call_output")
ITEMS = (*REQUESTS, *RESULTS, "reasoning")
"""Items of the Responses API that have no role."""
KEPT = ("name", "weight", "refusal", "audio")
"""Further fields of a message that the chat protocol knows."""


def request_messages(body: Body, strict: bool = True) -> list[Body]:
    """The messages of a request to any of the three APIs, instructions first; see `chat_messages`.

    A request has `messages` (Chat Completions, Anthropic) or `input` (Responses).

    Raises:
        ValueError: a message has no known form, and `strict` is set.
    """
    system = body.get("instructions", body.get("system"))
    if isinstance(system, list):
        system = "\n\n".join(map(text_of, cast(list[Any], system)))
    start = [{"role": "system", "content": system}] if system else []
    items = "messages" not in body
    given = body.get("input") if items else body["messages"]
    return [*start, *chat_messages(given or [], strict, items)]


def chat_messages(value: Any, strict: bool = True, items: bool = False) -> list[Body]:
    """The messages of a request or a conversation, in order, as chat messages.

    A text is one message of the user. Tool calls and results without ids get some, in order.

    Args:
        strict: refuse what has no known form, rather than keep it as it is.
        items: those of the Responses API, where one turn of the assistant may be many.

    Raises:
        ValueError: a message has no known form, and `strict` is set; the text says which.
    """
    if isinstance(value, Mapping):
        body = cast(Mapping[str, Any], value)
        value = body["messages"] if isinstance(body.get("messages"), list) else [value]
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"messages are a {type(value).__name__}, expected a list")
    given = cast(list[Any], value)
    if len(given) == 1 and isinstance(given[0], list):  # LangChain asks in batches.
        given = cast(list[Any], given[0])
    messages: list[Body] = []
    for item in given:
        try:
            messages += _read(item)
        except ValueError:
            if strict:
                raise
            has_role = isinstance(item, dict) and "role" in item
            messages.append(
                cast(Body, item) if has_role else {"role": "assistant", "content": [item]}
            )
    return _with_ids(_joined(messages, items))


def _read(item: Any) -> list[Body]:
    """The messages that one item stands for: an item with tool results is several."""
    if isinstance(item, str):
        return [{"role": "user", "content": item}]
    if isinstance(item, list) and len(cast(list[Any], item)) == 2:  # A pair (role, content).
        role, content = cast(list[Any], item)
        return _read({"role": role, "content": content})
    if not isinstance(item, Mapping):
        raise ValueError(f"a message is a {type(item).__name__}, expected an object")
    body = cast(Body, item)
    if "role" not in body and body.get("type") in ITEMS:
        return _of_parts("assistant", [body], {})
    body = _unwrapped(body)
    name = body.get("role") or body.get("from") or body.get("type")
    if name not in ROLES:
        known = "user, assistant, system, developer, tool"
        raise ValueError(f"a message has the role {name!r}; known are {known}")
    role = ROLES[name]
    content = next(
        (body[key] for key in ("content", "parts", "value", "text") if key in body), None
    )
    if name in ("function_call", "tool_call") and "from" in body:
        text, calls = _calls_in(content)
        return [{"role": role, "content": text, "tool_calls": requests_of(calls)}]
    if isinstance(content, list):
        return _of_parts(role, cast(list[Any], content), body)
    if isinstance(content, Mapping):
        return _of_parts(role, [content], body)
    return [_message(role, "" if content is None else as_text(content), body)]


def _calls_in(value: Any) -> tuple[str, Any]:
    """The text and the tool calls of ShareGPT's `function_call`: JSON, or after a text in tags.

    Raises:
        ValueError: there are none.
    """
    try:
        return "", from_json(value)
    except ValueError:
        text, tag, rest = str(value).rpartition("\n<tool_call>\n")
        if not tag:
            raise
        return text, from_json(rest.removesuffix("\n</tool_call>"))


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
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise ValueError(f"a part of a message is a {type(part).__name__}, expected an object")
        part = cast(Body, part)
        kind = part.get("type")
        if kind in TEXTS or (kind is None and isinstance(part.get("text"), str)):
            texts = (part[key] for key in ("text", "content", "refusal") if part.get(key))
            kept.append({"type": "text", "text": str(next(texts, ""))})
        elif kind in THOUGHTS:
            inner = items_of(part.get("content")) or items_of(part.get("summary"))
            thoughts += map(text_of, inner or [part])
        elif kind in REQUESTS or "functionCall" in part:
            calls += requests_of(part.get("functionCall", part))
        elif kind in RESULTS or "functionResponse" in part:
            results.append(_result(cast(Body, part.get("functionResponse", part))))
        else:
            kept.append(_image(part))
    message = _message(role, _content(kept), body, calls, "\n".join(filter(None, thoughts)))
    has_any = message["content"] or "tool_calls" in message or THINKS in message
    is_result = role == "tool" and bool(results)
    is_bare = not body or bool(results)  # An item that says nothing is no message.
    return [*results, *([] if is_result or (is_bare and not has_any) else [message])]


def _content(parts: Sequence[Body]) -> Any:
    """Parts that are nothing but text as one text, others as they are."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "".join(str(part["text"]) for part in parts)
    return list(parts)


def _image(part: Body) -> Body:
    """An image of Anthropic or of the Responses API as that of the chat protocol."""
    kind, source = part.get("type"), mapping(part.get("source"))
    url = part.get("image_url") if kind == "input_image" else None
    if kind == "image" and source.get("type") == "url":
        url = source.get("url")
    if kind == "image" and source.get("type") == "base64":
        url = f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
    if not isinstance(url, str):
        return part
    detail = {"detail": part["detail"]} if part.get("detail") else {}
    return {"type": "image_url", "image_url": {"url": url, **detail}}


def _message(
    role: str, content: Any, body: Body, calls: Sequence[Body] = (), thoughts: str = ""
) -> Body:
    message: Body = {"role": role, "content": content}
    more = [
        *calls,
        *requests_of(body.get("tool_calls")),
        *requests_of(body.get("invalid_tool_calls")),
    ]
    # LangChain repeats the calls of a message in its content and in its fields.
    calls = list({call["id"] or str(call["function"]): call for call in more}.values())
    if not calls and isinstance(body.get("function_call"), dict):  # OpenAI's first form.
        calls = requests_of(body["function_call"])
    if role == "assistant" and calls:
        message["tool_calls"] = list(calls)
    if role == "assistant" and (thoughts := thoughts or reasoning_of(body)):
        message[THINKS] = thoughts
    if role == "tool" and (id := body.get("tool_call_id") or body.get("call_id")):
        message["tool_call_id"] = str(id)
    if role == "tool" and isinstance(name := body.get("function"), str):
        message["name"] = name  # Inspect's.
    return message | {key: body[key] for key in KEPT if body.get(key) is not None}


def _result(part: Body) -> Body:
    """A tool's result as a message."""
    keys = ("content", "response", "result", "output")
    content: Any = next((part[key] for key in keys if part.get(key) is not None), "")
    if isinstance(content, list) and len(mappings(content)) == len(cast(list[Any], content)):
        content = _of_parts("tool", cast(list[Any], content), {"role": "tool"})[0]["content"]
    text = cast(Any, content) if isinstance(content, list) else as_text(content)
    message: Body = {"role": "tool", "content": text}
    if id := part.get("tool_use_id") or part.get("call_id") or part.get("id"):
        message["tool_call_id"] = str(id)
    return message | {key: part[key] for key in ("name", "is_error") if part.get(key)}


def requests_of(value: Any) -> list[Body]:
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
        # An item of the Responses API has its own id beside that of the call.
        id = body.get("call_id") or body.get("id") or inner.get("id") or ""
        function = {"name": name, "arguments": as_text(given)}
        calls.append({"id": str(id), "type": "function", "function": function})
    return calls


def _joined(messages: Sequence[Body], items: bool) -> list[Body]:
    """One turn of the assistant, thoughts, text and tool calls, as one message."""
    joined: list[Body] = []
    for message in messages:
        last: Body = joined[-1] if joined else {}
        if message["role"] == last.get("role") == "assistant" and _goes_on(last, message, items):
            before: Any = last.get("content")
            after: Any = message.get("content")
            texts = isinstance(before, str) and isinstance(after, str)
            both = last | message | {"content": before + after if texts else before or after}
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            thoughts = [each[THINKS] for each in (last, message) if each.get(THINKS)]
            both |= {"tool_calls": calls} if calls else {}
            joined[-1] = both | ({THINKS: "\n".join(thoughts)} if thoughts else {})
        else:
            joined.append(message)
    return joined


def _goes_on(last: Body, message: Body, items: bool) -> bool:
    """Whether a message of the assistant is of one turn with the last one."""
    before, after = last.get("content"), message.get("content")
    if items and isinstance(before, str) and isinstance(after, str):
        return True
    only_thinks = not before and last.keys() == {"role", "content", THINKS}
    only_calls = not after and bool(message.keys() & {"tool_calls", THINKS})
    return only_thinks or (only_calls and "weight" not in last)


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
