"""H defers to a person: the graph waits, for days if need be, and repeats nothing."""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import HumanOverseer
from reflux.agents.types import Answer, Ask, Defer, step_to_json
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from tests.support.deferring import overseer, plain

Asked = Mapping[str, Sequence[str]]
CONFIG = {"configurable": {"thread_id": "t"}}


@dataclass
class Desk:
    """A run that can be closed and opened again; `client` sees every call of all of its days."""

    folder: Path
    asked: Asked
    client: ScriptedClient = field(
        default_factory=lambda: ScriptedClient(lambda r: r.messages[-1][1].upper())
    )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Callable[[Any], Any]]:
        """The graph on its files: takes an input or a `Command`, returns the state."""
        store = TraceStore(self.folder / "traces.db")
        context = AmplifyContext(
            RecordedClient(self.client, store),
            "base",
            [overseer(self.asked)],
            limits=Limits(depth=4),
        )
        path = str(self.folder / "checkpoints.db")
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            graph = cast(Any, build_graph()).compile(checkpointer=saver)

            async def go(put: Any) -> dict[str, Any]:
                put = begin(put, "q", context) if isinstance(put, str) else put
                return await graph.ainvoke(put, CONFIG, context=context)

            yield go
        store.close()

    def made(self) -> Counter[str]:
        return Counter(request.messages[-1][1] for request in self.client.requests)


def pending(state: dict[str, Any]) -> dict[str, str]:
    """Interrupt ids by what they are about."""
    return {i.value["form"]["about"]: i.id for i in state["__interrupt__"]}


def answers(state: dict[str, Any], **texts: str) -> Command[Any]:
    """Replies by id; a question is named without its question mark."""
    ids = pending(state)
    return Command(resume={ids[f"{name}?"]: plain(text) for name, text in texts.items()})


async def test_the_root_waits_for_a_person_and_takes_the_answer(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {})
    async with desk.open() as go:
        state = await go("why?")
        (waiting,) = state["__interrupt__"]
        assert waiting.value == {"path": "", "form": {"about": "why?"}}
        state = await go(answers(state, why="because"))
    assert (state["outcome"]["answer"], state["outcome"]["status"]) == ("because", "unchecked")
    assert not desk.client.requests


async def test_deep_in_the_tree_finished_siblings_stand(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"root": ["a", "mid", "b"], "mid": ["c", "deep?", "d"]})
    async with desk.open() as go:
        state = await go("root")
        (waiting,) = state["__interrupt__"]
        assert waiting.value["path"] == "/0.0.1/0.0.1"
        assert desk.made() == Counter("abcd")
        state = await go(answers(state, deep="yes"))
    assert state["outcome"]["answer"] == "(A (C yes D) B)"
    assert desk.made() == Counter("abcd")


async def test_two_that_wait_at_once_are_answered_in_any_order_on_other_days(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, {"root": ["one?", "a", "mid"], "mid": ["two?", "b", "three?"]})
    async with desk.open() as go:
        state = await go("root")
        assert set(pending(state)) == {"one?", "two?", "three?"}
    for name, text in (("three", "3"), ("two", "2"), ("one", "1")):
        async with desk.open() as go:
            state = await go(answers(state, **{name: text}))
    assert state["outcome"]["answer"] == "(1 A (2 B 3))"
    assert desk.made() == Counter("ab")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
async def test_whoever_is_answered_first_the_outcome_is_as_if_nobody_had_waited(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    luck = random.Random(seed)
    asked: dict[str, list[str]] = {}

    def grow(name: str, level: int) -> None:
        asked[name] = [f"{name}{i}{luck.choice(['', '?'])}" for i in range(luck.randint(1, 3))]
        for child in asked[name]:
            if level < 3 and luck.random() < 0.5:
                grow(child, level + 1)

    grow("q", 1)
    desk = Desk(tmp_path_factory.mktemp("desk"), asked)
    async with desk.open() as go:
        state = await go("q")
    while "__interrupt__" in state:
        async with desk.open() as go:
            waiting = list(pending(state).items())
            some = luck.sample(waiting, luck.randint(1, len(waiting)))
            state = await go(Command(resume={id: plain(about.upper()) for about, id in some}))

    def told(name: str) -> str:
        return f"({' '.join(map(told, asked[name]))})" if name in asked else name.upper()

    assert state["outcome"]["answer"] == told("q")
    leaves = {n for batch in asked.values() for n in batch if n not in asked}
    assert desk.made() == Counter(n for n in leaves if not n.endswith("?"))


async def test_a_person_may_divide_the_question_and_be_asked_again_below(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"root": ["how?", "a"]})
    async with desk.open() as go:
        state = await go("root")
        split = step_to_json(Ask.of("b", "below?", "c"))
        state = await go(Command(resume={pending(state)["how?"]: split}))
    async with desk.open() as go:
        assert set(pending(state)) == {"below?"}
        state = await go(answers(state, below="x"))
    assert state["outcome"]["answer"] == "((B x C) A)"
    assert desk.made() == Counter("abc")


