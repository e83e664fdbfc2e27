"""How users' graphs run: apart from each other, within limits, tried again, and asked once."""

import asyncio
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict
from unittest.mock import patch

import httpx
import openai
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import interrupt

from reflux.agents.clients.retries import RetryPolicy
from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.eval_task import FileEvalTask
from reflux.graphs.evals.questions.files import QuestionFile, Row
from reflux.graphs.evals.runner import EvalRunner, SystemSpec
from reflux.graphs.external import graph_host, user_graph, user_sources
from reflux.graphs.external.external_graph import ExternalGraph
from reflux.graphs.external.graph_values import GraphOptions
from reflux.graphs.external.user_code import Project
from reflux.graphs.external.user_graph import Meter, UserGraph, load_graph
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from tests.graphs.test_user_projects import write

ASKED = Origin("run", 0, "graph", "any", "file")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; its modules are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if Project.active is not None:
        Project.active.deactivate()


class State(TypedDict, total=False):
    question: str
    answer: str


def one_node(node: Any, state: Any = State, **compiled: Any) -> Any:
    graph = StateGraph(state)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile(**compiled)


def system_of(
    store: TraceStore, value: Any, *, seconds: float = 30, **options: Any
) -> ExternalGraph:
    context = AmplifyContext(
        RecordedClient(None, store),  # type: ignore[arg-type]
        "mine:graph",
        (),
        limits=Limits(seconds=seconds),
    )
    graph = UserGraph("mine:graph", value, "graph:1", GraphOptions(**options))
    return ExternalGraph(context, graph, RetryPolicy(backoff=0.001))


async def answers(store: TraceStore, value: Any, *questions: str, **options: Any) -> list[Any]:
    return await answer_all(system_of(store, value, **options), ASKED, questions or ["ab"])


@pytest.mark.parametrize(
    ("compiled", "says"),
    [
        ({"checkpointer": InMemorySaver()}, "it waits for human input ('you?')"),
        ({}, "it waits for human input ('you?')"),
        (
            {"checkpointer": InMemorySaver(), "interrupt_before": ["node"]},
            "it waits for human input (it stops before node)",
        ),
    ],
    ids=("checkpointer", "none", "compiled in"),
)
async def test_a_graph_that_waits_for_a_human_says_so(
    store: TraceStore, compiled: dict[str, Any], says: str
) -> None:
    graph = one_node(lambda state: {"answer": interrupt("you?")}, **compiled)
    (outcome,) = await answers(store, graph)
    assert outcome["status"] == "failed"
    assert says in outcome["error"]
    assert "for which an evaluation cannot wait" in outcome["error"]


async def test_a_store_holds_for_each_question_what_it_held_at_first(store: TraceStore) -> None:
    memory = InMemoryStore()
    memory.put(("facts",), "mark", {"text": "!"})

    def node(state: State, runtime: Runtime) -> State:
        assert runtime.store is not None
        facts = runtime.store.search(("facts",))
        runtime.store.put(("facts",), state["question"], {"text": "?"})
        return {"answer": state["question"] + "".join(fact.value["text"] for fact in facts)}

    found = await answers(store, one_node(node, store=memory), "a", "b")
    assert [outcome["answer"] for outcome in found] == ["a!", "b!"]
    assert [item.key for item in memory.search(("facts",))] == ["mark"]


RESPONSE = httpx.Response(429, request=httpx.Request("POST", "http://x"), text="busy")


class RateLimitError(Exception):
    """By its name alone."""


def openai_error() -> Exception:
    import httpx2

    response = httpx2.Response(429, request=httpx2.Request("POST", "http://x"))
    return openai.RateLimitError("slow down", response=response, body=None)


def caused() -> Exception:
    error = ValueError("the model failed")
    error.__cause__ = RateLimitError("slow down")
    return error


BUSY = {
    "openai": openai_error(),
    "httpx": httpx.HTTPStatusError("busy", request=RESPONSE.request, response=RESPONSE),
    "name": RateLimitError("slow down"),
    "text": RuntimeError("Error code: 429 - try again"),
    "cause": caused(),
    "group": ExceptionGroup("tasks", [ValueError("other"), RateLimitError("slow down")]),
    "connection": ConnectionResetError("gone"),
}


@pytest.mark.parametrize("error", BUSY.values(), ids=BUSY)
async def test_what_may_pass_is_tried_again_and_counted(
    store: TraceStore, error: Exception
) -> None:
    tries = itertools.count(1)

    def node(state: State) -> State:
        if next(tries) < 3:
            raise error
        return {"answer": "x"}

    (outcome,) = await answers(store, one_node(node))
    assert (outcome["answer"], outcome["status"]) == ("x", "unchecked")
    (row,) = store.select("SELECT retries FROM calls")
    assert len(json.loads(row["retries"])) == 2


