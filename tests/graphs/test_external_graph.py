"""Graphs that are not ours: how they are found, asked, recorded, and what they may get wrong."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from reflux.agents.clients.retries import RetryPolicy
from reflux.agents.errors import MissingError, RefluxError, ReplayError, UsageError
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.answers import Ledger, confidence
from reflux.graphs.evals.eval_task import FileEvalTask
from reflux.graphs.evals.questions.files import QuestionFile, Row
from reflux.graphs.evals.runner import EvalRunner, SystemSpec
from reflux.graphs.external.external_graph import ExternalGraph
from reflux.graphs.external.user_graph import Meter, UserGraph, load_graph
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import load
from reflux.graphs.traces.tree import load_tree

ASKED = Origin("run", 0, "graph", "any", "file")


class Asking(TypedDict, total=False):
    question: str
    answer: Any
    confidence: float


def one_node(node: Any, state: Any = Asking) -> Any:
    """A graph of a single node, compiled."""
    graph = StateGraph(state)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


def foreign(store: TraceStore, runnable: Any, digest: str = "graph:1", **other: Any):
    context = AmplifyContext(RecordedClient(None, store), "mine:graph", (), **other)  # type: ignore[arg-type]
    graph = UserGraph("mine:graph", runnable, digest)
    return ExternalGraph(context, graph, RetryPolicy(backoff=0.001))


async def answer(store: TraceStore, runnable: Any, **other: Any):
    (outcome,) = await answer_all(foreign(store, runnable, **other), ASKED, ["ab"])
    return outcome


CALL = {"name": "look_up", "args": {}, "id": "1", "type": "tool_call"}


class Usage(FakeMessagesListChatModel):
    """A chat model that tells what it used."""


def talking(*texts: str) -> Usage:
    return Usage(
        responses=[
            AIMessage(
                text, usage_metadata={"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
            )
            for text in texts
        ]
    )


async def test_a_graph_that_takes_a_question_is_given_it_and_its_answer_is_read(
    store: TraceStore,
) -> None:
    graph = one_node(lambda state: {"answer": state["question"].upper(), "confidence": 0.75})
    assert (await answer(store, graph))["answer"] == "AB"
    root = ASKED.question_id("ab")
    tree = load_tree(store, root)
    assert (tree.question, tree.answer, tree.status) == ("ab", "AB", "unchecked")
    assert tree.answered_by == "mine:graph"
    assert confidence(store, root, tree) == 0.75


async def test_a_graph_of_messages_is_given_one_and_its_last_is_read(store: TraceStore) -> None:
    model = talking("a", "last")

    async def node(state: MessagesState) -> dict[str, Any]:
        first = await model.ainvoke(state["messages"])
        assert isinstance(state["messages"][0], HumanMessage)
        return {"messages": [first, await model.ainvoke([*state["messages"], first])]}

    outcome = await answer(store, one_node(node, MessagesState))
    assert outcome["answer"] == "last"
    assert outcome["spent"] == {"calls": 2, "cached": 0, "tokens": 18}
    spent = Ledger(store, {}).of(ASKED.question_id("ab"))
    assert (spent["calls"], spent["tokens"]) == (2, 18)
    assert spent["seconds"] > 0


async def test_usage_in_messages_is_believed_where_no_call_was_heard_of(store: TraceStore) -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        usage = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}
        return {"messages": [AIMessage("said", usage_metadata=usage)]}  # type: ignore[arg-type]

    outcome = await answer(store, one_node(node, MessagesState))
    assert outcome["spent"] == {"calls": 1, "cached": 0, "tokens": 6}


@pytest.mark.parametrize(
    ("runnable", "said"),
    [
        (RunnableLambda(lambda question: f"{question}!"), "ab!"),
        (RunnableLambda(lambda question: {"answer": 7}), "7"),
        (talking("hello"), "hello"),
    ],
    ids=("text", "number", "chat model"),
)
async def test_any_other_runnable_is_asked_too(store: TraceStore, runnable: Any, said: str) -> None:
    assert (await answer(store, runnable))["answer"] == said


@pytest.mark.parametrize(
    ("text", "said", "status"),
    [
        ("<think>Lima? Cusco?</think>Lima", "Lima", "unchecked"),
        ("<think>Lima? Cusco", "", "truncated"),
        ("write <think> first", "write <think> first", "unchecked"),
    ],
)
async def test_reasoning_is_no_part_of_an_answer(
    store: TraceStore, text: str, said: str, status: str
) -> None:
    outcome = await answer(store, one_node(lambda state: {"answer": text}))
    assert (outcome["answer"], outcome["status"]) == (said, status)


LONG = "The capital of Peru is Lima, which lies on the coast and"


@pytest.mark.parametrize(
    ("text", "metadata", "status"),
    [
        (LONG, {"finish_reason": "length"}, "truncated"),
        (LONG, {"stop_reason": "max_tokens"}, "truncated"),
        (LONG, {"done_reason": "length"}, "truncated"),
        (LONG, {"finish_reason": "MAX_TOKENS"}, "truncated"),
        (LONG, {"stopReason": "max_tokens"}, "truncated"),
        (LONG, {"incomplete_details": {"reason": "max_output_tokens"}}, "truncated"),
        (LONG, {"incomplete_details": None, "finish_reason": "stop"}, "unchecked"),
        ("<think>Lima?</think>" + LONG, {"finish_reason": "length"}, "truncated"),
        ("", {"finish_reason": "length"}, "truncated"),
        ("", {"finish_reason": "stop"}, "rejected"),
    ],
)
@pytest.mark.parametrize(
    "graph",
    [
        lambda model: model,
        lambda model: model | RunnableLambda(StrOutputParser().invoke),
        lambda model: model | StrOutputParser() | (lambda text: {"answer": f"So: {text}"}),
        lambda model: RunnableLambda(lambda _: {"messages": [model.responses[0]]}),
    ],
    ids=("message", "text", "within a text", "message without a call"),
)
async def test_an_answer_that_the_token_limit_cut_is_truncated(
    store: TraceStore, graph: Any, text: str, metadata: dict[str, Any], status: str
) -> None:
    model = Usage(responses=[AIMessage(text, response_metadata=metadata)])
    outcome = await answer(store, graph(model))
    if not text and outcome["answer"]:  # "So: " and nothing: no reply that can be known.
        return
    assert outcome["status"] == status


async def test_an_earlier_reply_that_was_cut_is_not_the_answer(store: TraceStore) -> None:
    drafts: list[Any] = [
        AIMessage(LONG, response_metadata={"finish_reason": "length"}),
        AIMessage("Lima"),
    ]
    model = Usage(responses=drafts)

    async def node(state: Asking) -> Asking:
        await model.ainvoke("draft")
        return {"answer": (await model.ainvoke("final")).text}

    assert (await answer(store, one_node(node)))["status"] == "unchecked"


async def test_an_answer_that_is_recorded_is_not_asked_for_again(store: TraceStore) -> None:
    first = await answer(store, one_node(lambda state: {"answer": "x", "confidence": 0.5}))
    again = await answer(store, one_node(lambda state: pytest.fail("asked again")))
    assert again == first
    with pytest.raises(ReplayError, match="another graph"):
        await answer(store, RunnableLambda(str), digest="graph:2")


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"answer": str.upper}, "its answer is of type method_descriptor, no text that could"),
        ({"answer": None}, "its answer is of type NoneType"),
        ({"answer": float("nan")}, "its answer is of type float"),
        ({"topic": 1, "jokes": "a"}, "its output holds topic, jokes, and none is known to be the"),
        ({"messages": [AIMessage("", tool_calls=[CALL])]}, "calls look_up and answers no"),
        ({}, "holds nothing"),
        (None, "its answer is of type NoneType"),
    ],
)
async def test_what_cannot_be_compared_is_a_failed_answer(
    store: TraceStore, output: Any, says: str
) -> None:
    outcome = await answer(store, RunnableLambda(lambda _: output))
    assert (outcome["status"], outcome["answer"]) == ("failed", None)
    assert says in (outcome["error"] or "")


async def test_a_graph_that_waits_for_a_person_fails(store: TraceStore) -> None:
    outcome = await answer(store, one_node(lambda state: {"answer": interrupt("you?")}))
    assert outcome["status"] == "failed"


async def test_a_graph_that_takes_too_long_fails(store: TraceStore) -> None:
    async def node(state: Asking) -> Asking:
        await asyncio.sleep(60)
        return {"answer": "late"}

    outcome = await answer(store, one_node(node), limits=Limits(seconds=0.05))
    assert outcome["status"] == "failed"
    assert outcome["error"] == "no answer in 0.05 s; --time-limit sets the limit"


async def test_two_who_ask_the_same_at_once_have_one_answer(store: TraceStore) -> None:
    """As two evaluations on one run folder do."""
    both_there, number = asyncio.Barrier(2), count()

    async def ask(question: str) -> str:
        mine = next(number)
        await both_there.wait()
        return f"answer {mine}"

    system = foreign(store, RunnableLambda(ask))
    systems = [system, system]
    found = await asyncio.gather(*(answer_all(system, ASKED, ["ab"]) for system in systems))
    answers = {outcome["answer"] for (outcome,) in found}
    assert answers in ({"answer 0"}, {"answer 1"})
    assert {outcome["status"] for (outcome,) in found} == {"unchecked"}


async def test_an_error_that_is_no_text_is_recorded_as_far_as_it_is(store: TraceStore) -> None:
    async def ask(question: str) -> str:
        raise ValueError("half \ud800 a pair")

    outcome = await answer(store, RunnableLambda(ask))
    assert outcome["status"] == "failed"
    assert re.fullmatch(r"ValueError: half \? a pair \(\w+\.py, line \d+\)", outcome["error"] or "")


class Odd(BaseException):
    """No Exception, as pytest's own outcomes are none."""


