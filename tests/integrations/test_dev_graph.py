"""The graph of `langgraph.json`: messages in, an accepted answer out, people in between."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command
from pytest_httpserver import HTTPServer

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import HumanOverseer, ScriptedOverseer
from reflux.agents.types import Answer, Ask, Defer, Exchange, Step, step_to_json
from reflux.graphs.ask_options import options_of
from reflux.graphs.traces.tree import load_tree
from reflux.integrations.dev_graph import chat_graph
from reflux.models import Agent
from reflux.overseers import DEFAULT_OVERSEER
from tests.support.amplifying import echo, rejecting

ROOT = Path(__file__).parents[2]
THREAD: Any = {"configurable": {"thread_id": "t"}}


def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Splits at " and ", asks a person what ends in "?", leaves the rest to X."""
    if transcript:
        return Answer("+".join(str(said.answer) for said in transcript))
    *_, asked = question.rsplit("Question:\n", 1)
    if may_ask and " and " in asked:
        return Ask.of(*asked.split(" and "))
    return Defer({"about": question}) if question.endswith("?") else PASS


SPLITS = ScriptedOverseer("splits", act)
H = {DEFAULT_OVERSEER: SPLITS, "plain": SPLITS, "human": HumanOverseer()}


def made(run: Path, saver: Any = None, **context: Any) -> tuple[Any, ScriptedClient]:
    """The graph over a scripted X; every call that it makes is in `requests`."""
    client = ScriptedClient(echo)
    graph = chat_graph(Agent(client, run=run), H, **context)
    return graph.compile(checkpointer=saver), client


async def test_the_last_message_is_the_question_and_the_answer_a_message(tmp_path: Path) -> None:
    graph, client = made(tmp_path)
    got = await graph.ainvoke({"messages": [{"role": "user", "content": "one and two"}]})
    assert [(m.type, m.content) for m in got["messages"]] == [
        ("human", "one and two"),
        ("ai", "ONE+TWO"),
    ]
    assert (got["answer"], got["status"], got["error"]) == ("ONE+TWO", "unchecked", None)
    assert got["messages"][-1].response_metadata["spent"]["calls"] == 2
    assert len(client.requests) == 2


async def test_the_trajectory_is_in_the_run_folder(tmp_path: Path) -> None:
    agent = Agent(ScriptedClient(echo), run=tmp_path)
    got = await chat_graph(agent, H).compile().ainvoke({"question": "one and two"})
    tree = load_tree(agent.open().store, got["trajectory"])
    assert [node.question for node in tree.walk()] == ["one and two", "one", "two"]
    options = options_of(agent.open().store, got["trajectory"])
    assert options is not None and (options.overseer, options.model) == (DEFAULT_OVERSEER, "base")


async def test_a_plain_question_will_do(tmp_path: Path) -> None:
    graph, _ = made(tmp_path)
    got = await graph.ainvoke({"question": "one and two"})
    assert got["answer"] == "ONE+TWO"
    assert [m.type for m in got["messages"]] == ["human", "ai"]


async def test_a_thread_is_a_conversation_that_h_sees(tmp_path: Path) -> None:
    graph, client = made(tmp_path, InMemorySaver())
    await graph.ainvoke({"question": "one"}, THREAD)
    await graph.ainvoke({"messages": [HumanMessage("two")]}, THREAD)
    got = await graph.ainvoke({"messages": [HumanMessage("three and four")]}, THREAD)
    assert got["answer"] == "THREE+FOUR"
    assert len(got["messages"]) == 6
    asked = [request.messages[-1][1] for request in client.requests]
    assert asked[:1] + asked[2:] == ["one", "three", "four"]
    assert asked[1] == "Conversation so far:\nUser: one\nAssistant: ONE\n\nQuestion:\ntwo"


async def test_events_of_the_tree_and_the_accepted_message_are_streamed(tmp_path: Path) -> None:
    graph, _ = made(tmp_path)
    stream = graph.astream({"question": "one and two"}, stream_mode=["custom", "messages"])
    parts = [part async for part in stream]
    events = [event["event"] for mode, event in parts if mode == "custom"]
    assert events.count("asked") == 2
    assert events[0] == "step" and events[-1] == "answered"
    said = [part[0] for mode, part in parts if mode == "messages"]
    assert [m.content for m in said if isinstance(m, AIMessage)] == ["ONE+TWO"]


async def test_what_copies_say_is_not_streamed_as_messages(tmp_path: Path) -> None:
    """X is a chat model of LangChain, whose tokens LangGraph would stream by itself."""
    agent = Agent(FakeListChatModel(responses=["x"]), run=tmp_path)
    graph = chat_graph(agent, H).compile()
    stream = graph.astream({"question": "one and two"}, stream_mode="messages")
    said = [message async for message, _ in stream if message.type != "human"]
    assert [m.content for m in said] == ["x+x"]


