"""Recording by callback: real LangGraph graphs, and what their trajectories hold."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from reflux.agents.types import ToolCall
from reflux.graphs.external.recorder import Recorder
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory, load
from reflux.graphs.traces.tree import load_tree
from tests.support.graphs_with_tools import Model, add, agent, asking, nested_graph


class Streaming(Model):
    """The same reply, a word at a time."""

    breaks: bool = False

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        for word in ("one ", "two ", "three"):
            if self.breaks and word == "three":
                raise ConnectionError("reset by peer")
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))


@tool
def broken(a: int) -> int:
    """Never works."""
    raise OSError(f"no {a}")


class Library(BaseRetriever):
    """Finds one document."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document("Lima is in Peru", metadata={"page": 3})]


def one_node(node: Callable[..., Any], **options: Any) -> Any:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile(**options)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "app") as recorder:
        yield recorder


def recorded(recorder: Recorder) -> list[Trajectory]:
    """The trajectories that have ended, in that order."""
    recorder.close()
    store = TraceStore(recorder.run / "traces.db")
    found = [load(store, id) for id in recorder.trajectories]
    for id in recorder.trajectories:
        load_tree(store, id)
    store.close()
    return [each for each in found if each is not None]


def test_calls_of_an_agent_with_their_nodes_tools_and_replies(recorder: Recorder) -> None:
    config: Any = {
        "callbacks": [recorder], "configurable": {"thread_id": "t"}, "tags": ["beta"],
        "metadata": {"user": "u1"},
    }  # fmt: skip
    agent().invoke(asking("1 and 2?"), config)
    (one,) = recorded(recorder)
    assert [(c.step, c.kind, c.node, c.path) for c in one.calls] == [
        (0, "model", "agent", ""), (1, "tool", "tools", ""), (2, "model", "agent", ""),
    ]  # fmt: skip
    first, called, last = one.calls
    assert first.messages == ({"role": "user", "content": "1 and 2?"},)
    assert first.tools == (convert_to_openai_tool(add),)
    assert first.reply.tool_calls == (ToolCall("c1", "add", '{"a": 1, "b": 2}'),)
    assert (first.reply.prompt_tokens, first.reply.completion_tokens) == (3, 4)
    assert (called.model, called.arguments, called.reply.text) == ("add", '{"a": 1, "b": 2}', "3")
    arguments = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert last.messages[1:] == (
        {"role": "assistant", "content": "",
         "tool_calls": [{"id": "c1", "type": "function", "function": arguments}]},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    )  # fmt: skip
    assert (last.reply.text, last.model, last.reply.finish_reason) == ("it is 3", "fake-1", "stop")
    assert (one.text, one.source, one.tags) == ("1 and 2?", "callback", ("beta",))
    assert one.metadata == {"user": "u1", "thread_id": "t"}
    assert one.outcome is not None
    assert (one.outcome.answer, one.outcome.status) == ("it is 3", "unchecked")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_every_way_to_run_a_graph_records_the_same(recorder: Recorder, way: str) -> None:
    graph, config = agent(Streaming()), {"callbacks": [recorder]}

    async def run() -> None:
        match way:
            case "astream":
                async for _ in graph.astream(asking("a"), config, stream_mode="messages"):
                    pass
            case "abatch":
                await graph.abatch([asking("a"), asking("b")], config)
            case _:
                await graph.ainvoke(asking("a"), config)

    match way:
        case "invoke":
            graph.invoke(asking("a"), config)
        case "stream":
            list(graph.stream(asking("a"), config, stream_mode="messages"))
        case "batch":
            graph.batch([asking("a"), asking("b")], config)
        case _:
            asyncio.run(run())
    found = sorted(recorded(recorder), key=lambda each: each.text)
    assert [each.text for each in found] == (["a", "b"] if "batch" in way else ["a"])
    for each in found:
        replies = [(call.node, call.kind) for call in each.calls]
        streams = "stream" in way  # The model streams no tool calls.
        assert replies == ([("agent", "model")] if streams else
                           [("agent", "model"), ("tools", "tool"), ("agent", "model")])  # fmt: skip
        assert each.calls[0].reply.text == ("one two three" if streams else "")
    assert recorder.lost == 0


def test_nested_graphs_and_parallel_branches_are_a_tree(recorder: Recorder) -> None:
    nested_graph().invoke(asking("all"), {"callbacks": [recorder]})
    (one,) = recorded(recorder)
    assert sorted(call.step or 0 for call in one.calls) == list(range(10))
    branches = {
        path: [c for c in one.calls if c.path == path] for path in {c.path for c in one.calls}
    }
    assert sorted(branches) == ["", "/0.2.0", "/0.2.1", "/0.2.2"]
    assert [call.node for call in branches.pop("")] == ["plan"]
    texts = {calls[0].messages[0]["content"] for calls in branches.values()}
    assert texts == {"part 0", "part 1", "part 2"}
    for calls in branches.values():
        assert [call.node for call in calls] == ["agent", "tools", "agent"]
        assert calls[-1].messages[0] == calls[0].messages[0]  # None is of another branch.
    store = TraceStore(recorder.run / "traces.db")
    assert [child.path for child in load_tree(store, one.id).children] == sorted(branches)
    store.close()


