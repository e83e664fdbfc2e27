"""A user's own task, overseer and tools, named as FILE.py:NAME."""

import json
import os
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import reflux
from reflux.agents.errors import UsageError
from reflux.agents.tools.protocol import run_call
from reflux.agents.types import ToolCall
from reflux.ask_context import open_tools
from reflux.cli.evaluation.systems import code_of, values_of_option
from reflux.graphs.external.user_code import Project
from reflux.overseers import overseer_named
from reflux.tasks import task_named
from tests.support.commanding import Ended, begin

OWN = """
import reflux
from helper import MARK
from langchain_core.tools import tool

def oversee(question, transcript, may_ask):
    return reflux.Answer(question + MARK)

class Overseer:
    name = "own"
    async def act(self, context):
        return reflux.Answer(context.question)

class Words(reflux.Task):
    name = "words"
    def sample(self, n, level, split, seed):
        return ["a b"] * n
    def score(self, question, answer):
        return True

class Half:
    name = "half"
    def score(self, question, answer):
        return True

words = Words()

def look_up(word: str) -> str:
    "Look a word up."
    return word.upper() + MARK

async def look_up_async(word: str) -> str:
    return word.upper() + MARK

@tool
def find(word: str) -> str:
    "Find a word."
    return word.upper() + MARK

several = [find, look_up]
number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "app.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "own" / "helper.py").write_text("MARK = '!'\n")
    yield tmp_path
    if Project.active is not None:
        Project.active.deactivate()


def test_an_overseer_is_an_object_a_class_or_a_function(folder: Path) -> None:
    assert overseer_named(f"{folder}/own/app.py:Overseer").name == "own"
    scripted = overseer_named(f"{folder}/own/app.py:oversee")
    assert isinstance(scripted, reflux.ScriptedOverseer)
    assert overseer_named(f"{folder}/own/app.py:oversee") is scripted


def test_a_task_is_an_object_or_a_class(folder: Path) -> None:
    task = task_named(f"{folder}/own/app.py:Words")
    assert task.sample(1, 1, "held_out", 1) == ["a b"]
    assert task.name == task_named(f"{folder}/own/app.py:words").name == "words"


@pytest.mark.parametrize("name", ["look_up", "look_up_async", "find"])
async def test_a_tool_is_a_function_or_a_tool(folder: Path, name: str) -> None:
    async with open_tools([f"{folder}/own/app.py:{name}", "calculator"]) as grants:
        tool = grants["answer"][0]
        assert tool.spec.name == name
        call = ToolCall("1", name, json.dumps({"word": "ab"}))
        assert (await run_call(grants["answer"], call)).text == "AB!"


async def test_several_tools_are_granted_by_one_name(folder: Path) -> None:
    async with open_tools([f"{folder}/own/app.py:several"]) as grants:
        assert [tool.spec.name for tool in grants["answer"]] == ["find", "look_up"]


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("overseer", "own/app.py:number", "is no overseer: it needs a `name` and `act"),
        ("overseer", "own/app.py:lost", "has no 'lost'; correct the name: it has"),
        ("overseer", "lost.py:act", "there is no file lost.py"),
        ("overseer", "lost", "no overseer is called 'lost'; there are model, .* as FILE.py:NAME"),
        (
            "task",
            "own/app.py:Half",
            "is no task: it lacks .*sample.*; make it a subclass of reflux",
        ),
        ("task", "lost", "there is no task 'lost'; .* as FILE.py:NAME"),
        ("tool", "own/app.py:number", "is no tool but a int"),
        ("tool", "lost", "there is no tool 'lost'; .* as FILE.py:NAME"),
    ],
)
async def test_what_is_none_is_told(kind: str, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        if kind == "overseer":
            overseer_named(name)
        elif kind == "task":
            task_named(name)
        else:
            async with open_tools([name]):
                raise AssertionError


def test_own_code_decides_answers_and_shipped_names_do_not(folder: Path) -> None:
    assert code_of("addition", "model") == {}
    assert code_of(None, None, "documents:notes") == {"tools": ["documents:notes"]}
    first = code_of(None, "own/app.py:oversee")
    assert code_of(None, "own/app.py:oversee") == first
    (folder / "own" / "helper.py").write_text("MARK = '???'\n")
    assert code_of(None, "own/app.py:oversee") != first


def test_options_of_graphs_are_pairs_or_yaml_files(folder: Path) -> None:
    (folder / "more.yaml").write_text("user: {id: 7}\nmodel: other\n")
    values = values_of_option(
        "--context", ["model=x", "more.yaml", "k=3", "on=true", "e=a=b", "n=no"]
    )
    assert values == {
        "model": "other",
        "user": {"id": 7},
        "k": 3,
        "on": True,
        "e": "a=b",
        "n": "no",
    }
    for wrong in ("=x", "lost.yaml"):
        with pytest.raises(UsageError):
            values_of_option("--context", [wrong])


GRAPH = """
from helper import MARK
from typing import TypedDict
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

print("loaded")

class Loud(TypedDict):
    topic: str
    style: str
    out: dict

def node(state, config):
    mark = config["configurable"].get("mark", MARK)
    return {"out": {"said": state["topic"].upper() + mark}}

def make(config):
    builder = StateGraph(Loud).add_node("node", node).add_edge(START, "node")
    return builder.compile(checkpointer=InMemorySaver())
"""


@pytest.mark.process
def test_a_graph_is_evaluated_once_and_again_where_its_code_changes(folder: Path) -> None:
    (folder / "own" / "graph.py").write_text(GRAPH)
    rows = ({"question": q, "answer": f"{q.upper()}!"} for q in ("ab", "cd", "ef"))
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluated(*words: str) -> Ended:
        command = ("eval", "--data", "q.jsonl", "--run", "run", "--score", "exact", *words)
        return begin(command, before=partial(os.chdir, folder)).wait()

    def counts(*words: str) -> dict[str, Any]:
        ended = evaluated(
            "--systems", "own/graph.py:make", "--input-key", "topic", "--output-key", "out.said",
            "--concurrency", "2", "--time-limit", "60", "--json", *words,
        )  # fmt: skip
        assert ended.code == 0, ended.stderr
        assert "at most 60 s a question (--time-limit), 2 at a time" in ended.stderr
        body = json.loads(ended.stdout)
        (record,), (system,) = body["record"].values(), body["systems"].values()
        return {"accuracy": system["accuracy"], "recorded": record["recorded"]}

    assert counts() == {"accuracy": 1.0, "recorded": 0}
    assert counts() == {"accuracy": 1.0, "recorded": 3}
    assert counts("--again") == {"accuracy": 1.0, "recorded": 0}
    assert counts("--configurable", "mark=?") == {"accuracy": 0.0, "recorded": 0}
    (folder / "own" / "other.py").write_text("x = 1\n")
    assert counts() == {"accuracy": 1.0, "recorded": 3}
    (folder / "own" / "helper.py").write_text("MARK = '???'\n")
    assert counts() == {"accuracy": 0.0, "recorded": 0}
    said = evaluated("--systems", "own/graph.py:make")
    assert said.code == 2
    assert "takes topic, style, out: name the one that gets the question by --input" in said.stderr
    # Of another length: Python keeps compiled code by the second and the size of its source.
    (folder / "own" / "helper.py").write_text("MARK = 100 / 0\n")
    said = evaluated("--systems", "own/graph.py:make")
    assert said.code == 1
    lines = said.stderr.splitlines()
    assert any("helper.py" in line for line in lines)
    assert lines[-1].startswith("reflux: own/graph.py:make fails when it is imported: ZeroDivision")
    assert len(lines) < 12
