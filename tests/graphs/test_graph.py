"""The amplification graph: who is asked what, what follows from a failure, and what is replayed."""

import asyncio
from typing import Any, cast

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, MissingError, ReplayError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, ChatRequest, Completion, Exchange, Step
from reflux.agents.types import SubQuestion as Sub
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import (
    ONE_VOTE,
    Transcript,
    amplified,
    answers_of,
    asked_of,
    asking,
    echo,
    rejecting,
)


async def test_h_divides_to_the_depth_limit_and_x_answers_what_is_left(store: TraceStore) -> None:
    def halve(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if transcript:
            return Answer("".join(str(e.answer) for e in transcript))
        if not may_ask:
            return PASS
        middle = len(question) // 2
        return Ask.of(question[:middle], question[middle:])

    client = ScriptedClient(echo)
    system = amplified(store, client, halve, limits=Limits(depth=3))
    outcome = await system.answer("abcdefgh", "q")
    assert (outcome["answer"], outcome["status"]) == ("ABCDEFGH", "unchecked")
    assert sorted(asked_of(client)) == list("abcdefgh")
    paths = [r["path"] for r in store.select("SELECT path FROM calls WHERE kind = 'model'")]
    assert {path.count("/") for path in paths} == {3}
    assert len(set(paths)) == 8


async def test_parallel_sub_questions_are_under_way_together(store: TraceStore) -> None:
    barrier = asyncio.Barrier(5)

    class Meeting(ScriptedClient):
        async def complete(self, request: ChatRequest) -> Completion:
            async with asyncio.timeout(20):
                await barrier.wait()  # Nobody passes until all five are here.
            return await super().complete(request)

    system = amplified(store, Meeting(echo), asking(*"abcde"))
    assert (await system.answer("root", "q"))["answer"] == "A+B+C+D+E"


async def test_a_sub_question_waits_for_those_that_it_needs_and_holds_their_answers(
    store: TraceStore,
) -> None:
    def chain(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        if transcript:
            return Answer(str(transcript[-1].answer))
        return Ask((Sub("a"), Sub("{0}b", (0,)), Sub("c"), Sub("{2}{1}d{9}", (1, 2))))

    client = ScriptedClient(echo)
    assert (await amplified(store, client, chain).answer("root", "q"))["answer"] == "CABD{9}"
    assert asked_of(client) == ["a", "c", "Ab", "CABd{9}"]


async def test_a_child_that_fails_leaves_its_siblings_alone(store: TraceStore) -> None:
    heard: list[Exchange] = []

    def listen(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question == "h fails":
            raise KeyError("no such rule")
        if question != "root":
            return PASS
        heard[:] = transcript
        asked = Ask((Sub("x fails"), Sub("h fails"), Sub("then {0}", (0,)), Sub("good")))
        return Answer("done") if transcript else asked

    def reply(request: ChatRequest) -> str:
        if echo(request) == "X FAILS":
            raise EndpointError("no reply")
        return echo(request)

    outcome = await amplified(store, ScriptedClient(reply), listen).answer("root", "q")
    assert (outcome["answer"], outcome["status"]) == ("done", "unchecked")
    assert heard == [
        Exchange("x fails", None, "no reply"),
        Exchange("h fails", None, "the overseer failed: KeyError: 'no such rule'"),
        Exchange("then ", None, "needs sub-question 0, which failed"),
        Exchange("good", "GOOD"),
    ]


async def test_an_error_that_is_no_outcome_ends_the_run(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        raise MissingError("no such model")

    with pytest.raises(MissingError, match="no such model"):
        await amplified(store, ScriptedClient(reply), asking("a")).answer("root", "q")


async def test_a_retry_takes_the_next_decomposition_and_fresh_seeds(store: TraceStore) -> None:
    client = ScriptedClient(lambda r: f"{echo(r)}{r.vote}")
    system = amplified(
        store, client, asking("a", "a2"), asking("b"), votes=ONE_VOTE, seed=100,
        checker=rejecting("A0+A20", "B1"),
    )  # fmt: skip
    outcome = await system.answer("root", "q")
    assert (outcome["answer"], outcome["spent"]["calls"]) == ("A2+A22", 5)
    seeds = [
        (asked, r.sampling.seed) for asked, r in zip(asked_of(client), client.requests, strict=True)
    ]
    assert sorted(seeds) == [("a", 100), ("a", 102), ("a2", 100), ("a2", 102), ("b", 101)]
    assert [r.sampling.temperature for r in client.requests] == [0, 0, 0.7, 0.7, 0.7]


async def test_the_answer_most_often_given_stands_where_the_check_refuses_all(
    store: TraceStore,
) -> None:
    replies = iter(["once", "twice", "twice"])
    system = amplified(
        store, ScriptedClient(lambda _: next(replies)), lambda *_: PASS,
        checker=RuleChecker({"never": lambda *_: False}), votes=ONE_VOTE,
    )  # fmt: skip
    outcome = await system.answer("root", "q")
    assert (outcome["answer"], outcome["status"]) == ("twice", "rejected")
    assert outcome["error"] == "the check 'never' failed"


async def test_h_may_leave_a_question_undivided_to_x_whose_answer_is_checked(
    store: TraceStore,
) -> None:
    client = ScriptedClient(lambda r: "right" if r.vote else "wrong")
    system = amplified(store, client, lambda *_: PASS, checker=rejecting("wrong"))
    outcome = await system.answer("root", "q")
    assert (outcome["answer"], outcome["status"], outcome["spent"]["calls"]) == ("right", "ok", 3)


async def test_a_primitive_of_h_costs_no_call(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    outcome = await amplified(store, client, lambda q, *_: Answer(f" {q} ")).answer("1+1", "q")
    assert outcome == {
        "answer": "1+1", "status": "unchecked", "error": None,
        "spent": {"calls": 0, "cached": 0, "tokens": 0},
    }  # fmt: skip
    assert client.requests == []


async def test_the_same_question_id_is_answered_from_the_log_without_a_call(
    store: TraceStore,
) -> None:
    first = await amplified(store, ScriptedClient(echo), asking("a", "b")).answer("root", "q")
    tables = ("calls", "judgements")
    counts = [len(list(store.select(f"SELECT 1 FROM {table}"))) for table in tables]  # noqa: S608
    later = TraceStore(store.path)  # As after a restart.
    silent = ScriptedClient(lambda _: pytest.fail("a recorded call was made again"))
    assert await amplified(later, silent, asking("a", "b")).answer("root", "q") == first
    assert counts == [
        len(list(later.select(f"SELECT 1 FROM {table}")))  # noqa: S608
        for table in tables
    ]
    later.close()


async def test_a_run_that_broke_off_goes_on_with_the_calls_that_are_missing(
    store: TraceStore,
) -> None:
    def one_by_one(question: str, transcript: Transcript, may_ask: bool) -> Step:
        done = len(transcript)
        if question != "root":
            return PASS
        return Ask.of("abc"[done]) if done < 3 else Answer(str([e.answer for e in transcript]))

    def break_off(request: ChatRequest) -> str:
        if echo(request) == "C":
            raise MissingError("the engine is gone")
        return echo(request)

    with pytest.raises(MissingError):
        await amplified(store, ScriptedClient(break_off), one_by_one).answer("root", "q")
    client = ScriptedClient(echo)
    outcome = await amplified(store, client, one_by_one).answer("root", "q")
    assert outcome["answer"] == "['A', 'B', 'C']"
    assert outcome["spent"]["calls"] == 3
    assert asked_of(client) == ["c"]


@pytest.mark.parametrize("changing", ["root", "a"])
async def test_an_h_that_decides_otherwise_on_replay_ends_the_run(
    store: TraceStore, changing: str
) -> None:
    def other(question: str, transcript: Transcript, may_ask: bool) -> Step:
        return Answer("other") if question == changing else asking("a")(question, transcript, True)

    await amplified(store, ScriptedClient(echo), asking("a")).answer("root", "q")
    with pytest.raises(ReplayError, match="must be deterministic"):
        await amplified(store, ScriptedClient(echo), other).answer("root", "q")


async def test_the_growing_tree_leaves_by_the_custom_stream(store: TraceStore) -> None:
    context = amplified(store, ScriptedClient(echo), asking("a")).context
    graph = cast(Any, build_graph()).compile()
    events = [
        (event["event"], event["path"])
        async for event in graph.astream(
            begin("root", "q", context), context=context, stream_mode="custom"
        )
    ]
    assert events == [
        ("step", ""), ("asked", "/0.0.0"), ("step", "/0.0.0"), ("called", "/0.0.0"),
        ("answered", "/0.0.0"), ("step", ""), ("answered", ""),
    ]  # fmt: skip


async def test_a_listener_hears_the_same_events_as_the_stream(store: TraceStore) -> None:
    heard: list[Any] = []
    await amplified(store, ScriptedClient(echo), asking("a"), emit=heard.append).answer("root", "q")
    assert [event["event"] for event in heard] == [
        "step", "asked", "step", "called", "answered", "step", "answered"
    ]  # fmt: skip
    assert heard[-1]["answer"] == "A"


def cut(*texts: str) -> ScriptedClient:
    """A client whose replies to these questions end at the token limit."""

    def reply(request: ChatRequest) -> Completion:
        reason = "length" if request.messages[-1][1] in texts else "stop"
        return Completion(echo(request), finish_reason=reason)

    return ScriptedClient(reply)


async def test_an_answer_that_the_token_limit_cut_is_truncated(store: TraceStore) -> None:
    system = amplified(store, cut("root"), lambda *_: PASS, votes=ONE_VOTE)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("ROOT", "truncated")


async def test_a_rule_does_not_make_a_truncated_answer_ok(store: TraceStore) -> None:
    rules = rejecting("something else")
    system = amplified(store, cut("root"), lambda *_: PASS, votes=ONE_VOTE, checker=rules)
    assert (await answers_of(system, "root"))["status"] == "truncated"


async def test_one_complete_vote_for_the_same_answer_rescues_a_truncated_one(
    store: TraceStore,
) -> None:
    def reply(request: ChatRequest) -> Completion:
        return Completion("A", finish_reason="stop" if request.vote else "length")

    votes = VotePolicy(margin=2, max_votes=2, min_logprob=None)
    system = amplified(store, ScriptedClient(reply), lambda *_: PASS, votes=votes)
    assert (await answers_of(system, "root"))["status"] == "unchecked"


async def test_a_parent_of_a_truncated_part_has_its_own_status_and_a_note(
    store: TraceStore,
) -> None:
    system = amplified(store, cut("a"), asking("a", "b"), votes=ONE_VOTE)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("A+B", "unchecked")
    tree = load_tree(store, "root-id")
    assert [child.status for child in tree.children] == ["truncated", "unchecked"]
    assert "cut a sub-answer" in tree.note


async def test_only_a_check_that_tests_answers_is_on_the_record(store: TraceStore) -> None:
    bare = amplified(store, ScriptedClient(echo), asking("a"), votes=ONE_VOTE)
    assert (await answers_of(bare, "root"))["status"] == "unchecked"
    assert load_tree(store, "root-id").checks == []
    tested = amplified(store, ScriptedClient(echo), asking("a"), checker=rejecting("B"))
    await store.add_question({"id": "tested", "text": "root"})
    assert (await tested.answer("root", "tested"))["status"] == "ok"
    tree = load_tree(store, "tested")
    assert tree.checks == [{"answer": "A", "ok": True}]
    assert [child.status for child in tree.children] == ["ok"]
