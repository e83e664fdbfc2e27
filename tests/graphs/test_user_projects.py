"""Projects as users have them: every shape of a graph, and every layout of a folder, answers."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.external.external_graph import ExternalGraph
from reflux.graphs.external.graph_values import GraphOptions
from reflux.graphs.external.user_code import Project
from reflux.graphs.external.user_graph import load_graph
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore

ASKED = Origin("run", 0, "graph", "any", "file")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; its modules are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):
        yield tmp_path
    if Project.active is not None:
        Project.active.deactivate()


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


async def ask(
    store: TraceStore,
    name: str,
    *questions: str,
    options: GraphOptions | None = None,
    origin: Origin = ASKED,
    **limits: Any,
) -> list[Any]:
    """Outcomes of a user's graph, in the order of the questions."""
    graph = load_graph(name, options)
    try:
        context = AmplifyContext(
            RecordedClient(None, store),  # type: ignore[arg-type]
            name,
            (),
            limits=Limits(**limits),
        )
        return await answer_all(ExternalGraph(context, graph), origin, questions or ["ab"])
    finally:
        await graph.close()


@dataclass(frozen=True)
class Shape:
    """One way to write a graph down; it answers AB! to ab."""

    files: Mapping[str, str] | str
    """`app.py`, or several files."""
    name: str = "app.py:graph"
    options: GraphOptions = field(default_factory=GraphOptions)
    answer: str = "AB!"


MESSAGES = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

def node(state: MessagesState):
    said = state["messages"]
    return {"messages": [AIMessage(said[-1].text.upper() + "!" * len(said))]}

builder = StateGraph(MessagesState)
builder.add_node(node)
builder.add_edge(START, "node")
"""
STATE = """
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict
import operator
from pydantic import BaseModel
from langgraph.graph import END, START, StateGraph

def build(State, node, **more):
    builder = StateGraph(State, **more)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder
