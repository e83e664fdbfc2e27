"""A recorded trajectory as the tree that it was."""

from collections.abc import Sequence
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Step
from reflux.agents.types import SubQuestion as Sub
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Direct, Origin, answer_all
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.voting import VotePolicy

ASKED = Origin("run", 0, "amplified", "words", "train")


def echo(request: ChatRequest) -> str:
    return request.messages[-1][1].upper()


def h(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Asks two levels deep; knows "primitive" itself, and leaves the rest to X."""
    asked = {"root": ["x", "mid", "primitive"], "mid": ["fails", "y"]}
    if transcript:
        return Answer("+".join(str(e.answer) for e in transcript))
    if question in asked:
        return Ask.of(*asked[question])
    return Answer("known") if question.startswith("primitive") else PASS


def context(
    store: TraceStore, client: ScriptedClient, act: Any = h, **other: Any
) -> AmplifyContext:
    limits = other.pop("limits", Limits(depth=2))
    overseers = [ScriptedOverseer("h", act)]
    return AmplifyContext(RecordedClient(client, store), "base", overseers, limits=limits, **other)


async def tree_of(store: TraceStore, made: AmplifyContext, question: str = "root") -> Node:
    await answer_all(Amplified(made), ASKED, [question])
    return load_tree(store, ASKED.question_id(question))


def seen(node: Node) -> tuple[Any, ...]:
    return node.path, node.question, node.answer, node.status, node.answered_by, node.calls


async def test_the_tree_shows_what_was_asked_and_who_answered(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        if echo(request) == "FAILS":
            raise EndpointError("down")
        return echo(request)

    tree = await tree_of(store, context(store, ScriptedClient(reply)))
    assert [seen(node) for node in tree.walk()] == [
        ("", "root", "X+None+Y+known", "unchecked", "H", 0),
        ("/0.0.0", "x", "X", "unchecked", "base", 1),
        ("/0.0.1", "mid", "None+Y", "unchecked", "H", 0),
        ("/0.0.1/0.0.0", "fails", None, "failed", "", 0),
        ("/0.0.1/0.0.1", "y", "Y", "unchecked", "base", 1),
        ("/0.0.2", "primitive", "known", "unchecked", "H", 0),
    ]
    assert [node.error for node in tree.walk()] == [None, None, None, "down", None, None]


async def test_calls_tokens_and_votes_are_those_of_the_node_alone(store: TraceStore) -> None:
    unsure = RuleChecker({"voted": lambda question, answer: question == "root" or answer != "X0"})
    client = ScriptedClient(lambda r: echo(r) + str(r.vote and 1))
    tree = await tree_of(store, context(store, client, checker=unsure))
    x, mid = tree.children[0], tree.children[1]
    assert (x.answer, x.votes, x.calls, x.tokens) == ("X1", 3, 3, 6)
    assert (mid.votes, mid.calls, mid.tokens) == (0, 0, 0)
    assert sum(node.calls for node in tree.walk()) == len(client.requests)


async def test_retries_are_branches_of_their_own_at_every_level(store: TraceStore) -> None:
    refuse_twice = RuleChecker({"late": lambda question, answer: "0" not in answer})
    client = ScriptedClient(lambda r: echo(r) + str(r.vote))

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if transcript:
            return Answer(str(transcript[0].answer))
        return Ask.of({"root": "mid", "mid": "x"}[question]) if may_ask else PASS

    made = context(store, client, act, checker=refuse_twice, votes=VotePolicy(max_votes=1))
    tree = await tree_of(store, made)
    # The first X0 is refused by "mid", which tries again and gets another vote.
    assert [node.path for node in tree.walk()] == [
        "", "/0.0.0", "/0.0.0/0.0.0", "/0.0.0/1.0.0"
    ]  # fmt: skip
    assert [node.answer for node in tree.walk()] == ["X3", "X3", "X0", "X3"]
    assert [node.status for node in tree.walk()] == ["ok", "ok", "rejected", "ok"]


async def test_branches_below_a_retried_level_hang_under_their_own_attempt(
    store: TraceStore,
) -> None:
    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if transcript:
            return Answer(f"{question}:{transcript[0].answer}")
        return Ask.of({"root": "mid", "mid": "x"}[question]) if may_ask else PASS

    made = context(
        store, ScriptedClient(lambda r: str(r.vote)), act, votes=VotePolicy(max_votes=1),
        checker=RuleChecker({"late": lambda q, a: q != "root" or a.endswith("1")}),
    )  # fmt: skip
    tree = await tree_of(store, made)
    assert [(node.path, node.question) for node in tree.walk()] == [
        ("", "root"), ("/0.0.0", "mid"), ("/0.0.0/0.0.0", "x"),
        ("/1.0.0", "mid"), ("/1.0.0/0.0.0", "x"),
    ]  # fmt: skip


async def test_a_question_that_needed_others_shows_their_answers(store: TraceStore) -> None:
    asked = ("x", "{0} and", "primitive {0}", "not {3}")

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if question != "root":
            return h(question, transcript, may_ask)
        subs = tuple(Sub(text, (0,) if "{0}" in text else ()) for text in asked)
        return Answer("end") if transcript else Ask(subs)

    tree = await tree_of(store, context(store, ScriptedClient(echo), act))
    assert [n.question for n in tree.children] == ["x", "X and", "primitive X", "not {3}"]


async def test_a_batch_that_was_refused_is_shown_as_h_wrote_it(store: TraceStore) -> None:
    refused = Ask((Sub("x"), Sub("{5}", (5,))))
    tree = await tree_of(store, context(store, ScriptedClient(echo), lambda *_: refused))
    assert (tree.status, [n.question for n in tree.children][:2]) == ("failed", ["x", "{5}"])


async def test_more_than_ten_children_stand_in_the_order_in_which_they_were_asked(
    store: TraceStore,
) -> None:
    words = [f"w{i}" for i in range(12)]

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if question != "root":
            return PASS
        return Answer("end") if transcript else Ask.of(*words)

    tree = await tree_of(store, context(store, ScriptedClient(echo), act))
    assert [node.question for node in tree.children] == words


async def test_a_question_that_x_answers_alone_is_a_tree_of_one_node(store: TraceStore) -> None:
    system = Direct(context(store, ScriptedClient(echo)))
    await answer_all(system, ASKED, ["root"])
    tree = load_tree(store, ASKED.question_id("root"))
    assert (*seen(tree), tree.votes, tree.tokens) == (
        "",
        "root",
        "ROOT",
        "unchecked",
        "base",
        1,
        1,
        2,
    )
    assert tree.children == []


async def test_what_is_not_answered_yet_is_running(store: TraceStore) -> None:
    await store.add_question({"id": "q1", "text": "root"})
    assert seen(load_tree(store, "q1")) == ("", "root", None, "running", "", 0)


async def test_the_tree_as_json_nests_its_children(store: TraceStore) -> None:
    tree = (await tree_of(store, context(store, ScriptedClient(echo)))).to_json()
    assert tree["question"] == "root"
    assert tree["children"][1]["children"][1]["answer"] == "Y"


async def test_a_trajectory_is_found_by_an_unambiguous_beginning_of_its_id(
    store: TraceStore,
) -> None:
    for name in ("abc1", "abd2", "ab", "x_y", "xzy", "100%"):
        await store.add_question({"id": name, "text": name})
    for given, found in (("abc", "abc1"), ("abd2", "abd2"), ("x_", "x_y"), ("1", "100%")):
        assert load_tree(store, given).question == found
    assert load_tree(store, "ab").question == "ab"  # The whole id of one, and others begin so.


@pytest.mark.parametrize(
    ("given", "what"),
    [("a", "several trajectories begin with 'a'"), ("", "several"), ("c", "no trajectory"),
     ("abc1x", "no trajectory"), ("%c", "no trajectory"), ("_b", "no trajectory"),
     ("%", "no trajectory")],
)  # fmt: skip
async def test_another_beginning_is_refused(store: TraceStore, given: str, what: str) -> None:
    for name in ("abc1", "abd2"):
        await store.add_question({"id": name, "text": name})
    with pytest.raises(UsageError, match=what):
        load_tree(store, given)
