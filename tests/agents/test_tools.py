"""A model's call of a tool always ends in a reply, whatever the model wrote and the tool does."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.protocol import (
    ARGUMENT_CHARS,
    REPLY_CHARS,
    Tool,
    ToolReply,
    cut,
    guarded,
    run_call,
    text_argument,
)
from reflux.agents.tools.python_sandbox import Sandbox
from reflux.agents.types import ToolCall, ToolSpec


class Scripted:
    """A tool that does what a test wants."""

    spec = ToolSpec("scripted", "", '{"type": "object", "properties": {}}')

    def __init__(self, does: Any) -> None:
        self._does = does

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        return await self._does(arguments)

    async def answer(self, question: str) -> ToolReply:
        return await self._does({})


async def echo(arguments: Mapping[str, Any]) -> ToolReply:
    return ToolReply(json.dumps(dict(arguments)))


def asking(arguments: str, name: str = "scripted") -> ToolCall:
    return ToolCall("1", name, arguments)


async def test_a_call_is_made_with_the_arguments_that_the_model_wrote() -> None:
    reply = await run_call([Calculator(), Scripted(echo)], asking('{"a": [1, "é"]}'))
    assert reply == ToolReply('{"a": [1, "\\u00e9"]}')


async def test_no_arguments_at_all_are_an_empty_object() -> None:
    assert await run_call([Scripted(echo)], asking("")) == ToolReply("{}")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("not JSON", "not JSON"),
        ("[1, 2]", "not a list"),
        ('"12"', "not a str"),
        ("null", "not a NoneType"),
        ('{"a": NaN}', "NaN"),
        ("[" * 10_000, "not JSON"),
        ('{"a": ' * 3_000, "not JSON"),
        ('{"a": 1' + "0" * 5_000 + "}", "not JSON"),
        ("x" * 1_000_000, "1000000 characters"),
    ],
)
async def test_arguments_that_are_no_json_object_are_refused_in_words(
    arguments: str, why: str
) -> None:
    reply = await run_call([Scripted(echo)], asking(arguments))
    assert not reply.ok
    assert why in reply.text
    assert len(reply.text) < 500


async def test_a_tool_that_was_not_granted_is_refused_with_the_names_of_those_that_are() -> None:
    reply = await run_call([Calculator()], asking("{}", "shell" * 1000))
    assert not reply.ok
    assert "calculator" in reply.text
    assert len(reply.text) < 200
    assert "none" in (await run_call([], asking("{}"))).text


async def test_a_tool_that_raises_replies_with_what_it_raised() -> None:
    async def fails(arguments: Mapping[str, Any]) -> ToolReply:
        raise KeyError("lost")

    reply = await run_call([Scripted(fails)], asking("{}"))
    assert reply == ToolReply("it failed: KeyError: 'lost'", ok=False)


async def test_a_refusal_of_a_tool_comes_in_its_own_words() -> None:
    async def refuses(arguments: Mapping[str, Any]) -> ToolReply:
        raise ValueError("ask for less")

    assert await guarded(lambda: refuses({}), 5) == ToolReply("ask for less", ok=False)


@pytest.mark.timeout(60)
async def test_a_tool_that_hangs_is_stopped() -> None:
    ended = asyncio.Event()

    async def hangs(arguments: Mapping[str, Any]) -> ToolReply:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    reply = await run_call([Scripted(hangs)], asking("{}"), seconds=0.05)
    assert not reply.ok
    assert "0.05 seconds" in reply.text
    assert ended.is_set()


@pytest.mark.timeout(60)
async def test_a_tool_that_will_not_be_stopped_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reflux.agents.tools.protocol.GRACE_SECONDS", 0.05)
    release = asyncio.Event()

    async def stubborn(arguments: Mapping[str, Any]) -> ToolReply:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return ToolReply("late")

    reply = await run_call([Scripted(stubborn)], asking("{}"), seconds=0.05)
    release.set()
    assert "stopped" in reply.text


async def test_who_is_cancelled_while_a_tool_works_stops_the_tool() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def works(arguments: Mapping[str, Any]) -> ToolReply:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    recorded_client = asyncio.create_task(run_call([Scripted(works)], asking("{}")))
    await begun.wait()
    recorded_client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recorded_client
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_long_reply_is_cut_and_says_so() -> None:
    async def long(arguments: Mapping[str, Any]) -> ToolReply:
        return ToolReply("x" * 1_000_000)

    reply = await run_call([Scripted(long)], asking("{}"))
    assert len(reply.text) == REPLY_CHARS
    assert "cut" in reply.text


@given(st.text(st.characters(exclude_categories=())))
def test_a_reply_can_always_be_sent(text: str) -> None:
    sent = cut(text).encode("utf-8")
    assert sent == text.encode("utf-8", "replace")[: len(sent)]


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_a_text_argument_is_given_or_refused(arguments: dict[str, Any]) -> None:
    try:
        value = text_argument(arguments, "q")
    except ValueError:
        assert (
            set(arguments) != {"q"}
            or not str(arguments["q"] or "").strip()
            or not isinstance(arguments["q"], str)
        )
    else:
        assert value == arguments["q"]


@pytest.mark.parametrize("tool", [Calculator(), Sandbox()], ids=lambda tool: tool.spec.name)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"x": 1}, {"expression": 3}, {"code": None}, {"code": ["a"]}, {"a" * 9: 1, "b": 2}]
    + [{name: "x" * (ARGUMENT_CHARS + 1)} for name in ("expression", "code")],
    ids=lambda arguments: str(arguments)[:20],
)
async def test_wrong_arguments_of_our_tools_are_refused_in_words(
    tool: Tool, arguments: dict[str, Any]
) -> None:
    reply = await tool.call(arguments)
    assert not reply.ok
    assert 0 < len(reply.text) < 500


@pytest.mark.parametrize("tool", [Calculator(), Sandbox()], ids=lambda tool: tool.spec.name)
def test_the_parameters_of_our_tools_are_a_json_schema(tool: Tool) -> None:
    schema = json.loads(tool.spec.parameters)
    assert schema["type"] == "object"
    assert schema["required"] == list(schema["properties"])
