"""Tools, replies and outputs of other programs in the form of the record."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from reflux.agents.clients.chat_replies import finish_word, read_logprobs
from reflux.agents.clients.reasoning import text_of
from reflux.agents.types import Completion, ToolCall
from reflux.graphs.traces.importing.messages import Body, chat_messages, from_json


def chat_tools(value: Any) -> list[Body]:
    """Tools of any program in the form of the chat protocol; a JSON text is read.

    Raises:
        ValueError: one has no name.
    """
    value = from_json(value) if isinstance(value, str) and value.strip() else value
    tools: list[Body] = []
    for tool in cast(list[Any], value if isinstance(value, list) else []):
        given = from_json(tool)
        if not isinstance(given, Mapping):
            raise ValueError(f"a tool is a {type(given).__name__}, expected an object")
        body = cast(Body, given)
        inner = cast(Body, body["function"] if isinstance(body.get("function"), dict) else body)
        if not inner.get("name"):
            if isinstance(inner.get("type"), str) and inner["type"] != "function":
                continue  # A tool that the provider runs itself, such as web search.
            raise ValueError("a tool has no name")
        function: Body = {"name": inner["name"], "description": inner.get("description") or ""}
        keys = ("parameters", "input_schema", "inputSchema", "args_schema")
        schema = next((inner[key] for key in keys if isinstance(inner.get(key), dict)), None)
        function |= {"parameters": schema} if schema is not None else {}
        tools.append({"type": "function", "function": function})
    return tools


def reply_of(
    message: Body, usage: Any = None, finish: str = "", logprobs: Any = None
) -> Completion:
    """An assistant's message as a reply; `usage` in the words of any program."""
    counts = cast(Body, usage) if isinstance(usage, Mapping) else {}
    calls = [
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]
    content = message.get("content")
    return Completion(
        text=content if isinstance(content, str) else text_of(content),
        prompt_tokens=_count(counts, "prompt_tokens", "input_tokens", "input", "promptTokens"),
        completion_tokens=_count(
            counts, "completion_tokens", "output_tokens", "output", "completionTokens"
        ),
        finish_reason=finish_word(finish) if finish else "tool_calls" if calls else "stop",
        logprobs=read_logprobs(logprobs),
        tool_calls=tuple(calls),
        reasoning=str(message.get("reasoning_content") or ""),
    )


def _count(counts: Body, *names: str) -> int:
    found = next((counts[name] for name in names if counts.get(name) is not None), 0)
    try:
        return max(0, int(found))
    except (TypeError, ValueError):
        return 0


def images_in(messages: Sequence[Body]) -> int:
    """How many parts of the messages are no text."""
    parts = (cast(list[Any], m["content"]) for m in messages if isinstance(m.get("content"), list))
    return sum(1 for each in parts for part in each if cast(Body, part).get("type") != "text")


def loaded(value: Any) -> Any:
    """A value that may be JSON in a text."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def text_of_output(value: Any) -> str | None:
    """What a program, a node or a tool returned as text: that of its last message, else JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        content = chat_messages(value)[-1]["content"]
    except (ValueError, IndexError):
        content = None
    return (
        content if isinstance(content, str) and content else json.dumps(value, ensure_ascii=False)
    )
