"""A user's own task, overseer and tools, named as FILE.py:NAME."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import reflux
from reflux.agents.errors import UsageError
from reflux.agents.tools.protocol import run_call
from reflux.agents.types import ToolCall
from reflux.ask_context import open_tools, overseer_named
from reflux.cli.eval_systems import code_of, values_of_option
from reflux.graphs.evals.user_code import Project
from reflux.tasks import task_named

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
