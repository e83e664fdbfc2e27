"""`reflux.amplify`: what it takes for H, X and tools, and what it refuses."""

from pathlib import Path

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
    with pytest.raises(reflux.RefluxError, match=r"no overseer.*reflux\.ScriptedOverseer"):
        reflux.amplify_sync("q", two_parts, client=client)  # pyright: ignore[reportArgumentType]
    overseer = ScriptedOverseer("h", asking_a_tool)
    with pytest.raises(reflux.RefluxError, match=r"'shout'.*reflux\.LangChainTool"):
        reflux.amplify_sync("q", overseer, client=client, tools={"shout": shout})
    wrapped = {"shout": reflux.LangChainTool(shout)}
    found = reflux.amplify_sync("q", overseer, client=client, tools=wrapped)
    assert found.answer == "HEY"
    assert client.requests == []


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
