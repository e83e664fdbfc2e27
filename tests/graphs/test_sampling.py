"""A copy may call the tools that its role was granted, and H may ask a tool itself."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    SubQuestion,
    ToolCall,
    ToolSpec,
)
from reflux.graphs.amplify.context import Limits
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from tests.support.amplifying import ONE_VOTE, amplified, answers_of


class Doubling:
    """A tool that doubles a number, and counts how often it did."""

    spec = ToolSpec("double", "Doubles a number.", '{"type": "object"}')

    def __init__(self) -> None:
        self.made = 0

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        return await self.answer(str(arguments.get("number", "")))

    async def answer(self, question: str) -> ToolReply:
        self.made += 1
        if not question.isdecimal():
            return ToolReply("that is no number", ok=False)
        return ToolReply(str(2 * int(question)))


def wanting(request: ChatRequest) -> Completion | str:
    """A model that has every number doubled, and then says what it was told."""
    last = request.messages[-1]
    if last[0] == "tool":
        return f"it is {last[1]}"
    if not request.tools:
        return "I cannot know"
    wish = ToolCall("c1", "double", json.dumps({"number": last[1]}))
    return Completion("", 3, 2, finish_reason="tool_calls", tool_calls=(wish,))


def asks(*subs: SubQuestion):
    def act(question: str, transcript: Any, may_ask: bool) -> Any:
        if question != "root":
            return PASS
        if not transcript:
            return Ask(subs)
        return Answer("+".join(said.answer or f"({said.error})" for said in transcript))

    return act


async def test_a_copy_calls_a_tool_that_it_was_granted_and_goes_on(store: TraceStore) -> None:
    tool, client = Doubling(), ScriptedClient(wanting)
    system = amplified(
        store, client, asks(SubQuestion("21")), votes=ONE_VOTE, grants={"answer": [tool]}
    )
    outcome = await answers_of(system, "root")
    assert outcome["answer"] == "it is 42"
    assert outcome["spent"]["calls"] == 2
    asked = [dict(row) for row in store.select("SELECT * FROM calls WHERE kind='tool'")]
    assert [(row["model"], row["messages"], row["completion"]) for row in asked] == [
        ("double", '{"number": "21"}', "42")
    ]
    again = ScriptedClient(wanting)
    replayed = amplified(
        store, again, asks(SubQuestion("21")), votes=ONE_VOTE, grants={"answer": [tool]}
    )
    assert await answers_of(replayed, "root") == outcome
    assert (again.requests, tool.made) == ([], 1)


async def test_without_a_grant_no_copy_sees_a_tool(store: TraceStore) -> None:
    tool, client = Doubling(), ScriptedClient(wanting)
    system = amplified(
        store, client, asks(SubQuestion("21")), votes=ONE_VOTE, tools={"double": tool}
    )
    assert (await answers_of(system, "root"))["answer"] == "I cannot know"
    assert tool.made == 0


async def test_a_copy_that_never_stops_calling_must_answer_after_its_turns(
    store: TraceStore,
) -> None:
    def greedy(request: ChatRequest) -> Completion | str:
        if not request.tools:
            return "enough"
        return Completion("", 3, 2, tool_calls=(ToolCall("c", "double", '{"number": "1"}'),))

    tool = Doubling()
    system = amplified(
        store, ScriptedClient(greedy), asks(SubQuestion("21")), votes=ONE_VOTE,
        grants={"answer": [tool]}, limits=Limits(tool_turns=3),
    )  # fmt: skip
    assert (await answers_of(system, "root"))["answer"] == "enough"
    assert tool.made == 3


async def test_a_copy_that_is_cut_off_while_it_waits_for_a_tool_has_not_answered(
    store: TraceStore,
) -> None:
    system = amplified(
        store, ScriptedClient(wanting), asks(SubQuestion("21")), votes=ONE_VOTE,
        grants={"answer": [Doubling()]}, limits=Limits(calls=1),
    )  # fmt: skip
    await answers_of(system, "root")
    (child,) = load_tree(store, "root-id").children
    assert (child.status, child.calls) == ("rejected", 1)


async def test_with_no_turns_for_tools_none_is_offered(store: TraceStore) -> None:
    system = amplified(
        store, ScriptedClient(wanting), asks(SubQuestion("21")), votes=ONE_VOTE,
        grants={"answer": [Doubling()]}, limits=Limits(tool_turns=0),
    )  # fmt: skip
    assert (await answers_of(system, "root"))["answer"] == "I cannot know"


async def test_wishes_that_make_no_sense_are_refused_to_the_model_alone(store: TraceStore) -> None:
    wishes = [("nothing", "{}"), ("double", "[1"), ("double", '{"number": "x"}')]

    def odd(request: ChatRequest) -> Completion | str:
        told = [turn[1] for turn in request.messages if turn[0] == "tool"]
        if told:
            return " | ".join(told)
        calls = tuple(ToolCall(f"c{i}", *wish) for i, wish in enumerate(wishes))
        return Completion("", 3, 2, tool_calls=calls)

    system = amplified(
        store, ScriptedClient(odd), asks(SubQuestion("21")), votes=ONE_VOTE,
        grants={"answer": [Doubling()]},
    )  # fmt: skip
    told = (await answers_of(system, "root"))["answer"]
    assert told is not None
    assert "there is no tool 'nothing'" in told
    assert "not JSON" in told
    assert told.endswith("that is no number")


async def test_h_asks_a_tool_itself_and_its_refusal_is_a_failed_sub_question(
    store: TraceStore,
) -> None:
    client = ScriptedClient(wanting)
    subs = [SubQuestion(text, to="tool:double") for text in ("4", "x")]
    unknown = SubQuestion("5", to="tool:triple")
    chained = SubQuestion("{0}", (0,), "tool:double")
    system = amplified(store, client, asks(*subs, unknown, chained), tools={"double": Doubling()})
    outcome = await answers_of(system, "root")
    assert outcome["answer"] == (
        "8+(that is no number)"
        "+(the overseer asked the tool 'triple', which it was not given; it has double)+16"
    )
    assert client.requests == []
    tree = load_tree(store, "root-id")
    assert [child.answered_by for child in tree.children] == ["tool:double"] * 2 + [
        "",
        "tool:double",
    ]
    assert [child.answer for child in tree.children] == ["8", None, None, "16"]


async def test_h_calls_the_tools_of_its_own_role_while_it_takes_a_step(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> Completion | str:
        last = request.messages[-1]
        if last[0] == "tool":
            return f'{{"step": {{"answer": "twice is {last[1]}"}}}}'
        assert [tool.name for tool in request.tools] == ["double"]
        assert request.schema == ""
        return Completion("", 3, 2, tool_calls=(ToolCall("c", "double", '{"number": "8"}'),))

    tool, client = Doubling(), ScriptedClient(reply)
    system = amplified(store, client, asks(), grants={"overseer": [tool]})
    system = Amplified(replace(system.context, overseers=(ModelOverseer(),)))
    outcome = await answers_of(system, "What is twice 8?")
    assert (outcome["answer"], outcome["spent"]["calls"], tool.made) == ("twice is 16", 2, 1)
    rows = store.select("SELECT role FROM calls WHERE kind != 'script' ORDER BY id")
    assert [row["role"] for row in rows] == [
        "overseer.ask", "overseer.ask~1.tool0", "overseer.ask~1"
    ]  # fmt: skip
