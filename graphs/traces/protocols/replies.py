"""Tools, replies and outputs of any program in the form of the record."""

from collections.abc import Sequence
from typing import Any, cast

from reflux.agents.clients.chat_replies import finish_word, read_logprobs
from reflux.agents.clients.reasoning import text_of
from reflux.agents.types import Completion, ToolCall
from reflux.graphs.traces.protocols.json_values import Body, as_text, items_of, loaded, mapping
from reflux.graphs.traces.protocols.messages import THINKS, chat_messages

NOT_SAMPLING = ("_type", "tools", "functions", "model", "model_name", "api_key")
"""Parameters of LangChain's that are no setting of a call, or stand in a separate column."""
CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
"""What Anthropic counts beside `input_tokens`."""

ANSWERS = ("answer", "output", "result", "response")
"""Fields in which programs return an answer; the others yield to messages."""


def chat_tools(value: Any, strict: bool = True) -> list[Body]:
    """Tools of any program in the form of the chat protocol; a JSON text is read.

    Args:
        strict: leave out the tools that a provider runs itself, rather than keep them as they are.

    Raises:
        ValueError: one has no name, and `strict` is set.
    """
    tools: list[Body] = []
    for tool in map(loaded, items_of(loaded(value))):
        body = mapping(tool)
        inner = mapping(body.get("function")) or body
        kind = inner.get("type", "function")
        keys = ("parameters", "input_schema", "inputSchema", "args_schema")
        schema = next((inner[key] for key in keys if isinstance(inner.get(key), dict)), None)
        is_provided = isinstance(kind, str) and kind not in ("function", "custom")
        if not inner.get("name") or (is_provided and schema is None):
            if strict and not is_provided:
                raise ValueError(f"a tool has no name: {as_text(tool)[:80]}")
            tools += [] if strict else [body]
            continue
        function: Body = {"name": inner["name"], "parameters": schema}
        function |= {key: inner.get(key) for key in ("description", "strict")}
        function = {key: given for key, given in function.items() if given is not None}
        tools.append({"type": "function", "function": function})
    return tools


def reply_of(
    message: Body, usage: Any = None, finish: str = "", logprobs: Any = None
) -> Completion:
    """An assistant's message as a reply; `usage` in the words of any program."""
    counts = mapping(usage)
    calls = [
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]
    asked = _count(counts, "prompt_tokens", "input_tokens", "input", "promptTokens")
    return Completion(
        text=text_of(message.get("content") or message.get("refusal")),
        prompt_tokens=asked + sum(_count(counts, name) for name in CACHED),
        completion_tokens=_count(
            counts, "completion_tokens", "output_tokens", "output", "completionTokens"
        ),
        finish_reason=finish_word(finish or ("tool_calls" if calls else "stop")),
        logprobs=read_logprobs(logprobs),
        tool_calls=tuple(calls),
        reasoning=str(message.get(THINKS) or ""),
    )


def message_of(reply: Completion, text: str | None = None) -> Body:
    """A reply as the assistant's message of the next request."""
    message: Body = {"role": "assistant", "content": reply.text if text is None else text}
    calls = [call.to_json() for call in reply.tool_calls]
    return message | ({"tool_calls": calls} if calls else {})


def _count(counts: Body, *names: str) -> int:
    found = next((counts[name] for name in names if counts.get(name) is not None), 0)
    try:
        return min(max(0, int(found)), 2**31)
    except (TypeError, ValueError, OverflowError):
        return 0


def images_in(messages: Sequence[Body]) -> int:
    """How many parts of the messages are no text."""
    parts = (cast(list[Any], m["content"]) for m in messages if isinstance(m.get("content"), list))
    return sum(1 for each in parts for part in each if cast(Body, part).get("type") != "text")


def text_of_output(value: Any) -> str | None:
    """What a program, a node or a tool returned as text: its answer, or that of its last message,
    else JSON."""
    if value is None or isinstance(value, str):
        return value
    body = mapping(value)
    keys = ANSWERS[:1] if items_of(body.get("messages")) else ANSWERS
    if (key := next((key for key in keys if body.get(key) is not None), None)) is not None:
        return text_of_output(body[key])
    try:
        content = chat_messages(value)[-1]["content"]
    except (ValueError, IndexError):
        content = None
    return content if isinstance(content, str) and content else as_text(value)
