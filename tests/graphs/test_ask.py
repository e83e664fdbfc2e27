"""Systems: many questions in order, each once, each a trajectory of its own."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any, TypedDict, cast

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.redaction import PLACEHOLDER
from reflux.agents.types import (
    Answer,
    Ask,
    ChatClient,
    ChatRequest,
    Completion,
    Exchange,
    Step,
    TokenLogprob,
)
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.interrupts import recursion_limit
from reflux.graphs.ask import (
    LOST_IN_ROW,
    Amplified,
    Direct,
    Origin,
    answer_all,
    ask,
)
from reflux.graphs.ask_options import OF_A_PROGRAM, AskOptions, options_of
from reflux.graphs.evals.task import task_context
from reflux.graphs.garbage import THRESHOLDS, rare_collections
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.stopping import Majority
from reflux.graphs.voting.voting import Variant, VotePolicy
from reflux.tasks.addition import Addition
from tests.support.amplifying import rejecting

ORIGIN = Origin("run", 0, "amplified", "letters", "train")
SECRET = "sk-abcdefghijklmnopqrstuvwx"


def letters(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Asks for each letter of a word and joins the answers."""
    if transcript:
        return Answer("".join(str(e.answer) for e in transcript))
    return Ask.of(*question) if may_ask else PASS


def echo(request: ChatRequest) -> str:
    return request.messages[-1][1].upper()


def context(store: TraceStore, client: ChatClient, **other: Any) -> AmplifyContext:
    overseers = [ScriptedOverseer("letters", letters)]
    return AmplifyContext(RecordedClient(client, store), "base", overseers, **other)


async def test_outcomes_come_in_the_order_of_the_questions(store: TraceStore) -> None:
    answered: list[str] = []
    last_is_done = asyncio.Event()

    class Late(ScriptedClient):
        async def complete(self, request: ChatRequest) -> Completion:
            if echo(request) != "F":
                await last_is_done.wait()
            answered.append(echo(request))
            last_is_done.set()
            return await super().complete(request)

    system = Amplified(context(store, Late(echo)))
    outcomes = await answer_all(system, ORIGIN, ["ab", "cd", "ef"])
    assert [o["answer"] for o in outcomes] == ["AB", "CD", "EF"]
    assert answered[0] == "F"


async def test_no_more_than_so_many_questions_are_under_way_together(store: TraceStore) -> None:
    three = asyncio.Barrier(3)
    here: set[str] = set()
    max_votes: list[int] = []

    class Meeting(ScriptedClient):
        async def complete(self, request: ChatRequest) -> Completion:
            here.add(echo(request))
            max_votes.append(len(here))
            async with asyncio.timeout(20):
                await three.wait()  # Nobody leaves before three are here.
            here.remove(echo(request))
            return await super().complete(request)

    await answer_all(
        Direct(context(store, Meeting(echo))), ORIGIN, list("abcdef"), max_concurrency=3
    )
    assert max(max_votes) == 3