@pytest.mark.parametrize("raised", [Odd("odd"), asyncio.CancelledError()])
async def test_whatever_a_graph_raises_is_a_missing_answer(
    store: TraceStore, raised: BaseException
) -> None:
    async def ask(question: str) -> str:
        raise raised

    outcome = await answer(store, RunnableLambda(ask))
    assert (outcome["status"], outcome["answer"]) == ("failed", None)
    assert type(raised).__name__ in (outcome["error"] or "")


async def test_blocking_graphs_do_not_wait_for_one_another(store: TraceStore) -> None:
    """More of them than a pool of threads has: each one's seconds are its own."""
    all_there = threading.Barrier(40)

    def node(state: Asking) -> Asking:
        all_there.wait(60)
        return {"answer": "x"}

    system = foreign(store, one_node(node), limits=Limits(seconds=60))
    questions = [f"q{number}" for number in range(40)]
    outcomes = await answer_all(system, ASKED, questions, max_concurrency=40)
    assert [outcome["status"] for outcome in outcomes] == ["unchecked"] * 40


def runner(*questions: str) -> EvalRunner:
    rows = tuple(Row(q, ("x",), i) for i, q in enumerate(questions, start=1))
    return EvalRunner(FileEvalTask(QuestionFile(Path("f.jsonl"), rows), "exact"), (1,), "run")