def test_an_interrupt_is_no_failure_and_its_resumption_names_it(recorder: Recorder) -> None:
    model = Model()

    def node(state: MessagesState) -> Any:
        approved = interrupt("send it?")
        return {"messages": [model.invoke(f"approved: {approved}")]}

    graph = one_node(node, checkpointer=InMemorySaver())
    config: Any = {"callbacks": [recorder], "configurable": {"thread_id": "t"}}
    graph.invoke(asking("write"), config)
    graph.invoke(Command(resume="yes"), config)
    first, second = recorded(recorder) if len(recorder.trajectories) == 2 else (None, None)
    assert first is not None and second is not None
    assert first.outcome is not None and second.outcome is not None
    assert (first.outcome.status, first.text) == ("unfinished", "write")
    assert first.outcome.error == 'waits for a human: ["send it?"]'
    assert second.metadata["resumes"] == first.id
    assert (second.outcome.answer, second.text) == ("re: approved: yes", "approved: yes")


def test_failures_are_recorded_without_secrets_and_raised_unchanged(recorder: Recorder) -> None:
    graph = agent(Model(fails=True))
    with pytest.raises(ValueError, match="is refused"):
        graph.invoke(asking("a"), {"callbacks": [recorder]})
    with pytest.raises(ConnectionError):
        list(Streaming(breaks=True).stream("b", {"callbacks": [recorder]}))
    with pytest.raises(OSError, match="no 7"):
        broken.invoke({"a": 7}, {"callbacks": [recorder]})
    refused, cut, tool_failed = recorded(recorder)
    assert refused.calls[0].error == "ValueError: the key [redacted] is refused"
    assert refused.outcome is not None and refused.outcome.status == "failed"
    assert (cut.calls[0].reply.text, cut.calls[0].error) == (
        "one two ", "ConnectionError: reset by peer",
    )  # fmt: skip
    assert tool_failed.calls[0].error == "OSError: no 7"


def test_a_stream_that_its_reader_leaves_is_stopped(recorder: Recorder) -> None:
    stream = Streaming().stream("a", {"callbacks": [recorder]})
    assert next(stream).text == "one "
    stream.close()  # type: ignore[attr-defined]
    (one,) = recorded(recorder)
    assert one.outcome is not None and one.outcome.status == "stopped"
    assert one.calls[0].reply.text.startswith("one")


def test_retrievals_plain_models_and_chains(recorder: Recorder) -> None:
    first: Any = RunnableLambda(lambda found: cast(Any, found)[0].page_content)
    chain = Library() | first | FakeListLLM(responses=["Peru"])
    chain.invoke("where is Lima?", {"callbacks": [recorder], "run_name": "geo"})
    (one,) = recorded(recorder)
    found, said = one.calls
    assert (found.kind, found.model, json.loads(found.arguments)) == (
        "tool", "Library", {"query": "where is Lima?"},
    )  # fmt: skip
    assert json.loads(found.reply.text) == [{"text": "Lima is in Peru", "metadata": {"page": 3}}]
    assert (said.messages, said.reply.text) == (
        ({"role": "user", "content": "Lima is in Peru"},), "Peru",
    )  # fmt: skip
    assert (one.name, one.text) == ("geo", "where is Lima?")


def test_content_parts_and_thoughts_are_kept(recorder: Recorder) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    parts: Any = [{"type": "text", "text": "what is it?"}, image]
    Model().invoke([HumanMessage(parts)], {"callbacks": [recorder]})
    (one,) = recorded(recorder)
    assert one.calls[0].messages == ({"role": "user", "content": parts},)
    assert one.text == "what is it?"


def test_many_threads_and_loops_share_one_recorder(recorder: Recorder) -> None:
    graph = agent()

    def ask(number: int) -> None:
        if number % 2:
            graph.invoke(asking(str(number)), {"callbacks": [recorder]})
        else:
            asyncio.run(graph.ainvoke(asking(str(number)), {"callbacks": [recorder]}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    found = recorded(recorder)
    assert sorted(int(each.text) for each in found) == list(range(24))
    assert all([call.step for call in each.calls] == [0, 1, 2] for each in found)


def test_a_recorder_that_cannot_write_says_so_once_and_raises_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    recorder = Recorder(tmp_path / "file")
    graph = agent()
    for _ in range(2):
        assert (
            graph.invoke(asking("a"), {"callbacks": [recorder]})["messages"][-1].text == "it is 3"
        )
    said = capfd.readouterr().err
    assert said.count("reflux:") == 1 and "file" in said and "the graph goes on" in said
    assert recorder.lost == 8  # Three calls and an end, twice.


def test_what_is_recorded_survives_an_exit_without_a_close(tmp_path: Path) -> None:
    run = tmp_path / "app"
    if (child := os.fork()) == 0:  # Without pytest's own exit handlers.
        recorder = Recorder(run)
        agent().invoke(asking("a"), {"callbacks": [recorder]})
        import atexit

        atexit._run_exitfuncs()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store = TraceStore(run / "traces.db")
    ((count,),) = store.select("SELECT count(*) FROM calls")
    store.close()
    assert count == 3