async def test_people_deep_in_the_tree_are_waited_for_across_restarts(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    async def go(put: Any) -> dict[str, Any]:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "c.db")) as saver:
            saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            graph, client = made(tmp_path, saver)
            got = await graph.ainvoke(put, THREAD)
            asked.append([request.messages[-1][1] for request in client.requests])
            return got

    got = await go({"question": "who? and two and why?"})
    waiting = {i.value["form"]["about"]: i.id for i in got["__interrupt__"]}
    assert set(waiting) == {"who?", "why?"}
    got = await go(Command(resume={waiting["why?"]: step_to_json(Answer("because"))}))
    (left,) = got["__interrupt__"]
    assert left.id == waiting["who?"]
    got = await go(Command(resume={left.id: step_to_json(Answer("me"))}))
    assert (got["answer"], got["messages"][-1].content) == ("me+TWO+because",) * 2
    assert asked == [["two"], [], []]


async def test_a_client_chooses_h_x_and_the_limits_by_context(tmp_path: Path) -> None:
    graph, client = made(tmp_path, InMemorySaver())
    put = {"question": "one and two"}
    await graph.ainvoke(put, THREAD, context={"model": "student-r1", "max_tokens": 9})
    assert {(r.model, r.sampling.max_tokens) for r in client.requests} == {("student-r1", 9)}
    other: Any = {"configurable": {"thread_id": "other"}}
    got = await graph.ainvoke(put, other, context={"overseer": "human"})
    assert got["__interrupt__"][0].value["form"]["question"] == "one and two"
    got = await graph.ainvoke(
        {"question": "one and two and three"}, context={"calls": 2, "attempts": 1}, config=THREAD
    )
    assert got["status"] != "failed"
    with pytest.raises(
        UsageError, match="no overseer is called 'nobody'; there are model, plain, human"
    ):
        await graph.ainvoke(
            put, {"configurable": {"thread_id": "3"}}, context={"overseer": "nobody"}
        )


async def test_an_answer_that_was_not_accepted_is_said_to_be_none(tmp_path: Path) -> None:
    graph, _ = made(tmp_path, checker=rejecting("ONE"))
    got = await graph.ainvoke({"question": "one"})
    assert (got["answer"], got["status"]) == ("ONE", "rejected")
    assert got["messages"][-1].content == (
        "No answer was accepted (rejected: the check 'known_wrong' failed). The best so far: ONE"
    )


async def test_messages_that_end_with_no_question_are_refused(tmp_path: Path) -> None:
    graph, _ = made(tmp_path)
    with pytest.raises(UsageError, match="must be the user's question"):
        await graph.ainvoke({"messages": [AIMessage("hello")]})


def test_its_picture_shows_one_level_inside_amplify(tmp_path: Path) -> None:
    graph, _ = made(tmp_path)
    picture = graph.get_graph(xray=True).draw_mermaid()
    for node in ("read", "screen", "oversee", "subtask", "aggregate", "check", "record", "reply"):
        assert f"({node})" in picture


def test_clients_are_told_what_goes_in_and_what_may_be_chosen(tmp_path: Path) -> None:
    graph, _ = made(tmp_path)
    assert set(graph.get_input_jsonschema()["properties"]) == {"messages", "question"}
    told = set(graph.get_output_jsonschema()["properties"])
    assert told == {"messages", "answer", "status", "error", "trajectory"}
    chosen = graph.get_context_jsonschema()["properties"]
    assert {"overseer", "model", "depth", "calls"} <= set(chosen)


async def test_the_graph_that_langgraph_json_names_runs_on_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, httpserver: HTTPServer
) -> None:
    choice = {"message": {"role": "assistant", "content": "Paris"}}
    httpserver.expect_request("/v1/chat/completions").respond_with_json({"choices": [choice]})
    monkeypatch.setenv("OPENAI_BASE_URL", httpserver.url_for("/v1"))
    monkeypatch.setenv("REFLUX_MODEL", "llama")
    monkeypatch.setenv("REFLUX_RUN", str(tmp_path / "chat"))
    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]["reflux"]
    path, variable = named.split(":")
    spec = importlib.util.spec_from_file_location("named_by_langgraph_json", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    graph = getattr(module, variable)
    got = await graph.ainvoke({"messages": [HumanMessage("Capital of France?")]})
    assert got["answer"] == "Paris"
    assert json.loads(httpserver.log[0][0].data)["model"] == "llama"
    assert (tmp_path / "chat" / "traces.db").is_file()