async def run_system(store: TraceStore, node: Any, *questions: str) -> list[str]:
    """The status of each question."""
    system = foreign(store, one_node(node))
    spec = SystemSpec("mine:graph", "mine:graph", "1", lambda _: system)
    (result,) = (await runner(*questions).run_system(spec)).seed_results
    ids = map(result.origin.question_id, result.questions)
    return [(store.how_ended(id) or {})["status"] for id in ids]


async def test_a_failure_that_may_pass_is_never_scored(store: TraceStore) -> None:
    down = [True]

    def node(state: Asking) -> Asking:
        if down[0] and state.get("question") == "b":
            raise ConnectionError("refused")
        if down[0]:
            time.sleep(0.2)  # Its answer comes after the failure, and does not make up for it.
        return {"answer": "x"}

    with pytest.raises(RefluxError, match=r"1 of 2 questions failed: .* refused; is what it asks"):
        await run_system(store, node, "a", "b")
    down[0] = False
    assert await run_system(store, node, "a", "b") == ["unchecked", "unchecked"]


async def test_a_failure_of_the_graphs_own_is_an_answer_that_is_missing(store: TraceStore) -> None:
    def node(state: Asking) -> Asking:
        if state.get("question") == "b":
            raise ValueError("no idea")
        return {"answer": "x"}

    assert await run_system(store, node, "a", "b") == ["unchecked", "failed"]


async def test_a_graph_that_never_answers_is_broken_and_not_wrong(store: TraceStore) -> None:
    def node(state: Asking) -> Asking:
        raise ValueError("no idea")

    with pytest.raises(RefluxError, match=r"failed on all 2 questions, .* ValueError: no idea"):
        await run_system(store, node, "a", "b")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with modules of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    (tmp_path / "mine_of_test.py").write_text(
        "from langgraph.graph import StateGraph, START\n"
        "graph = StateGraph(dict)\n"
        "graph.add_node('n', lambda state: {'answer': 'x'})\n"
        "graph.add_edge(START, 'n')\n"
        "number = 7\n"
        "def two(a, b):\n"
        "    return a\n"
        "class inner:\n"
        "    ask = staticmethod(lambda question: question + '?')\n"
    )
    (tmp_path / "broken_of_test.py").write_text("1 / 0\n")
    (tmp_path / "ending_of_test.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "empty_of_test.py").write_text(
        "from langgraph.graph import StateGraph\n"
        "graph = StateGraph(dict)\n"
        "class Odd:\n"
        "    def __getattr__(self, name):\n"
        "        raise RuntimeError('odd')\n"
        "odd = Odd()\n"
    )
    (tmp_path / "lacking_of_test.py").write_text("import not_installed_of_test\n")
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