async def test_a_question_that_is_there_twice_is_answered_once(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    done: list[int] = []
    outcomes = await answer_all(
        Amplified(context(store, client)), ORIGIN, ["ab", "cd", "ab"], on_done=done.append
    )
    assert [o["answer"] for o in outcomes] == ["AB", "CD", "AB"]
    assert len(client.requests) == 4
    assert done == [1, 2]


async def test_each_question_is_recorded_with_where_it_comes_from(store: TraceStore) -> None:
    await answer_all(Amplified(context(store, ScriptedClient(echo))), ORIGIN, ["ab"])
    (row,) = store.select("SELECT id, run, round, system, task, split, text FROM questions")
    assert tuple(row) == (
        ORIGIN.question_id("ab"), "run", 0, "amplified", "letters", "train", "ab"
    )  # fmt: skip


async def test_the_same_questions_of_the_same_run_cost_no_second_call(store: TraceStore) -> None:
    first = await answer_all(Amplified(context(store, ScriptedClient(echo))), ORIGIN, ["ab", "c"])
    silent = ScriptedClient(lambda _: pytest.fail("a recorded call was made again"))
    again = await answer_all(Amplified(context(store, silent)), ORIGIN, ["c", "ab"])
    assert again == first[::-1]


@pytest.mark.parametrize(
    "other",
    [
        Origin("run", 1, "amplified", "letters", "train"),
        Origin("run", 0, "direct", "letters", "train"),
        Origin("run", 0, "amplified", "words", "train"),
        Origin("run", 0, "amplified", "letters", "held_out"),
    ],
)
async def test_asked_from_elsewhere_the_same_text_is_asked_anew(
    store: TraceStore, other: Origin
) -> None:
    client = ScriptedClient(echo)
    for asked in (ORIGIN, other):
        await answer_all(Amplified(context(store, client)), asked, ["ab"])
    assert len(client.requests) == 4


async def test_secrets_are_taken_out_of_a_question_before_it_has_an_id(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    await answer_all(Direct(context(store, client)), ORIGIN, [f"use {SECRET}"])
    (row,) = store.select("SELECT id, text FROM questions")
    assert tuple(row) == (ORIGIN.question_id(f"use {PLACEHOLDER}"), f"use {PLACEHOLDER}")


async def test_an_endpoint_that_fails_is_an_outcome_and_a_missing_one_ends_all(
    store: TraceStore,
) -> None:
    def fail(request: ChatRequest) -> str:
        if echo(request) == "X":
            raise EndpointError("busy")
        if echo(request) == "Y":
            raise MissingError("no such model")
        return echo(request)

    system = Direct(context(store, ScriptedClient(fail)))
    failed, fine = await answer_all(system, ORIGIN, ["x", "a"])
    assert (failed["status"], failed["error"], fine["answer"]) == ("failed", "busy", "A")
    with pytest.raises(MissingError, match="no such model"):
        await answer_all(system, ORIGIN, ["b", "y", "c"], max_concurrency=1)
    made = {r["messages"] for r in store.select("SELECT messages FROM calls WHERE error IS NULL")}
    assert sum('"b"' in m for m in made) == 1  # What was recorded until then stays.
    assert not any('"c"' in m for m in made)


async def test_x_alone_is_asked_once_and_greedily_whatever_the_votes(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    task = Addition()
    system = Direct(task_context(context(store, client), task))
    outcome = await system.answer("40+71=", "q")
    assert (outcome["answer"], outcome["status"]) == ("40+71=", "rejected")
    (request,) = client.requests
    assert (request.sampling.temperature, request.vote) == (0.0, 0)
    assert request.sampling.max_tokens == task.answer_tokens("40+71=")


@pytest.mark.parametrize(
    "votes",
    [
        VotePolicy(rule=Majority(max_votes=5)),
        VotePolicy(variants=(Variant("other", temperature=0.9),)),
    ],
    ids=["rule", "variants"],
)
async def test_x_alone_is_no_vote_and_no_variant(store: TraceStore, votes: VotePolicy) -> None:
    client = ScriptedClient(lambda _: Completion("A", logprobs=(TokenLogprob("A", -3.0),)))
    system = Direct(context(store, client, votes=votes))
    await answer_all(system, ORIGIN, ["ab"])
    (request,) = client.requests
    assert (request.model, request.sampling.temperature) == ("base", 0.0)


async def test_called_from_another_graph_nothing_of_its_own_is_in_its_checkpoints(
    store: TraceStore,
) -> None:
    system = Amplified(context(store, ScriptedClient(echo)))

    class Outer(TypedDict):
        answer: str | None

    async def asks(state: Outer) -> Outer:
        (outcome,) = await answer_all(system, ORIGIN, ["ab"])
        return {"answer": outcome["answer"]}

    graph = StateGraph(Outer)
    graph.add_node("ask", asks)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    saver = InMemorySaver()
    compiled = cast(Any, graph).compile(checkpointer=saver)
    state = await compiled.ainvoke({"answer": None}, {"configurable": {"thread_id": "t"}})
    assert state["answer"] == "AB"
    assert set(saver.storage["t"]) == {""}
    assert "/0.0.0" not in repr(saver.storage) + repr(saver.writes) + repr(saver.blobs)


def test_the_most_steps_that_the_limits_allow_are_no_more_than_langgraph_allows() -> None:
    few = AmplifyContext(cast(Any, None), "base", [], limits=Limits(attempts=1, steps=1, fanout=1))
    # screen, oversee, subtask, aggregate, oversee, check, record.
    assert recursion_limit(few) >= 7


def test_the_collector_is_as_before_once_the_last_tree_has_ended() -> None:
    before = gc.get_threshold()
    with rare_collections():
        with rare_collections():
            assert gc.get_threshold() == THRESHOLDS
        assert gc.get_threshold() == THRESHOLDS
    assert gc.get_threshold() == before


async def test_a_question_is_recorded_with_the_options_that_its_context_tells(
    store: TraceStore,
) -> None:
    limits = Limits(attempts=2, calls=9)
    fields: dict[str, Any] = {"limits": limits, "max_tokens": 7, "seed": 3}
    asked = context(store, ScriptedClient(echo), votes=VotePolicy(max_votes=1), **fields)
    answered = await ask(asked, "ab", ORIGIN)
    assert (answered.outcome or {}).get("answer") == "AB"
    options = options_of(store, answered.trajectory)
    assert options == AskOptions(
        "script:letters", "base", limits=limits, max_tokens=7, max_votes=1, seed=3
    )


async def test_what_only_the_program_has_makes_the_overseer_one_of_the_program(
    store: TraceStore,
) -> None:
    checker = RuleChecker({"short": lambda question, answer: len(answer) < 9})
    answered = await ask(context(store, ScriptedClient(echo), checker=checker), "ab", ORIGIN)
    options = options_of(store, answered.trajectory)
    assert options is not None and options.overseer == f"script:letters{OF_A_PROGRAM}"


async def test_options_that_are_given_are_the_ones_on_record(store: TraceStore) -> None:
    options = AskOptions("model", "m", ("calculator",), Limits(depth=3), 5, "", 2, 0.5, 7)
    answered = await ask(context(store, ScriptedClient(echo)), "ab", ORIGIN, options=options)
    assert options_of(store, answered.trajectory) == options


async def test_a_question_that_cannot_be_asked_leaves_nothing_on_record(store: TraceStore) -> None:
    for question in (" ", "\ud800", "x" * 100_001):
        with pytest.raises(UsageError, match="ask another"):
            await ask(context(store, ScriptedClient(echo)), question, ORIGIN)
    assert list(store.select("SELECT id FROM questions")) == []


async def test_a_failure_travels_with_the_answer_of_its_own_question(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        if "x" in request.messages[-1][1]:
            error = EndpointError("no such model")
            error.refused, error.status = True, 422
            raise error
        if "y" in request.messages[-1][1]:
            raise EndpointError("busy")
        return echo(request)

    asked = context(store, ScriptedClient(reply))
    refused, busy, fine = await asyncio.gather(
        *(ask(asked, text, ORIGIN, system=Direct(asked)) for text in ("x", "y", "a"))
    )
    assert fine.check_endpoint().failure is None
    with pytest.raises(EndpointError, match="no such model") as raised:
        refused.check_endpoint()
    assert (raised.value.refused, raised.value.status) == (True, 422)
    with pytest.raises(EndpointError, match="busy") as raised:
        busy.check_endpoint()
    assert (raised.value.refused, raised.value.status) == (False, None)


async def test_a_failure_of_an_earlier_session_is_none_of_this_one(store: TraceStore) -> None:
    up = [False]

    def reply(request: ChatRequest) -> str:
        if not up[0]:
            raise EndpointError("busy")
        return echo(request)

    system = Direct(context(store, ScriptedClient(reply), checker=rejecting("A")))
    with pytest.raises(EndpointError, match="the question failed: busy"):
        await answer_all(system, ORIGIN, ["a"], complete=True)
    up[0] = True
    (outcome,) = await answer_all(system, ORIGIN, ["a"], complete=True)
    assert outcome["status"] == "rejected"


async def test_refusals_are_an_error_only_where_every_question_is_refused(
    store: TraceStore,
) -> None:
    def reply(request: ChatRequest) -> str:
        if "x" not in request.messages[-1][1]:
            return echo(request)
        error = EndpointError("too long")
        error.refused = True
        raise error

    system = Direct(context(store, ScriptedClient(reply)))
    outcomes = await answer_all(system, ORIGIN, ["x", "a"], complete=True)
    assert [outcome["status"] for outcome in outcomes] == ["failed", "unchecked"]
    with pytest.raises(EndpointError, match="2 of 2 questions failed: too long"):
        await answer_all(system, ORIGIN, ["x", "xx"], complete=True)


async def test_an_answer_that_lost_a_call_on_its_way_is_not_complete(store: TraceStore) -> None:
    """With it the answer may be another, and so may each step that follows."""
    down = [True]

    def reply(request: ChatRequest) -> str:
        if down[0] and echo(request) == "B":
            raise EndpointError("busy")
        return echo(request)

    client = ScriptedClient(reply)
    system = Amplified(context(store, client))
    for _ in range(2):
        with pytest.raises(EndpointError, match="the question failed: busy"):
            await answer_all(system, ORIGIN, ["abc"], complete=True)
    down[0] = False
    (outcome,) = await answer_all(system, ORIGIN, ["abc"], complete=True)
    assert outcome["answer"] == "ABC"
    assert sorted(map(echo, client.requests)) == [*"ABBBC"]  # None again that got its reply.


async def test_nothing_more_is_asked_of_an_endpoint_that_stays_down(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        if len(client.requests) > 3:
            raise EndpointError("down")
        return echo(request)

    client = ScriptedClient(reply)
    questions = [f"question {n}" for n in range(40)]
    with pytest.raises(EndpointError, match=f"{LOST_IN_ROW} of {LOST_IN_ROW + 3} questions failed"):
        await answer_all(
            Direct(context(store, client)), ORIGIN, questions, max_concurrency=1, complete=True
        )
    assert len(client.requests) == LOST_IN_ROW + 3
