"""Behaviors of endpoints: tool calls."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.endpoint_says import Behavior, chunk, says, sse, whole
from tests.support.endpoint_server import Asked, Reply, Respond


def tool_calls() -> Iterator[Behavior]:
    """Tool calls; the expected text is that of each call: name(arguments)."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    other = {"id": "c2", "type": "function", "function": {"name": "mul", "arguments": '{"b": 2}'}}
    calls = 'add({"a": 1}) mul({"b": 2})'

    def streamed(*deltas: list[dict[str, Any]]) -> Respond:
        def respond(asked: Asked) -> Reply:
            if not asked.streams:
                return Reply(whole({"content": None, "tool_calls": [call, other]}, "tool_calls"))
            return sse(*[chunk({"tool_calls": each}) for each in deltas], chunk({}, "tool_calls"))

        return respond

    def half(source: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
        return {
            **source,
            "function": {"name": source["function"]["name"], "arguments": text},
            **more,
        }

    def tail(text: str, **more: Any) -> dict[str, Any]:
        return {"function": {"arguments": text}, **more}

    forms = {
        "tool calls by index": [
            [half(call, '{"a"', index=0)],
            [tail(": 1}", index=0)],
            [other | {"index": 1}],
        ],
        "tool calls without index": [[call], [other]],
        "pieces without index": [[half(call, '{"a"')], [tail(": 1}", id="c1")], [other]],
        "pieces without index and id": [[half(call, '{"a"')], [tail(": 1}")], [other]],
        "two calls in one delta": [[call, other]],
        "every index is 0, empty ids": [
            [half(call, '{"a"', index=0, id="")],
            [tail(": 1}", index=0, id="")],
            [half(other, '{"b"', index=0, id="")],
            [tail(": 2}", index=0, id="")],
        ],
        "every index is 0": [[call | {"index": 0}], [other | {"index": 0}]],
    }
    for name, deltas in forms.items():
        yield Behavior(
            name,
            "streams tool calls",
            streamed(*deltas),
            text=calls,
            finish="tool_calls",
            tools=True,
        )
    objects = [
        {
            **each,
            "function": {
                **each["function"],
                "arguments": json.loads(each["function"]["arguments"]),
            },
        }
        for each in (call, other)
    ]
    yield Behavior(
        "arguments as an object",
        "sends arguments as an object",
        lambda asked: Reply(whole({"content": "", "tool_calls": objects}, "tool_calls")),
        text=calls,
        finish="tool_calls",
        tools=True,
    )
    yield Behavior(
        "function_call",
        "has the protocol's first form",
        lambda asked: Reply(
            whole({"content": None, "function_call": call["function"]}, "function_call")
        ),
        text='add({"a": 1})',
        finish="tool_calls",
        tools=True,
    )
    printed = {
        "Hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        "Mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
        "Llama": '{"name": "add", "parameters": {"a": 1}}',
        "gpt-oss": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
        "fenced JSON": '```json\n{"name": "add", "arguments": {"a": 1}}\n```',
        "Qwen-Coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        "</function>\n</tool_call>",
    }
    for name, text in printed.items():
        yield Behavior(
            f"{name} prints a call",
            "prints a tool call as text",
            says(text),
            text=text,
            tools=True,
            notes="tool call as text",
        )
    yield Behavior(
        "JSON as an answer",
        "answers in JSON",
        says('{"name": "Lima"}'),
        text='{"name": "Lima"}',
        tools=True,
    )