async def test_a_person_may_leave_the_question_to_x(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"root": ["who?"]})
    async with desk.open() as go:
        state = await go("root")
        state = await go(Command(resume={pending(state)["who?"]: step_to_json(PASS)}))
    assert state["outcome"]["answer"] == "(WHO?)"


NO_STEPS = [step_to_json(Defer({})), {"kind": "answer"}, "yes", None]


@pytest.mark.parametrize("reply", NO_STEPS)
async def test_a_reply_that_is_no_step_fails_its_sub_question_alone(
    tmp_path: Path, reply: Any
) -> None:
    desk = Desk(tmp_path, {"root": ["why?", "a"]})
    async with desk.open() as go:
        state = await go("root")
        state = await go(Command(resume={pending(state)["why?"]: reply}))
    assert state["outcome"]["answer"] == "(None A)"
    assert desk.made() == Counter("a")


@pytest.mark.parametrize("reply", NO_STEPS)
async def test_at_the_root_a_person_whose_reply_is_no_step_is_asked_again(
    tmp_path: Path, reply: Any
) -> None:
    desk = Desk(tmp_path, {})
    async with desk.open() as go:
        state = await go("why?")
        state = await go(Command(resume={pending(state)["why?"]: reply}))
        state = await go(answers(state, why="because"))
    assert state["outcome"]["answer"] == "because"


async def test_what_a_person_said_is_in_the_call_log_and_not_asked_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"root": ["why?", "a"]})
    async with desk.open() as go:
        first = await go(answers(await go("root"), why="because"))
    (tmp_path / "checkpoints.db").unlink()
    async with desk.open() as go:
        assert (await go("root"))["outcome"] == first["outcome"]
    assert desk.made() == Counter("a")


async def test_a_state_holds_plain_json_types_alone(tmp_path: Path) -> None:
    """Else a strict serializer would give back something else after a restart."""
    desk = Desk(tmp_path, {"root": ["one?", "a", "mid"], "mid": ["two?", "b"]})
    async with desk.open() as go:
        state = await go("root")
    state.pop("__interrupt__")
    assert json.loads(json.dumps(state)) == state


async def test_a_person_who_oversees_sees_the_question_and_what_was_said(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    context = AmplifyContext(
        RecordedClient(ScriptedClient(lambda _: "4"), store),
        "base",
        [HumanOverseer()],
        limits=Limits(1),
    )
    graph = cast(Any, build_graph()).compile(checkpointer=InMemorySaver())
    state = await graph.ainvoke(begin("2+2+3?", "q", context), CONFIG, context=context)
    for reply in (Ask.of("2+2?"), PASS, Answer("7")):
        (waiting,) = state["__interrupt__"]
        state = await graph.ainvoke(
            Command(resume={waiting.id: step_to_json(reply)}), CONFIG, context=context
        )
    assert waiting.value["form"] == {
        "question": "2+2+3?",
        "transcript": [{"question": "2+2?", "answer": "4", "error": None}],
        "may_ask": True,
    }
    assert state["outcome"]["answer"] == "7"
    store.close()


@pytest.mark.parametrize("question", ["why?", "root"])
async def test_without_a_checkpointer_nobody_can_be_waited_for(
    tmp_path: Path, question: str
) -> None:
    store = TraceStore(tmp_path / "traces.db")
    context = AmplifyContext(
        RecordedClient(ScriptedClient(lambda _: "a"), store), "base", [overseer({"root": ["why?"]})]
    )
    with pytest.raises(UsageError, match=r"a human.*checkpointer"):
        await Amplified(context).answer(question, "q")
    store.close()
