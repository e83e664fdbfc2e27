"""How much of a tree is under way at once, and that a bound keeps nothing from ending."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, ChatRequest, Completion, Defer, Step, step_to_json
from reflux.graphs.amplify.context import ConcurrencyLimit, Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.traces.store import TraceStore
from tests.support.amplifying import ONE_VOTE, Transcript, amplified, echo
from tests.support.playing import essence, orders, play, sorted_rows
from tests.support.worlds import World, worlds


class Watched(ConcurrencyLimit):
    """Counts who is inside, and the most that ever were."""

    def __init__(self, max_open: int) -> None:
        super().__init__(max_open)
        self.inside: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()

    def at(self, depth: int) -> Any:
        gate = super().at(depth)

        class Entered:
            async def __aenter__(_) -> None:
                await gate.__aenter__()
                self.inside[depth] += 1
                self.peak[depth] = max(self.peak[depth], self.inside[depth])

            async def __aexit__(_, *error: Any) -> None:
                self.inside[depth] -= 1
                await gate.__aexit__(*error)

        return Entered()


class Gathered(ScriptedClient):
    """Replies once so many requests were under way at the same time."""

    def __init__(self, reply: Callable[[ChatRequest], str], number: int) -> None:
        super().__init__(reply)
        self._barrier = asyncio.Barrier(number)
        self._met = False

    async def complete(self, request: ChatRequest) -> Completion:
        if not self._met:
            await self._barrier.wait()
            self._met = True
        return await super().complete(request)


def splitting(fanout: int, levels: int) -> Any:
    """An H that splits a question "/" down to a depth, and puts the answers in brackets."""

    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question.count("/") > levels:
            return PASS
        if transcript:
            return Answer(f"({''.join(str(said.answer) for said in transcript)})")
        return Ask.of(*(f"{question}{i}/" for i in range(fanout)))

    return act


@pytest.mark.parametrize("max_open", [1, 2, 3, 8, 100])
async def test_no_more_of_a_depth_are_under_way_than_the_bound_and_every_tree_ends(
    store: TraceStore, max_open: int
) -> None:
    concurrency = Watched(max_open)
    client = Gathered(lambda request: request.messages[-1][1][-2], min(max_open, 27))
    system = amplified(
        store,
        client,
        splitting(3, 3),
        votes=ONE_VOTE,
        limits=Limits(depth=3),
        concurrency=concurrency,
    )
    outcome = await asyncio.wait_for(system.answer("/", "q"), 60)
    assert outcome["answer"] == f"({'((012)(012)(012))' * 3})"
    assert concurrency.inside.total() == 0
    assert concurrency.peak == {depth: min(max_open, 3**depth) for depth in (1, 2, 3)}


@pytest.mark.slow
@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(worlds(), orders, st.sampled_from([1, 2]), st.booleans())
def test_a_bound_changes_no_answer_no_budget_and_no_record(
    world: World, order: list[int], max_open: int, cached: bool
) -> None:
    bound = play(replace(world, concurrency=max_open), order, cached=cached)
    free = play(world, order, cached=cached)
    assert essence(bound.outcomes) == essence(free.outcomes)
    assert sorted_rows(bound.rows, "cached") == sorted_rows(free.rows, "cached")


async def test_questions_that_share_a_bound_all_end(store: TraceStore) -> None:
    concurrency = Watched(2)
    system = amplified(
        store,
        ScriptedClient(echo),
        splitting(3, 2),
        limits=Limits(depth=2),
        concurrency=concurrency,
    )
    answers = await asyncio.gather(*(system.answer("/", f"q{i}") for i in range(10)))
    assert {outcome["status"] for outcome in answers} == {"unchecked"}
    assert max(concurrency.peak.values()) == 2


def test_one_bound_serves_one_event_loop_after_another(tmp_path: Path) -> None:
    concurrency = ConcurrencyLimit(1)
    for day in range(2):
        store = TraceStore(tmp_path / f"{day}.db")
        system = amplified(
            store, ScriptedClient(echo), splitting(3, 1), limits=Limits(1), concurrency=concurrency
        )
        assert asyncio.run(system.answer("/", "q"))["status"] == "unchecked"
        store.close()


async def test_a_branch_that_waits_for_a_person_keeps_no_other_from_ending(
    store: TraceStore,
) -> None:
    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question == "root" and not transcript:
            return Ask.of("why?", "a", "how?", "b")
        if question == "root":
            return Answer(" ".join(str(said.answer) for said in transcript))
        return Defer({"about": question}) if question.endswith("?") else PASS

    client = ScriptedClient(echo)
    context = amplified(store, client, act, concurrency=ConcurrencyLimit(1)).context
    graph: Any = build_graph().compile(checkpointer=InMemorySaver())  # type: ignore[call-arg]
    config = {"configurable": {"thread_id": "t"}}
    state = await graph.ainvoke(begin("root", "q", context), config, context=context)
    assert [request.messages[-1][1] for request in client.requests] == ["a", "b"]
    for number, waiting in enumerate(state["__interrupt__"]):
        resume = Command(resume={waiting.id: step_to_json(Answer(str(number)))})
        state = await graph.ainvoke(resume, config, context=context)
    assert state["outcome"]["answer"] == "0 A 1 B"
    assert len(client.requests) == 2
