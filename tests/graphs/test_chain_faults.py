"""Chains among faults: what is refused, fails, waits for a person or breaks off with a doubt."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.panel import Panel
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.router import Past, Routed, Router
from reflux.agents.overseers.scripted import APPROVE, RecordedOverseer, Reviewed, ScriptedOverseer
from reflux.agents.types import Answer, Chain, ChatRequest, Completion, Exchange, Step, TokenLogprob
from reflux.agents.verifiers import RuleChecker
from reflux.finetune.data.rows import accepted
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Origin
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore, links
from reflux.graphs.traces.tree import load_tree, recorded_steps
from reflux.graphs.voting.stopping import AheadBy, AnyRule, Weighted
from reflux.graphs.voting.voting import Variant, Vote, VotePolicy, next_votes, winner
from reflux.report.terminal import tree_view
from tests.support.amplifying import asked_of
from tests.support.reference import amplify_reference

ASKED = Origin("run", 0, "amplified", "counting", "train")
TWO = VotePolicy(min_logprob=None, rule=AheadBy(2, 6))
ENDS = 5
SECRET = "sk-" + "a" * 20


def count(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    return Chain("0") if may_ask else PASS


def follow(asked: str, answer: str) -> str | Answer:
    return Answer(f"counted to {answer}") if int(answer) >= ENDS else answer


COUNTING = ScriptedOverseer("counting", count, follow)


def question_of(request: ChatRequest) -> str:
    return request.messages[-1][1]


def right(request: ChatRequest) -> str:
    return str(int(question_of(request)) + 1)


def context(
    store: TraceStore, reply: Callable[[ChatRequest], Any], h: Overseer = COUNTING, **more: Any
) -> AmplifyContext:
    given = {"votes": TWO, "limits": Limits(depth=2, attempts=3), **more}
    return AmplifyContext(RecordedClient(ScriptedClient(reply), store), "base", [h], **given)


async def counted(made: AmplifyContext) -> Outcome:
    await made.recorded_client.store.add_question({"id": "q", "text": "root", **vars(ASKED)})
    return await Amplified(made).answer("root", "q")


async def test_an_endpoint_that_fails_ends_the_question_and_the_way_so_far_stands(
    store: TraceStore,
) -> None:
    def down_at_three(request: ChatRequest) -> str:
        if question_of(request) == "3":
            raise EndpointError("down")
        return right(request)

    made = context(store, down_at_three)
    outcome = await counted(made)
    assert (outcome["status"], outcome["answer"], outcome["error"]) == ("failed", None, "down")
    again = context(store, right)
    outcome = await counted(again)
    assert (outcome["status"], outcome["answer"]) == ("unchecked", "counted to 5")
    assert outcome["spent"]["calls"] == 2 * ENDS
    client = again.recorded_client.client
    assert isinstance(client, ScriptedClient)
    assert asked_of(client) == ["3", "3", "4", "4"]


async def test_a_call_that_fails_in_a_wave_takes_no_other_vote_s_number(store: TraceStore) -> None:
    made: list[tuple[str, int]] = []

    def failing(request: ChatRequest) -> str:
        if question_of(request) == "2" and request.vote == 0:
            raise EndpointError("down")
        return noted(request)

    def noted(request: ChatRequest) -> str:
        made.append((question_of(request), request.vote))
        return right(request)

    await counted(context(store, failing))
    outcome = await counted(context(store, noted))
    assert outcome["spent"]["calls"] == 2 * ENDS
    # Vote 1 came after the failure of vote 0, so it is asked again with it.
    assert Counter(made) == {(str(n), v): 1 + ((n, v) == (2, 1)) for n in range(5) for v in (0, 1)}


async def test_a_link_whose_votes_are_all_refused_is_voted_on_anew(store: TraceStore) -> None:
    votes: list[int] = []

    def late(request: ChatRequest) -> str:
        if question_of(request) != "2":
            return right(request)
        votes.append(request.vote)
        return right(request) if request.vote >= 6 else "junk"

    checker = RuleChecker({"number": lambda q, a: a.isdecimal() or q == "root"})
    outcome = await counted(context(store, late, checker=checker))
    assert (outcome["status"], outcome["answer"]) == ("ok", "counted to 5")
    assert votes == list(range(8))
    assert [link.answer for link in links(store, "q")] == ["1", "2", "3", "4", "5"]


async def test_a_link_that_no_try_settles_ends_the_attempt(store: TraceStore) -> None:
    votes: list[int] = []

    def never(request: ChatRequest) -> str:
        if question_of(request) == "2":
            votes.append(request.vote)
            return "junk"
        return right(request)

    checker = RuleChecker({"number": lambda q, a: a.isdecimal() or q == "root"})
    made = context(store, never, checker=checker, limits=Limits(depth=2, attempts=2))
    outcome = await counted(made)
    assert outcome["status"] == "failed"
    assert "no vote on link 2 passed the check" in str(outcome["error"])
    # Two attempts with two tries each, and no vote twice.
    assert votes == list(range(24))


@pytest.mark.parametrize(
    ("following", "error"),
    [
        (lambda asked, answer: 1 / 0, "the overseer's follow failed: ZeroDivisionError"),
        (lambda asked, answer: None, "the overseer's follow failed: TypeError"),
        (lambda asked, answer: " ", "link 1: the question is empty"),
        (lambda asked, answer: "x" * 99, "link 1: the question has 99 characters"),
        (lambda asked, answer: "half a pair \ud83d", "link 1: the question is not Unicode"),
    ],
)
async def test_an_h_that_cannot_go_on_fails_with_a_reason(
    store: TraceStore, following: Any, error: str
) -> None:
    h = ScriptedOverseer("lost", count, following)
    limits = Limits(depth=2, attempts=1, question_chars=50)
    outcome = await counted(context(store, right, h, limits=limits))
    assert outcome["status"] == "failed"
    assert error in str(outcome["error"])


async def test_no_secret_leaves_with_a_link_or_is_kept(store: TraceStore) -> None:
    h = ScriptedOverseer(
        "leaky",
        lambda q, t, m: Chain(f"first {SECRET}"),
        lambda asked, answer: Answer(answer) if "then" in asked else f"then {SECRET} {answer}",
    )
    made = context(store, lambda request: f"said {SECRET}", h)
    await counted(made)
    client = made.recorded_client.client
    assert isinstance(client, ScriptedClient)
    assert len(client.requests) == 4
    assert SECRET not in repr(client.requests)
    for table in ("calls", "links", "judgements"):
        rows = [dict(row) for row in store.select(f"SELECT * FROM {table}")]  # noqa: S608
        assert rows
        assert SECRET not in repr(rows)


@pytest.mark.parametrize("depth", [0, 1])
async def test_at_the_depth_cap_x_answers_as_plain_recursion_says(
    tmp_path: Path, depth: int
) -> None:
    bold = ScriptedOverseer("bold", lambda q, t, m: Chain("0"), follow)
    found: list[Outcome] = []
    for name in ("graph", "plain"):
        store = TraceStore(tmp_path / f"{name}.db")
        await store.add_question({"id": "q", "text": "7", **vars(ASKED)})
        made = context(store, right, bold, limits=Limits(depth=depth))
        one = Amplified(made).answer("7", "q") if name == "graph" else None
        found.append(await (one or amplify_reference(made, "7", "q")))
        store.close()
    assert found[0] == found[1]
    assert found[0]["answer"] == ("8" if depth == 0 else "counted to 5")


def doubtful(salt: int) -> Callable[[ChatRequest], Completion]:
    """Copies that are sometimes unsure and sometimes wrong."""

    def reply(request: ChatRequest) -> Completion:
        luck = crc32(repr((salt, question_of(request), request.vote)).encode())
        text = right(request) if luck % 5 else str(int(question_of(request)) + 2)
        return Completion(text, 3, 1, logprobs=(TokenLogprob(text, -1.0 if luck % 3 else 0.0),))

    return reply


class Stop(Exception):
    """The process ends here."""


RULES: Sequence[AnyRule | None] = (None, AheadBy(2, 6), Weighted(error=0.05, max_votes=8))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.sampled_from([-0.05, None]),
    st.sampled_from(RULES),
)
def test_a_chain_that_breaks_off_goes_on_with_the_doubts_that_it_had(
    tmp_path_factory: pytest.TempPathFactory,
    salt: int,
    until: int,
    min_logprob: float | None,
    rule: AnyRule | None,
) -> None:
    """Sure first votes, weights and limits count after the break as before it."""
    variants = (Variant(weight=2.0), Variant(weight=0.7), Variant(weight=1.3))
    policy = VotePolicy(min_logprob=min_logprob, rule=rule, variants=variants)
    folder = tmp_path_factory.mktemp("chain")

    async def walk(name: str, max_votes: int | None) -> tuple[Outcome | None, list[Any], int]:
        made = 0

        def reply(request: ChatRequest) -> Completion:
            nonlocal made
            if max_votes is not None and made >= max_votes:
                raise Stop
            made += 1
            return doubtful(salt)(request)

        store = TraceStore(folder / name)
        try:
            outcome = await counted(context(store, reply, votes=policy))
        except Stop:
            outcome = None
        finally:
            kept = list(links(store, "q"))
            store.close()
        return outcome, kept, made

    whole, kept, made = asyncio.run(walk("whole", None))
    broken, _, first = asyncio.run(walk("broken", until))
    again, kept_again, second = asyncio.run(walk("broken", None))
    assert broken in (None, whole)
    assert again == whole
    assert kept_again == kept
    assert made <= first + second <= made + 2 * policy.stopping.max_votes


def plainly(reply: Callable[[ChatRequest], Completion], made: AmplifyContext) -> tuple[Any, ...]:
    """A chain of one attempt as a loop: (status, answer, calls, links)."""
    asked, calls, walked = "0", 0, 0
    max_votes, tries = made.votes.stopping.max_votes, max(1, made.limits.attempts)
    while True:
        chosen = None
        for number in range(tries):
            votes: list[Vote] = []
            while more := next_votes(votes, made.votes):
                for _ in range(more):
                    if calls >= made.limits.calls:
                        return "over_budget", None, calls, walked
                    request = ChatRequest(
                        "x", (("user", asked),), vote=number * max_votes + len(votes)
                    )
                    text = reply(request).text
                    calls += 1
                    votes.append(Vote(text, made.checker.check(asked, text).ok, -1.0))
            chosen = winner(votes)
            if chosen is not None and chosen.ok:
                break
        if chosen is None or not chosen.ok:
            spent_all = calls >= made.limits.calls
            return "over_budget" if spent_all else "failed", None, calls, walked
        walked += 1
        following = follow(asked, chosen.text)
        if isinstance(following, Answer):
            return "ok", following.text, calls, walked
        asked = following


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30), st.integers(1, 6), st.integers(1, 3))
def test_the_graph_walks_as_a_plain_loop_does(
    tmp_path_factory: pytest.TempPathFactory, salt: int, calls: int, refusals: int, tries: int
) -> None:
    """Among wrong and refused votes, and within its budget."""

    def accepts(question: str, answer: str) -> bool:
        return question == "root" or crc32(repr((salt, question, answer)).encode()) % refusals > 0

    store = TraceStore(tmp_path_factory.mktemp("plain") / "t.db")
    limits = Limits(depth=1, attempts=tries, calls=calls)
    checker = RuleChecker({"luck": accepts})
    made = context(store, doubtful(salt), checker=checker, limits=limits)
    outcome = asyncio.run(counted(made))
    status, answer, spent, walked = plainly(doubtful(salt), made)
    kept = [link for link in links(store, "q") if link.answer is not None]
    store.close()
    if status == "failed" and tries > 1:
        assert outcome["spent"]["calls"] >= spent  # The question's other attempts follow.
        return
    assert (outcome["status"], outcome["answer"]) == (status, answer)
    assert outcome["spent"]["calls"] == spent
    assert len(kept) == walked


async def test_a_reviewed_chain_waits_once_and_then_walks(store: TraceStore) -> None:
    made = context(store, right, Reviewed(COUNTING, "asks"))
    await store.add_question({"id": "q", "text": "root", **vars(ASKED)})
    graph = build_graph().compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "q"}}
    state = await graph.ainvoke(begin("root", "q", made), thread, context=made)
    (waiting,) = state["__interrupt__"]
    assert waiting.value["form"]["proposal"] == {"kind": "chain", "first": "0"}
    state = await graph.ainvoke(Command(resume=APPROVE), thread, context=made)
    assert state["outcome"]["answer"] == "counted to 5"


async def test_a_routed_and_a_recorded_chain_are_followed_by_the_h_within(
    store: TraceStore,
) -> None:
    past = [Past(f"root {i}", -0.1, False, True) for i in range(30)]
    probe = ChatRequest("base", (("user", "7"),))
    routed = Routed(COUNTING, Router.fit(past), lambda question: probe)
    outcome = await counted(context(store, right, routed))
    assert outcome["answer"] == "counted to 5"
    again = RecordedOverseer(recorded_steps(store, "q"), fallback=COUNTING)
    await store.add_question({"id": "other", "text": "root", **vars(ASKED)})
    other = await Amplified(context(store, right, again)).answer("root", "other")
    assert other["answer"] == "counted to 5"


async def test_a_panel_says_why_it_asks_no_chain(store: TraceStore) -> None:
    outcome = await counted(context(store, right, Panel((COUNTING, COUNTING))))
    assert outcome["status"] == "failed"
    assert "has no `follow`" in str(outcome["error"])


async def test_the_row_of_a_chain_is_its_end_and_names_the_model(store: TraceStore) -> None:
    await counted(context(store, right))
    (row,) = accepted(store, "train", "amplified", 0, "")
    assert (row.question, row.reply) == ("root", "counted to 5")
    assert row.provenance["models"] == ["scripted:base"]


async def test_the_tree_shows_a_chain_in_one_line(store: TraceStore) -> None:
    def split_at_two(request: ChatRequest) -> str:
        if question_of(request) == "2" and request.vote == 0:
            return "9"
        return right(request)

    await counted(context(store, split_at_two))
    root = load_tree(store, "q")
    assert root.chain == {"links": 5, "doubtful": 1, "first": ("0", "1"), "last": ("4", "5")}
    assert (root.calls, root.answered_by) == (2 * 5 + 2, "base")
    assert json.loads(json.dumps(root.to_json()))["chain"]["links"] == 5
    line = str(tree_view(root).label)
    assert "5 links, 1 in doubt; first 0 → 1, last 4 → 5" in line
    assert next(link.votes for link in links(store, "q", begin=2)) == (
        ("9", True), ("3", True), ("3", True), ("3", True),
    )  # fmt: skip