async def test_a_graph_is_found_by_module_and_by_file(folder: Path, store: TraceStore) -> None:
    for name in ("mine_of_test:graph", "mine_of_test.py:graph", f"{folder}/mine_of_test.py:graph"):
        assert await load_graph(name).ask("what", 9, Meter()) == ("x", None)
    assert await load_graph("mine_of_test:inner.ask").ask("what", 9, Meter()) == ("what?", None)


def test_another_file_under_the_same_name_has_another_digest(folder: Path) -> None:
    first = load_graph("mine_of_test.py:graph").digest
    assert load_graph("mine_of_test.py:graph").digest == first
    with (folder / "mine_of_test.py").open("a") as file:
        file.write("# changed\n")
    assert load_graph("mine_of_test.py:graph").digest != first


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("nowhere_of_test:graph", UsageError, "there is no module 'nowhere_of_test'"),
        ("nowhere_of_test.py:graph", UsageError, "there is no file nowhere_of_test.py"),
        ("mine_of_test:grph", UsageError, "has no 'grph'"),
        ("mine_of_test:two", UsageError, "does not take one question: its parameters are a, b"),
        ("mine_of_test:number", UsageError, "is of type int; it must be a LangGraph graph"),
        (":graph", UsageError, "names no object"),
        ("broken_of_test:graph", RefluxError, "ZeroDivisionError"),
        ("ending_of_test:graph", RefluxError, "ends the program when it is imported: sys.exit(0)"),
        ("ending_of_test.py:graph", RefluxError, "ends the program when it is imported"),
        ("empty_of_test:graph", UsageError, "cannot be compiled: ValueError"),
        ("empty_of_test:odd.graph", RefluxError, "RuntimeError('odd')"),
        ("..of_test:graph", UsageError, "module:object, from the top"),
        ("lacking_of_test:graph", MissingError, "needs not_installed_of_test"),
    ],
)
async def test_a_graph_that_cannot_be_loaded_is_told(
    folder: Path, name: str, kind: type[RefluxError], says: str
) -> None:
    with pytest.raises(kind) as failure:
        await load_graph(name).open()
    assert says in str(failure.value)
    assert type(failure.value) is kind


async def test_a_graph_whose_keys_do_not_tell_is_refused(store: TraceStore) -> None:
    class Other(TypedDict):
        topic: str
        style: str

    graph = one_node(lambda state: state, Other)
    with pytest.raises(UsageError, match=r"mine:graph takes topic, style: name the one .* --input"):
        await answer(store, graph)


@pytest.mark.parametrize("state", [Asking, MessagesState, dict])
async def test_the_input_follows_the_graphs_own_schema(store: TraceStore, state: Any) -> None:
    seen: list[set[str]] = []

    def node(given: Any) -> dict[str, Any]:
        seen.append({key for key in ("question", "messages") if key in given})
        return {"messages": [AIMessage("x")]} if state is MessagesState else {"answer": "x"}

    assert (await answer(store, one_node(node, state)))["answer"] == "x"
    wanted = {Asking: {"question"}, MessagesState: {"messages"}, dict: {"question", "messages"}}
    assert seen == [wanted[state]]


async def test_a_row_of_the_log_tells_what_was_asked(store: TraceStore) -> None:
    await answer(store, one_node(lambda state: {"answer": "x"}))
    (row,) = store.select("SELECT * FROM calls")
    assert (row["kind"], row["role"], row["model"]) == ("graph", "graph", "mine:graph")
    assert json.loads(row["messages"]) == [{"role": "user", "content": "ab"}]
    assert json.loads(row["completion"])["answer"] == "x"


async def test_the_calls_of_a_graph_are_a_trajectory_of_their_own(tmp_path: Path) -> None:
    model, tries = talking("Lima"), count()

    async def node(state: Asking) -> Asking:
        reply = await model.ainvoke(state.get("question", ""))
        if next(tries) == 0:
            raise ConnectionError("429 rate limit")
        return {"answer": reply.text}

    store = TraceStore(tmp_path / "traces.db")
    outcome = await answer(store, one_node(node))
    assert outcome["answer"] == "Lima"
    graph = list(store.select("SELECT id FROM questions WHERE source IS NULL"))
    found = [
        row["id"] for row in store.select("SELECT id FROM questions WHERE source = 'callback'")
    ]
    failed, done = sorted((load(store, id) for id in found), key=lambda each: each.created)  # type: ignore[union-attr]
    assert failed is not None and done is not None
    assert [each.calls[0].node for each in (failed, done)] == ["node", "node"]
    assert failed.outcome is not None and failed.outcome.status == "failed"
    assert done.outcome is not None and done.outcome.answer == "Lima"
    assert done.metadata["answers"] == graph[0]["id"] and done.text == "ab"
    store.close()
