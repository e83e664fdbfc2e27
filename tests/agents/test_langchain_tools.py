"""Tools of LangChain answer as ours do: always, in time, in words."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langchain_core.tools import Tool as SimpleTool
from pydantic import BaseModel, Field

from reflux.agents.errors import UsageError
from reflux.agents.tools.langchain import LangChainTool
from reflux.agents.tools.protocol import REPLY_CHARS, ToolReply, run_call
from reflux.agents.types import ToolCall


class Where(BaseModel):
    city: str = Field(description="Name of a city")
    days: int = Field(default=1, ge=1)


@tool(args_schema=Where)
async def weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: rain for {days} days"


class Reversed(BaseTool):
    """A tool with no async half, which langchain runs in a thread."""

    name: str = "reversed"
    description: str = "A text backwards."

    def _run(self, text: str) -> str:
        return f"{text[::-1]} in {threading.current_thread().name}"


@dataclass(frozen=True)
class NodeRef:
    name: str
    since: date


def returning(value: Any) -> LangChainTool:
    async def give() -> Any:
        """Gives it."""
        return value

    return LangChainTool(StructuredTool.from_function(coroutine=give))


def test_a_model_sees_its_name_description_and_schema() -> None:
    spec = LangChainTool(weather).spec
    schema = json.loads(spec.parameters)
    assert (spec.name, spec.description) == ("weather", "The weather of a city.")
    assert schema["required"] == ["city"]
    assert schema["properties"]["city"]["description"] == "Name of a city"


async def test_it_is_called_with_a_models_arguments() -> None:
    call = ToolCall("1", "weather", '{"city": "Lima", "days": 3}')
    assert await run_call([LangChainTool(weather)], call) == ToolReply("Lima: rain for 3 days")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"city": 3}, {"city": None}, {"city": "Lima", "days": 0}, {"days": [1]}, {"town": "Lima"}],
    ids=str,
)
async def test_arguments_that_do_not_fit_its_schema_are_a_reply(arguments: dict[str, Any]) -> None:
    reply = await LangChainTool(weather).call(arguments)
    assert not reply.ok
    assert "city" in reply.text or "days" in reply.text


async def test_a_megabyte_in_an_argument_is_not_sent_back() -> None:
    reply = await LangChainTool(weather).call({"city": {"x" * 1_000_000: 1}})
    assert not reply.ok
    assert len(reply.text) <= REPLY_CHARS


async def test_a_question_is_a_json_object_or_the_only_text_it_takes() -> None:
    asked = LangChainTool(weather)
    assert (await asked.answer('{"city": "Lima"}')).text == "Lima: rain for 1 days"
    refused = await asked.answer("Lima")
    assert (refused.ok, "city, days" in refused.text) == (False, True)
    backwards = LangChainTool(Reversed())
    assert (await backwards.answer("abc")).text.startswith("cba")
    assert (await backwards.answer('{"text": "xyz"}')).text.startswith("zyx")
    assert (await backwards.answer('{"a": 1}')).text.startswith("}1 :")
    assert not (await returning(1).answer("hello")).ok


async def test_a_tool_that_takes_one_plain_string_can_be_asked() -> None:
    plain = LangChainTool(SimpleTool("shout", lambda text: text.upper(), "Louder."))
    assert await plain.answer("hello") == ToolReply("HELLO")
    (name,) = json.loads(plain.spec.parameters)["properties"]
    assert await plain.call({name: "hello"}) == ToolReply("HELLO")


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, 2.5, None]}, '{"a":[1,2.5,null]}'),
        (["a", "b"], '["a","b"]'),
        (Where(city="Lima"), '{"city":"Lima","days":1}'),
        (NodeRef("Lima", date(1535, 1, 18)), '{"name":"Lima","since":"1535-01-18"}'),
        (b"\xff", '"_w=="'),
        (float("nan"), "NaN"),
        (None, "null"),
        (True, "true"),
        ("", "(no output)"),
        (Path("/a"), '"/a"'),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "image", "url": "u"}], '[{"type":"image","url":"u"}]'),
        (ToolMessage("said", tool_call_id="1"), "said"),
    ],
    ids=lambda value: str(value)[:25],
)
async def test_output_that_is_no_text_becomes_json(output: Any, text: str) -> None:
    assert await returning(output).call({}) == ToolReply(text)


async def test_output_that_contains_itself_is_a_reply() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert not (await returning(loop).call({})).ok


async def test_long_output_is_cut() -> None:
    reply = await returning(["x"] * 100_000).call({})
    assert len(reply.text) == REPLY_CHARS


def raising(error: BaseException, in_thread: bool, **options: Any) -> LangChainTool:
    async def fail() -> str:
        """Fails."""
        raise error

    def fail_in_thread() -> str:
        """Fails."""
        raise error

    built = (
        StructuredTool.from_function(func=fail_in_thread, name="fail", **options)
        if in_thread
        else StructuredTool.from_function(coroutine=fail, name="fail", **options)
    )
    return LangChainTool(built)


@pytest.mark.parametrize(
    ("error", "in_thread"),
    [
        (ToolException("no such page"), False),
        (ToolException("no such page"), True),
        (OSError("no such page"), False),
        (OSError("no such page"), True),
        (StopIteration("no such page"), True),
        (SystemExit("no such page"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_what_it_raises_is_a_reply(error: BaseException, in_thread: bool) -> None:
    reply = await raising(error, in_thread).call({})
    assert not reply.ok
    assert "no such page" in reply.text


async def test_errors_that_it_words_itself_are_replies_that_did_not_work() -> None:
    handled = raising(ToolException("no such page"), False, handle_tool_error=True)
    assert await handled.call({}) == ToolReply("no such page", ok=False)
    worded = raising(ToolException("x"), False, handle_tool_error="Try other words.")
    assert await worded.call({}) == ToolReply("Try other words.", ok=False)


@pytest.mark.timeout(60)
async def test_an_async_tool_that_hangs_is_stopped() -> None:
    ended = asyncio.Event()

    async def hang() -> str:
        """Hangs."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    reply = await LangChainTool(StructuredTool.from_function(coroutine=hang), 0.1).call({})
    assert (reply.ok, "0.1 seconds" in reply.text, ended.is_set()) == (False, True, True)


@pytest.mark.timeout(60)
def test_a_tool_that_hangs_in_a_thread_holds_up_neither_the_call_nor_the_end_of_the_loop() -> None:
    release = threading.Event()

    def hang() -> str:
        """Hangs."""
        release.wait()
        return ""

    async def ask() -> ToolReply:
        return await LangChainTool(StructuredTool.from_function(func=hang), 0.1).call({})

    try:
        reply = asyncio.run(ask())  # Would wait for the threads of asyncio's own pool.
        assert (reply.ok, "0.1 seconds" in reply.text) == (False, True)
    finally:
        release.set()


async def test_a_tool_without_an_async_half_runs_beside_the_loop() -> None:
    reply = await LangChainTool(Reversed()).call({"text": "abc"})
    assert reply == ToolReply("cba in tool reversed")


def test_names_that_no_model_could_call_are_changed() -> None:
    dotted = StructuredTool.from_function(func=lambda: "", name="a.b/c d", description="-")
    assert LangChainTool(dotted).spec.name == "a_b_c_d"


def test_a_tool_whose_arguments_have_no_schema_is_refused() -> None:
    def strange(what: Callable[[], int]) -> str:
        """Takes a function."""
        return ""

    with pytest.raises(UsageError, match=r"strange.*no JSON schema"):
        LangChainTool(StructuredTool.from_function(func=strange))