async def test_a_wait_that_the_time_limit_does_not_allow_ends_at_once(store: TraceStore) -> None:
    headers = {"retry-after": "86400"}
    response = httpx.Response(429, request=RESPONSE.request, headers=headers)

    def node(state: State) -> State:
        raise httpx.HTTPStatusError("busy", request=RESPONSE.request, response=response)

    start = time.monotonic()
    system = system_of(store, one_node(node))
    outcome = await system.answer("ab", ASKED.question_id("ab"))
    assert time.monotonic() - start < 20
    assert "the next try would be in 86400 s, after its 30 s" in (outcome["error"] or "")
    with pytest.raises(EndpointError, match="86400"):  # It is no answer of the graph's.
        await answer_all(system, ASKED, ["ab"], complete=True)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What blocks waits for it; a blocked event loop is known soon."""
    monkeypatch.setattr(graph_host, "BEAT_SECONDS", 0.3)
    monkeypatch.setattr(user_graph, "BEAT_SECONDS", 0.3)
    event = threading.Event()
    yield event
    event.set()


async def forever_async(released: threading.Event) -> None:
    await asyncio.to_thread(released.wait, 60)


async def stubborn(released: threading.Event) -> None:
    while not released.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


async def blocking(released: threading.Event) -> None:
    released.wait(60)


async def exiting(released: threading.Event) -> None:
    raise SystemExit(3)


async def recursing(released: threading.Event) -> None:
    graph = StateGraph(State)
    graph.add_node("again", lambda state: {"answer": "x"})
    graph.add_edge(START, "again")
    graph.add_edge("again", "again")
    await graph.compile().ainvoke({"question": "x"}, {"recursion_limit": 5})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endless", "says"),
    [
        (forever_async, "no answer in 0.5 s"),
        (stubborn, "no answer in 0.5 s, and it does not stop when told to"),
        (blocking, "it blocks its event loop; await what takes long"),
        (exiting, "it called sys.exit(3); raise an error or return instead"),
        (recursing, "GraphRecursionError: Recursion limit of 5 reached"),
    ],
)
async def test_an_endless_question_fails_and_the_others_are_answered(
    store: TraceStore, released: threading.Event, endless: Any, says: str
) -> None:
    async def node(state: State) -> State:
        if state.get("question") == "endless":
            await endless(released)
        return {"answer": "x"}

    names = ["a", "b", "endless", "c", "d", "e", "f", "g", "h"]
    found = await answers(store, one_node(node), *names, seconds=0.5)
    assert [
        outcome["answer"] or outcome["error"] for outcome in found if outcome is not found[2]
    ] == ["x"] * 8
    assert says in found[2]["error"]


async def test_a_blocked_thread_does_not_block_the_others(
    store: TraceStore, released: threading.Event
) -> None:
    def node(state: State) -> State:
        if state.get("question") == "endless":
            while not released.is_set():
                time.sleep(0.01)
        return {"answer": "x"}

    first, *others = await answers(store, one_node(node), "endless", "a", "b", seconds=0.5)
    assert first["error"] == "no answer in 0.5 s; --time-limit sets the limit"
    assert [outcome["answer"] for outcome in others] == ["x", "x"]


async def test_streamed_calls_within_a_graph_count(store: TraceStore) -> None:
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    model = GenericFakeChatModel(
        messages=itertools.repeat(AIMessage("a b", usage_metadata=usage))  # type: ignore[arg-type]
    )

    async def node(state: MessagesState) -> dict[str, Any]:
        chunks = [chunk async for chunk in model.astream(state["messages"])]
        assert len(chunks) > 1
        whole = AIMessageChunk("")
        for chunk in chunks:
            whole += chunk
        return {"messages": [whole, await model.ainvoke("x")]}

    (outcome,) = await answers(store, one_node(node, MessagesState))
    assert outcome["spent"]["calls"] == 2
    assert outcome["spent"]["tokens"] >= 9


async def digests(folder: Path, name: str = "proj/app.py:graph") -> str:
    return load_graph(name).digest


PROJECT = {
    "proj/pyproject.toml": "",
    "proj/app.py": "from pkg import part\nimport httpx\ndef graph(question):\n"
    "    from late import mark\n    return part.loud(question) + mark\n",
    "proj/late.py": "mark = '!'\n",
    "proj/src/pkg/__init__.py": "",
    "proj/src/pkg/part.py": "from .deep import upper\ndef loud(text):\n    return upper(text)\n",
    "proj/src/pkg/deep.py": "def upper(text):\n    return text.upper()\n",
    "proj/src/pkg/other.py": "x = 1\n",
    "proj/other.py": "x = 1\n",
}


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("app.py", True),
        ("late.py", True),
        ("src/pkg/__init__.py", True),
        ("src/pkg/deep.py", True),
        ("src/pkg/other.py", False),
        ("other.py", False),
        ("new.py", False),
    ],
)
async def test_the_digest_is_over_what_the_graph_imports(
    folder: Path, file: str, counts: bool
) -> None:
    write(folder, PROJECT)
    first = await digests(folder)
    assert await digests(folder) == first
    with (folder / "proj" / file).open("a") as text:
        text.write("# changed\n")
    assert (await digests(folder) != first) is counts


async def test_the_digest_is_over_versions_and_options_and_not_over_the_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, PROJECT)
    first = load_graph("proj/app.py:graph").digest
    assert load_graph("proj/app.py:graph", GraphOptions(context={"a": 1})).digest != first
    shutil.move(folder / "proj", folder / "moved" / "proj")
    monkeypatch.chdir(folder / "moved")
    assert load_graph("proj/app.py:graph").digest == first
    monkeypatch.setattr(user_sources, "_version", lambda package: f"another {package}")
    assert load_graph("proj/app.py:graph").digest != first


@pytest.mark.parametrize(
    ("variable", "counts"), [("MODEL_OF_TESTS", True), ("TESTS_API_KEY", False)]
)
def test_the_digest_is_over_variables_of_langgraph_json_but_keys(
    folder: Path, variable: str, counts: bool
) -> None:
    config = {"graphs": {"agent": "./app.py:graph"}, "env": ".env"}
    write(folder, {"langgraph.json": json.dumps(config), "app.py": "graph = str.upper\n"})
    digests: list[str] = []
    for value, set_before in (("a", {}), ("b", {}), ("b", {variable: "a"})):
        write(folder, {".env": f"{variable}={value}\n"})
        with patch.dict(os.environ, set_before):
            digests.append(load_graph("langgraph.json").digest)
    assert (digests[0] != digests[1]) is counts
    assert digests[0] == digests[2]  # What is set stays.


async def test_projects_do_not_see_each_other(folder: Path) -> None:
    helper = "seen = []\ndef mark(text):\n    seen.append(text)\n    return '{}' + str(len(seen))\n"
    app = "def graph(question):\n    from helper import mark\n    return mark(question)\n"
    write(
        folder,
        {
            "a/app.py": "import helper\n" + app,
            "a/helper.py": helper.format("a"),
            "b/app.py": app,
            "b/helper.py": helper.format("b"),
        },
    )
    names = ["a/app.py:graph", "b/app.py:graph", "a/app.py:graph"]
    graphs = [load_graph(name) for name in names]
    said = [await graph.ask("x", 9, Meter()) for graph in (*graphs, *graphs)]
    assert [answer for answer, _ in said] == ["a1", "b1", "a1", "a2", "b2", "a2"]


@pytest.mark.parametrize(
    ("files", "kind", "says", "shows"),
    [
        (
            {"app.py": "import sub\n", "sub.py": "x = 1 / 0\n"},
            RefluxError,
            "ZeroDivision",
            "sub.py",
        ),
        ({"app.py": "def f(:\n"}, RefluxError, "SyntaxError", "def f(:"),
        ({"app.py": "import nowhere_at_all.x\n"}, MissingError, "nowhere_at_all, which", "app.py"),
        (
            {"app.py": "from agents.lost import x\n", "agents/__init__.py": ""},
            UsageError,
            "imports agents.lost, and .* has no 'lost'",
            "app.py",
        ),
        (
            {"app.py": "from sub import lost\n", "sub.py": ""},
            RefluxError,
            "cannot import",
            "app.py",
        ),
        ({"app.py": "import sys\nsys.exit(2)\n"}, RefluxError, r"sys\.exit\(2\)", "app.py"),
        ({"app.py": "x = 1\n"}, UsageError, "has no 'graph'; correct the name: it has x", ""),
        ({"app.py": "graph = 7\n"}, UsageError, "is of type int; it must be", ""),
        ({"app.py": "def graph():\n    return 7\n"}, UsageError, "is of type int", ""),
        ({"app.py": "def graph():\n    1 / 0\n"}, RefluxError, "graph is created: Zero", "app.py"),
        (
            {"app.py": "class graph:\n    def __init__(self, x): ...\n"},
            UsageError,
            "need argum",
            "",
        ),
    ],
)
async def test_what_cannot_be_loaded_is_told_with_the_users_lines_alone(
    folder: Path, files: dict[str, str], kind: type[RefluxError], says: str, shows: str
) -> None:
    write(folder, files)
    with pytest.raises(kind, match=says) as failure:
        await load_graph("app.py:graph").open()
    assert type(failure.value) is kind
    notes = "\n".join(getattr(failure.value, "__notes__", ()))
    assert shows in notes
    assert "reflux" not in notes
    assert len(notes.splitlines()) < 20


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("langgraph.json:agent", "there is no file langgraph.json"),
        ("other/langgraph.json:lost", "the graphs of other/langgraph.json are one, two"),
        ("other/langgraph.json", "the graphs of other/langgraph.json are one, two"),
        ("broken/langgraph.json:x", "has no valid `graphs`"),
    ],
)
def test_a_langgraph_json_that_names_no_graph_is_told(folder: Path, name: str, says: str) -> None:
    config = '{"graphs": {"one": "./a.py:graph", "two": "./b.py:graph"}}'
    write(folder, {"other/langgraph.json": config, "broken/langgraph.json": "{}"})
    with pytest.raises(UsageError, match=says):
        load_graph(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input_key": "topc"}, "--input-key topc: mine:graph takes question, answer; name one"),
        ({"context": {"a": 1}}, None),
    ],
)
async def test_an_option_that_does_not_fit_is_told(
    store: TraceStore, options: dict[str, Any], says: str | None
) -> None:
    graph = one_node(lambda state: {"answer": "x"}) if says else RunnableLambda(lambda text: "x")
    with pytest.raises(UsageError, match=says or "takes no --context"):
        await answers(store, graph, **options)
    with pytest.raises(UsageError, match="thread_id cannot be set"):
        GraphOptions(configurable={"thread_id": "1"})


async def test_a_failure_of_a_task_group_is_that_of_its_task(store: TraceStore) -> None:
    async def node(state: dict[str, Any]) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
        return {"answer": "never"}

    async def fail() -> None:
        raise LookupError("no such tool")

    (outcome,) = await answers(store, one_node(node, dict))
    assert outcome["error"].startswith("LookupError: no such tool")


async def test_an_agent_of_another_framework_is_told_its_method(store: TraceStore) -> None:
    class Agent:
        def run(self, task: str) -> str:
            return task

    with pytest.raises(UsageError, match=r"name its method as mine:graph\.run"):
        await answers(store, Agent())


async def test_a_failure_names_the_option_that_may_be_missing(store: TraceStore) -> None:
    class Context(TypedDict):
        mark: str

    def node(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": state["topic"]}

    (outcome,) = await answers(store, one_node(node, dict))
    assert "KeyError: 'topic' (test_user_graph.py, line " in outcome["error"]
    assert "); it was given question, messages: --input-key" in outcome["error"]
    chain = RunnablePassthrough.assign(answer=str)
    (outcome,) = await answers(store, chain, "ab?")
    assert "it was given a text: --input-key names the key" in outcome["error"]
    (outcome,) = await answers(store, chain, "ab!", input_key="question")
    assert outcome["answer"] == "{'question': 'ab!'}"
    output = one_node(lambda state: {"answer": {"a": {"b": [1]}}}, dict)
    (outcome,) = await answers(store, output, "cd", output_key="answer.a.c")
    assert "--output-key answer.a.c: there is no 'c' in what it returned (b)" in outcome["error"]
    builder = StateGraph(State, context_schema=Context)
    builder.add_node("node", lambda state, runtime: {"answer": runtime.context["mark"]})
    builder.add_edge(START, "node")
    (outcome,) = await answers(store, builder, "ef")
    assert "--context sets mark" in outcome["error"]


async def test_the_record_answers_unless_it_is_asked_again(store: TraceStore) -> None:
    asked, together, most = itertools.count(1), [0], [0]

    async def node(state: State) -> State:
        together[0] += 1
        most[0] = max(most[0], together[0])
        await asyncio.sleep(0.01)
        together[0] -= 1
        return {"answer": str(next(asked))}

    rows = tuple(Row(f"q{number}", ("x",), number) for number in range(1, 13))
    task = FileEvalTask(QuestionFile(Path("f.jsonl"), rows), "exact")
    system = system_of(store, one_node(node))
    spec = SystemSpec("mine:graph", "mine:graph", "1", lambda _: system)

    async def run(again: bool = False, **more: Any) -> tuple[list[str | None], dict[str, int]]:
        eval_run = await EvalRunner(task, (1,), "run", again=again, **more).run_system(spec)
        (result,) = eval_run.seed_results
        ends = [store.how_ended(result.origin.question_id(q)) or {} for q in result.questions]
        return [end["answer"] for end in ends], eval_run.record(store)

    first, counts = await run(max_concurrency=3)
    assert (counts["answers"], counts["recorded"], most[0]) == (12, 0, 3)
    assert await run() == (first, {"answers": 12, "recorded": 12, "retries": 0})
    anew, counts = await run(again=True)
    assert set(anew) == {str(number) for number in range(13, 25)}
    assert counts["recorded"] == 0
    assert most[0] == 8
    assert (await run())[0] == anew  # What was asked last counts.