"""
SQLITE = """
import sqlite3
from langgraph.checkpoint.sqlite import SqliteSaver
saver = SqliteSaver(sqlite3.connect("threads.db", check_same_thread=False))
"""

SHAPES: dict[str, Shape] = {
    "compiled graph of messages": Shape(MESSAGES + "graph = builder.compile()"),
    "graph that is not compiled": Shape(MESSAGES + "graph = builder"),
    "memory": Shape(
        MESSAGES + "from langgraph.checkpoint.memory import InMemorySaver\n"
        "graph = builder.compile(checkpointer=InMemorySaver())"
    ),
    "sqlite": Shape(MESSAGES + SQLITE + "graph = builder.compile(checkpointer=saver)"),
    "async sqlite in a context manager": Shape(
        MESSAGES + "from contextlib import asynccontextmanager\n"
        "from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver\n"
        "@asynccontextmanager\n"
        "async def graph(config):\n"
        "    async with AsyncSqliteSaver.from_conn_string('threads.db') as saver:\n"
        "        yield builder.compile(checkpointer=saver)\n"
    ),
    "sqlite in a context manager": Shape(
        MESSAGES + "from contextlib import contextmanager\n"
        "from langgraph.checkpoint.sqlite import SqliteSaver\n"
        "@contextmanager\n"
        "def graph():\n"
        "    with SqliteSaver.from_conn_string('threads.db') as saver:\n"
        "        yield builder.compile(checkpointer=saver)\n"
    ),
    "factory": Shape(MESSAGES + "def make_graph():\n    return builder", "app.py:make_graph"),
    "factory with options of its own": Shape(
        MESSAGES + "def build_agent(model='any', verbose=False):\n    return builder.compile()",
        "app.py:build_agent",
    ),
    "factory of a config": Shape(
        MESSAGES + "def make_graph(config):\n"
        "    def node(state):\n"
        "        mark = config['configurable']['mark']\n"
        "        return {'messages': [AIMessage(state['messages'][-1].text.upper() + mark)]}\n"
        "    builder = StateGraph(MessagesState).add_node('node', node).add_edge(START, 'node')\n"
        "    return builder.compile()",
        "app.py:make_graph",
        GraphOptions(configurable={"mark": "?"}),
        "AB?",
    ),
    "async factory of a RunnableConfig": Shape(
        MESSAGES + "from langchain_core.runnables import RunnableConfig\n"
        "async def agent(settings: RunnableConfig):\n    return builder.compile()",
        "app.py:agent",
    ),
    "async factory that says what it creates": Shape(
        MESSAGES + "from langgraph.graph.state import CompiledStateGraph\n"
        "async def agent(anything) -> CompiledStateGraph:\n    return builder.compile()",
        "app.py:agent",
    ),
    "langgraph.json": Shape(
        {
            "langgraph.json": '{"dependencies": ["."], "graphs": {"agent":'
            ' "./src/agent/app.py:graph", "other": {"path": "agent.app:graph"}}, "env": ".env"}',
            "src/agent/__init__.py": "",
            "src/agent/app.py": "from agent.parts import builder\ngraph = builder.compile()",
            "src/agent/parts.py": MESSAGES,
        },
        "langgraph.json:agent",
    ),
    "langgraph.json with a module": Shape(
        {
            "langgraph.json": '{"graphs": {"agent": {"path": "agent.app:graph"}}}',
            "src/agent/app.py": MESSAGES + "graph = builder.compile()",
        },
        "langgraph.json",
    ),
    "langgraph.json with a file of variables": Shape(
        {
            "langgraph.json": '{"graphs": {"agent": "./app.py:graph"}, "env": "./my.env"}',
            "my.env": "MARK_OF_TESTS='?'\n",
            "app.py": "import os\nmark = os.environ['MARK_OF_TESTS']\n"
            "graph = lambda question: question.upper() + mark\n",
        },
        "langgraph.json:agent",
        answer="AB?",
    ),
    "langgraph.json with variables": Shape(
        {
            "langgraph.json": '{"graphs": {"agent": "./app.py:graph"}, "env": {"OTHER_MARK": 7}}',
            "app.py": "import os\n"
            "graph = lambda question: question.upper() + os.environ['OTHER_MARK']\n",
        },
        "langgraph.json:agent",
        answer="AB7",
    ),
    "configurable": Shape(
        STATE + "class State(TypedDict):\n    question: str\n    answer: str\n"
        "def node(state, config):\n"
        "    return {'answer': state['question'].upper() + config['configurable']['mark']}\n"
        "graph = build(State, node).compile()",
        options=GraphOptions(configurable={"mark": "?"}),
        answer="AB?",
    ),
    "context": Shape(
        STATE + "from langgraph.runtime import Runtime\n"
        "class State(TypedDict):\n    question: str\n    answer: str\n"
        "@dataclass\nclass Context:\n    mark: str\n"
        "def node(state, runtime: Runtime[Context]):\n"
        "    return {'answer': state['question'].upper() + runtime.context.mark}\n"
        "graph = build(State, node, context_schema=Context).compile()",
        options=GraphOptions(context={"mark": "?"}),
        answer="AB?",
    ),
    "pydantic state and answer": Shape(
        STATE + "class Answer(BaseModel):\n    text: str\n    sources: list[str] = []\n"
        "class State(BaseModel):\n    query: str\n    result: Answer | None = None\n"
        "def node(state: State):\n    return {'result': Answer(text=state.query.upper() + '!')}\n"
        "graph = build(State, node).compile()",
    ),
    "dataclass state": Shape(
        STATE + "@dataclass\nclass State:\n    user_input: str\n    output: str = ''\n"
        "def node(state: State):\n    return {'output': state.user_input.upper() + '!'}\n"
        "graph = build(State, node).compile()",
    ),
    "structured response beside messages": Shape(
        MESSAGES + "from typing import Any\n"
        "class State(MessagesState):\n    structured_response: Any\n    files: dict\n"
        "def last(state):\n"
        "    text = state['messages'][-1].text.upper() + '!'\n"
        "    return {'messages': [AIMessage('done')], 'files': {},"
        " 'structured_response': {'answer': text, 'confidence': 0.5}}\n"
        "graph = StateGraph(State).add_node(last).add_edge(START, 'last').compile()"
    ),
    "messages as dicts": Shape(
        STATE + "class State(TypedDict):\n    messages: Annotated[list[dict], operator.add]\n"
        "def node(state):\n"
        "    text = state['messages'][-1]['content'].upper() + '!'\n"
        "    return {'messages': [{'role': 'assistant', 'content': [{'type': 'text',"
        " 'text': text}]}]}\n"
        "graph = build(State, node).compile()",
    ),
    "other keys": Shape(
        STATE + "class State(TypedDict):\n    topic: str\n    style: str\n    joke: dict\n"
        "def node(state):\n"
        "    return {'joke': {'parts': [{'text': state['topic'].upper() + '!'}]}}\n"
        "graph = build(State, node).compile()",
        options=GraphOptions("topic", "joke.parts.0.text"),
    ),
    "input that is also a key of answers": Shape(
        STATE + "class State(TypedDict):\n    text: str\n    generation: str\n"
        "def node(state):\n    return {'generation': state['text'].upper() + '!'}\n"
        "graph = build(State, node).compile()",
    ),
    "entrypoint of text": Shape(
        "from langgraph.func import entrypoint, task\n"
        "from langgraph.checkpoint.memory import InMemorySaver\n"
        "@task\ndef loud(text):\n    return text.upper()\n"
        "@entrypoint(checkpointer=InMemorySaver())\n"
        "def graph(question: str, *, previous=None) -> str:\n"
        "    value = loud(question).result() + '!' + (previous or '')\n"
        "    return entrypoint.final(value=value, save=value)\n"
    ),
    "async entrypoint of a dict": Shape(
        "from langgraph.func import entrypoint\n"
        "@entrypoint()\n"
        "async def graph(inputs: dict) -> dict:\n"
        "    return {'answer': inputs['question'].upper() + '!'}\n"
    ),
    "entrypoint of a dataclass": Shape(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from langgraph.func import entrypoint\n"
        "@dataclass\nclass Ask:\n    query: str\n"
        "@entrypoint()\n"
        "def graph(ask: Ask) -> str:\n    return ask.query.upper() + '!'\n"
    ),
    "entrypoint of messages": Shape(
        "from langchain_core.messages import AIMessage, BaseMessage\n"
        "from langgraph.func import entrypoint\n"
        "@entrypoint()\n"
        "def graph(messages: list[BaseMessage]):\n"
        "    return [*messages, AIMessage(messages[-1].text.upper() + '!')]\n"
    ),
    "chain of a retriever": Shape(
        "from langchain_core.output_parsers import StrOutputParser\n"
        "from langchain_core.prompts import ChatPromptTemplate\n"
        "from langchain_core.runnables import RunnableLambda, RunnablePassthrough\n"
        "prompt = ChatPromptTemplate.from_template('{context} {question}')\n"
        "model = RunnableLambda(lambda value: value.messages[-1].text.split()[-1].upper() + '!')\n"
        "retriever = RunnableLambda(lambda text: 'found')\n"
        "graph = {'context': retriever, 'question': RunnablePassthrough()} | prompt | model"
        " | StrOutputParser()\n"
    ),
    "retrieval chain with a history": Shape(
        "from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder\n"
        "from langchain_core.runnables import RunnableLambda, RunnablePassthrough\n"
        "prompt = ChatPromptTemplate([MessagesPlaceholder('chat_history'), ('human', '{input}')])\n"
        "model = RunnableLambda(lambda value: value.messages[-1].text.upper() + '!')\n"
        "found = (lambda values: values['input']) | RunnableLambda(lambda text: ['found'])\n"
        "graph = RunnablePassthrough.assign(context=found).assign(answer=prompt | model)\n"
    ),
    "prompt and chat model": Shape(
        "from langchain_core.language_models import FakeListChatModel\n"
        "from langchain_core.prompts import ChatPromptTemplate\n"
        "model = FakeListChatModel(responses=['AB!'])\n"
        "graph = ChatPromptTemplate.from_template('{topic}?') | model\n"
    ),
    "chain of dicts": Shape("graph = lambda inputs: inputs['question'].upper() + '!'\n"),
    "method with optional parameters": Shape(
        "class Crew:\n    def kickoff(self, inputs=None):\n"
        "        return {'raw': inputs['topic'].upper() + '!', 'tasks': []}\n"
        "crew = Crew()\n",
        "app.py:crew.kickoff",
        GraphOptions(output_key="raw"),
    ),
    "function": Shape("def graph(question):\n    return question.upper() + '!'\n"),
    "async function with a history": Shape(
        "async def graph(question: str, history: list, config=None):\n"
        "    return {'response': question.upper() + '!' * (1 + len(history))}\n"
    ),
    "function of messages": Shape(
        "def graph(messages):\n    return messages[-1].content.upper() + '!'\n"
    ),
    "function of a pydantic model": Shape(
        "from __future__ import annotations\nfrom pydantic import BaseModel\n"
        "class Ask(BaseModel):\n    prompt: str\n    k: int = 3\n"
        "class Said(BaseModel):\n    final_answer: str\n    why: str\n"
        "def graph(ask: Ask) -> Said:\n"
        "    return Said(final_answer=ask.prompt.upper() + '!', why='so')\n"
    ),
    "number of NumPy's": Shape(
        "import numpy as np\ngraph = lambda question: np.int64(7)\n", answer="7"
    ),
    "text of NumPy's in a state": Shape(
        "import numpy as np\n" + STATE + "class State(TypedDict):\n    question: str\n"
        "    answer: Any\n"
        "def node(state):\n    return {'answer': np.str_(state['question'].upper() + '!')}\n"
        "graph = build(State, node)\n"
    ),
    "event loop of the thread": Shape(
        "import asyncio\nasync def later(text):\n    return text.upper() + '!'\n"
        "def graph(question):\n"
        "    return asyncio.get_event_loop().run_until_complete(later(question))\n"
    ),
    "method of an agent of another framework": Shape(
        "class Agent:\n    def run(self, task):\n        return task.upper() + '!'\n"
        "agent = Agent()\n",
        "app.py:agent.run",
    ),
    "generator": Shape("def graph(question):\n    yield question.upper()\n    yield '!'\n"),
    "async generator of chunks": Shape(
        "from langchain_core.messages import AIMessageChunk\n"
        "async def graph(question: str):\n"
        "    for letter in question.upper() + '!':\n        yield AIMessageChunk(letter)\n"
    ),
    "class with invoke": Shape(
        "class Agent:\n    def invoke(self, question):\n        return question.upper() + '!'\n",
        "app.py:Agent",
    ),
    "object with ainvoke": Shape(
        "class Agent:\n    def __init__(self, mark):\n        self.mark = mark\n"
        "    async def ainvoke(self, inputs: dict):\n"
        "        return {'output': inputs['question'].upper() + self.mark}\n"
        "agents = type('Agents', (), {'one': Agent('!')})\n",
        "app.py:agents.one",
    ),
    "object that is called": Shape(
        "class Agent:\n    async def __call__(self, question: str) -> str:\n"
        "        return question.upper() + '!'\n"
        "graph = Agent()\n"
    ),
    "siblings": Shape(
        {
            "proj/app.py": "from sib import loud\n"
            "def graph(question):\n    return loud(question)\n",
            "proj/sib.py": "def loud(text):\n"
            "    from late import mark\n    return text.upper() + mark\n",
            "proj/late.py": "mark = '!'\n",
        },
        "proj/app.py:graph",
    ),
    "src layout": Shape(
        {
            "proj/pyproject.toml": "",
            "proj/src/pkg/__init__.py": "",
            "proj/src/pkg/parts.py": "mark = '!'\n",
            "proj/app.py": "from pkg.parts import mark\ndef graph(question):\n"
            "    return question.upper() + mark\n",
        },
        "proj/app.py:graph",
    ),
    "relative imports in a package": Shape(
        {
            "pkg/__init__.py": "",
            "pkg/parts/__init__.py": "from .mark import mark\n",
            "pkg/parts/mark.py": "mark = '!'\n",
            "pkg/agents/__init__.py": "",
            "pkg/agents/app.py": "from ..parts import mark\nfrom . import other\n"
            "def graph(question):\n    return other.loud(question) + mark\n",
            "pkg/agents/other.py": "def loud(text):\n    return text.upper()\n",
        },
        "pkg/agents/app.py:graph",
    ),
    "relative imports without __init__.py": Shape(
        {
            "inner/app.py": "from .parts import mark\ndef graph(question):\n"
            "    return question.upper() + mark\n",
            "inner/parts.py": "mark = '!'\n",
        },
        "inner/app.py:graph",
    ),
    "packages that have names of ours": Shape(
        {
            "agents/__init__.py": "from graphs.build import loud\n",
            "graphs/__init__.py": "",
            "graphs/build.py": "from tests.marks import mark\nfrom evals import upper\n"
            "def loud(text):\n    return upper(text) + mark\n",
            "tests/__init__.py": "",
            "tests/marks.py": "mark = '!'\n",
            "evals/__init__.py": "def upper(text):\n    return text.upper()\n",
            "app.py": "from agents import loud as graph\n",
        },
    ),
    "names that are no identifiers": Shape(
        {"my-project/my-agent.v2.py": "def graph(question):\n    return question.upper() + '!'\n"},
        "my-project/my-agent.v2.py:graph",
    ),
    "a name of Python's": Shape(
        {"calendar.py": "def graph(question):\n    return question.upper() + '!'\n"},
        "calendar.py:graph",
    ),
    "a module that reads the command line": Shape(
        "import argparse, asyncio\n"
        "argparse.ArgumentParser().parse_args()\n"
        "def graph(question):\n    return question.upper() + '!'\n"
        "if __name__ == '__main__':\n    raise SystemExit(1)\n"
    ),
    "a package that has the name of its file": Shape(
        {
            "agent/agent.py": "from agent.parts import mark\n"
            "def graph(question):\n    return question.upper() + mark\n",
            "agent/parts.py": "mark = '!'\n",
        },
        "agent/agent.py:graph",
    ),
    "a folder": Shape(
        {
            "my/agent/__init__.py": "from .app import graph\n",
            "my/agent/app.py": "def graph(question):\n    return question.upper() + '!'\n",
        },
        "my/agent:graph",
    ),
    "a module that goes to another folder": Shape(
        {
            "proj/app.py": "import os\nos.chdir(os.path.dirname(__file__))\n"
            "from sib import mark\n"
            "def graph(question):\n    return question.upper() + mark\n",
            "proj/sib.py": "mark = '!'\n",
        },
        "proj/app.py:graph",
    ),
    "a history of messages by session": Shape(
        "import warnings\nwarnings.simplefilter('ignore')\n"  # It is deprecated.
        "from langchain_core.chat_history import InMemoryChatMessageHistory\n"
        "from langchain_core.messages import AIMessage\n"
        "from langchain_core.runnables import RunnableLambda\n"
        "from langchain_core.runnables.history import RunnableWithMessageHistory\n"
        "kept = {}\n"
        "def history(session_id):\n"
        "    return kept.setdefault(session_id, InMemoryChatMessageHistory())\n"
        "def speak(messages):\n"
        "    return AIMessage(messages[-1].text.upper() + '!' * len(messages))\n"
        "graph = RunnableWithMessageHistory(RunnableLambda(speak), history)\n"
    ),
    "module": Shape({"pkg/app.py": MESSAGES + "graph = builder.compile()"}, "pkg.app:graph"),
    "create_agent": Shape(
        "from langchain import agents\n"
        "from langchain_core.language_models import GenericFakeChatModel\n"
        "import itertools\n"
        "model = GenericFakeChatModel(messages=itertools.repeat('AB!'))\n"
        "graph = agents.create_agent(model, tools=[])\n"
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_answers(store: TraceStore, folder: Path, shape: Shape) -> None:
    write(folder, {"app.py": shape.files} if isinstance(shape.files, str) else shape.files)
    first, second = await ask(store, shape.name, "ab", "ab ", options=shape.options)
    assert (first["answer"], first["error"]) == (shape.answer, None)
    # A fresh thread: the second question does not see the first.
    assert second["answer"] in (shape.answer, shape.answer.replace("AB", "AB "))
