"""`reflux.amplify`: what it takes for H, X and tools, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.tools import tool

import reflux
from reflux import Answer, Ask, ScriptedOverseer, SubQuestion
from reflux.agents.clients.scripted import ScriptedClient
from reflux.graphs.ask_options import options_of
from reflux.graphs.traces.store import TraceStore


def two_parts(question: str, transcript: object, may_ask: bool) -> Answer | Ask:
    """Ask two copies, and join what they say."""
    if not may_ask:
        return reflux.PASS
    said = list(transcript)  # pyright: ignore[reportArgumentType]
    return Answer("+".join(part.answer for part in said)) if said else Ask.of("one", "two")


def test_a_chat_model_of_langchain_is_x() -> None:
    model = FakeListChatModel(responses=["a"])
    found = reflux.amplify_sync("q", ScriptedOverseer("h", two_parts), client=model)
    assert found.answer == "a+a"


def test_a_trajectory_holds_what_it_was_asked_with(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    reflux.amplify_sync("q", "plain", client=ScriptedClient(lambda _: "4"), traces=path)
    store = TraceStore(path)
    ((trajectory,),) = store.select("SELECT id FROM questions")
    options = options_of(store, trajectory)
    store.close()
    assert options is not None and (options.overseer, options.model) == ("plain", "base")


def test_an_overseer_may_be_named() -> None:
    found = reflux.amplify_sync("q", "plain", client=ScriptedClient(lambda _: "4"))
    assert found.answer == "4"
    with pytest.raises(reflux.RefluxError, match=r"no overseer is called 'nobody'.*model"):
        reflux.amplify_sync("q", "nobody", client=ScriptedClient(lambda _: "4"))


def test_what_is_no_overseer_or_tool_is_told_with_the_way_to_make_one() -> None:
    @tool
    def shout(text: str) -> str:
        """Say it loudly."""
        return text.upper()

    client = ScriptedClient(lambda _: "4")
    with pytest.raises(reflux.RefluxError, match=r"not an overseer.*reflux\.ScriptedOverseer"):
        reflux.amplify_sync("q", two_parts, client=client)  # pyright: ignore[reportArgumentType]
    overseer = ScriptedOverseer("h", asking_a_tool)
    with pytest.raises(reflux.RefluxError, match=r"'shout' is not a tool"):
        reflux.amplify_sync("q", overseer, client=client, tools={"shout": "shout"})  # pyright: ignore[reportArgumentType]
    for made in (shout, shout.func, reflux.LangChainTool(shout)):
        tools: Any = {"shout": made}
        found = reflux.amplify_sync("q", overseer, client=client, tools=tools)
        assert found.answer == "HEY"
    assert client.requests == []


class Nameless:
    """An overseer that lacks a name."""

    async def act(self, context: object) -> Answer:
        return Answer("4")


class Says:
    """A checker that returns what it is given."""

    def __init__(self, verdict: object) -> None:
        self._verdict = verdict

    def check(self, question: str, answer: str) -> Any:
        return self._verdict


CALCULATOR = reflux.Calculator()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tools": [CALCULATOR]}, "not a mapping of tools by name.*write tools={"),
        ({"tools": {"calculator": "calc"}}, "'calc' is not a tool: it has no `answer`"),
        ({"tools": {"calculator": reflux.Calculator}}, "Calculator is a class, not a tool"),
        ({"grants": [CALCULATOR]}, "not a mapping of tools by role.*write grants={"),
        ({"grants": {"answer": CALCULATOR}}, "not a list of tools.*write grants={"),
        ({"grants": {"answer": ["print"]}}, "not a tool: it has no `spec`.*a function"),
        ({"grants": {"agent": [CALCULATOR]}}, "'agent'; choose one of answer, overseer"),
        ({"checker": lambda *_: True}, "not a checker: it has no `check`.*RuleChecker"),
        ({"checker": Says}, "Says is a class, not a checker"),
        ({"verifiers": [lambda *_: True]}, "not a verifier: it has no `verify`"),
        ({"experts": ["ada"]}, "'ada' is not an expert.*reflux.Expert"),
        ({"limits": {"depth": 2}}, "not a set of limits.*reflux.Limits"),
        ({"votes": 3}, "3 is not a vote policy.*reflux.VotePolicy"),
        ({"client": "gpt"}, "'gpt' is not a client: it has no `complete`.*OpenAIClient"),
        ({"overseer": Nameless()}, "not an overseer: it has no `name`; an overseer has"),
        ({"overseer": reflux.ModelOverseer}, "ModelOverseer is a class, not an overseer"),
        ({"overseer": []}, "there is no overseer; pass one"),
        ({"question": None}, "the question is None, not a text"),
    ],
)
def test_what_is_handed_over_wrongly_is_told_at_once(options: dict[str, Any], says: str) -> None:
    client = ScriptedClient(lambda _: "4")
    arguments = {"question": "q", "overseer": "plain", "client": client} | options
    with pytest.raises(reflux.RefluxError, match=says):
        reflux.amplify_sync(arguments.pop("question"), arguments.pop("overseer"), **arguments)
    assert client.requests == []


@pytest.mark.parametrize(("said", "status"), [(True, "ok"), (False, "rejected")])
def test_a_checker_may_return_a_bool(said: bool, status: str) -> None:
    client = ScriptedClient(lambda _: "4")
    found = reflux.amplify_sync("q", "plain", client=client, checker=Says(said))
    assert found.outcome["status"] == status


def test_a_checker_that_returns_anything_else_is_told_what_to_return() -> None:
    client = ScriptedClient(lambda _: "4")
    with pytest.raises(reflux.UsageError, match=r"Says returned None; return reflux\.Verdict"):
        reflux.amplify_sync("q", "plain", client=client, checker=Says(None))


def replied(_: object) -> reflux.ToolReply:
    return reflux.ToolReply("four", ok=False)


async def said(_: object) -> Any:
    return "4"


def raised(_: object) -> Any:
    raise RuntimeError("disk on fire")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (replied, "four"),
        (said, "it failed: '4' is not a reflux.ToolReply; return one"),
        (raised, "it failed: RuntimeError: disk on fire"),
    ],
)
def test_why_a_tool_failed_reaches_the_overseer(answer: Any, why: str) -> None:
    def repeat(_: str, transcript: Any, __: bool) -> Answer | Ask:
        return Answer(transcript[0].error) if transcript else Ask((SubQuestion("2", to="tool:t"),))

    wrong = type("Wrong", (), {"spec": CALCULATOR.spec, "answer": staticmethod(answer)})()
    client = ScriptedClient(lambda _: "4")
    found = reflux.amplify_sync(
        "q", ScriptedOverseer("h", repeat), client=client, tools={"t": wrong}
    )
    assert found.answer == why


def asking_a_tool(question: str, transcript: object, may_ask: bool) -> Answer | Ask:
    """Ask the tool, and repeat it."""
    said = list(transcript)  # pyright: ignore[reportArgumentType]
    if said:
        return Answer(said[0].answer)
    return Ask((SubQuestion('{"text": "hey"}', to="tool:shout"),))


async def test_within_a_running_loop_the_remedy_is_told() -> None:
    with pytest.raises(reflux.RefluxError, match=r"await reflux\.amplify"):
        reflux.amplify_sync("q", "plain", client=ScriptedClient(lambda _: "4"))


def test_every_public_name_is_there_and_shown() -> None:
    assert set(reflux.__all__) <= set(dir(reflux))
    assert all(getattr(reflux, name) is not None for name in reflux.__all__)
