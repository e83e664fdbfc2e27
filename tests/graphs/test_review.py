"""The review queue: what waits, what is in dispute, a random sample; and what persons say of it."""

from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Defer, Step
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.interrupts import open_interruptible_run
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.traces.review import (
    Item,
    find_item,
    judge,
    page,
    queue,
    rejected_by_humans,
    remark,
)
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import ONE_VOTE, amplified, asking, echo, rejecting
from tests.support.overriding import override

ASKED = Origin("run", 1, "amplified", "words", "train")
Q = ASKED.question_id("root")
VOTED = VotePolicy(min_logprob=None, margin=1, max_votes=3)


def split(request: Any) -> str:
    """Copies that do not agree on "x"."""
    text = echo(request)
    return f"{text}{min(request.vote, 1)}" if text == "X" else text


async def asked(store: TraceStore, reply: Any = echo, asked: Origin = ASKED, **other: Any) -> Any:
    system = amplified(store, ScriptedClient(reply), asking("x", "y"), **other)
    await answer_all(system, asked, ["root"])
    return system.context


def of(items: list[Item]) -> list[tuple[str, str, str | None]]:
    return [(item.path, item.why, item.answer) for item in items]


async def test_an_answer_that_no_check_passed_is_in_dispute(store: TraceStore) -> None:
    await asked(store, checker=rejecting("X+Y"), votes=ONE_VOTE)
    (item,) = queue(store)
    assert (item.id, item.why, item.status, item.answer) == (Q, "disputed", "rejected", "X+Y")
    assert item.reason == "the check 'known_wrong' failed"


async def test_an_answer_on_which_copies_were_split_is_in_dispute(store: TraceStore) -> None:
    def reply(request: Any) -> str:
        return {0: "A", 1: "B", 2: "B"}[request.vote] if echo(request) == "X" else echo(request)

    await asked(store, reply, votes=VotePolicy(min_logprob=None, margin=2, max_votes=3))
    (item,) = queue(store)
    assert (item.path, item.answer) == ("/0.0.0", "B")
    assert item.reason == "votes are split, 67% for the first"


async def test_what_waits_for_a_person_comes_first_until_it_is_answered(
    store: TraceStore, tmp_path: Any
) -> None:
    await asked(store, checker=rejecting("X+Y"), votes=ONE_VOTE)

    def act(question: str, transcript: Any, may_ask: bool) -> Step:
        return Defer({"question": question}) if question == "who?" else PASS

    context = amplified(store, ScriptedClient(echo), act).context
    await store.add_question({"id": "w", "text": "who?", "split": "asked"})
    async with open_interruptible_run(context, tmp_path / "c.db") as interruptible_run:
        waiting = await interruptible_run.ask("who?", "w")
        first, _ = queue(store)
        assert (first.id, first.why, first.form) == ("w", "escalated", {"question": "who?"})
        assert find_item(store, "w").why == "escalated"
        reply = {"kind": "answer", "text": "me"}
        await interruptible_run.reply("w", {waiting.pending[0].id: reply})
    assert [item.why for item in queue(store)] == ["disputed"]


async def test_one_judgement_in_a_hundred_is_drawn_for_an_audit(store: TraceStore) -> None:
    names = [f"q{i:04}" for i in range(1_000)]
    for name in names:
        await store.add_question({"id": name, "text": name, "split": "train"})
        detail = {"question": name, "answer": "a", "status": "ok", "error": None}
        await store.add_judgement(name, "", "direct", True, detail, key="0")
    items, _ = page(store, "audit", limit=100)
    assert len(items) == 10
    assert [item.at for item in items] == sorted((item.at for item in items), reverse=True)
    assert len({item.at % 100 for item in items}) > 5  # Not every hundredth: drawn.
    assert page(store, "audit", limit=100)[0] == items


async def test_pages_follow_one_another_without_a_gap_or_a_repeat(store: TraceStore) -> None:
    for i in range(25):
        await store.add_question({"id": f"q{i:02}", "text": "q", "split": "train"})
        detail = {"question": "q", "answer": "a", "status": "rejected", "error": None}
        await store.add_judgement(f"q{i:02}", "", "direct", False, detail, key="0")
    seen: list[str] = []
    start: int | None = None
    while True:
        items, start = page(store, "disputed", 10, start)
        seen += [item.trajectory for item in items]
        if start is None:
            break
    assert seen == [f"q{i:02}" for i in range(24, -1, -1)]


@pytest.mark.parametrize("kept_out", ["held_out", "canary"])
async def test_what_no_row_is_made_of_is_not_queued(store: TraceStore, kept_out: str) -> None:
    other = Origin("run", 1, "amplified", "words", kept_out)
    await asked(store, asked=other, checker=rejecting("X+Y"), votes=ONE_VOTE)
    assert queue(store) == []


@pytest.mark.parametrize("approved", [True, False])
async def test_a_verdict_takes_an_item_out_of_the_queue(store: TraceStore, approved: bool) -> None:
    await asked(store, checker=rejecting("X+Y"), votes=ONE_VOTE)
    await judge(store, queue(store)[0], approved, "because")
    assert queue(store) == []
    tree = load_tree(store, Q)
    assert (tree.verdict, tree.comments) == (
        "approved" if approved else "rejected", ["because"]
    )  # fmt: skip


async def test_a_comment_leaves_it_in_the_queue(store: TraceStore) -> None:
    await asked(store, checker=rejecting("X+Y"), votes=ONE_VOTE)
    await remark(store, queue(store)[0], "hm")
    assert len(queue(store)) == 1
    assert load_tree(store, Q).comments == ["hm"]
    with pytest.raises(UsageError, match="comment is empty"):
        await remark(store, queue(store)[0], " ")


async def test_a_revision_takes_the_place_of_what_it_revises(store: TraceStore) -> None:
    context: AmplifyContext = await asked(store, checker=rejecting("X+Y"), votes=ONE_VOTE)
    await override(context, Q, "/0.0.0", "why")
    assert queue(store) == []  # "why+Y" passes the check.


async def test_a_verdict_holds_in_later_revisions_where_the_answer_is_the_same(
    store: TraceStore,
) -> None:
    def reply(request: Any) -> str:
        return {0: "A", 1: "B", 2: "B"}[request.vote]

    context = await asked(store, reply, votes=VotePolicy(min_logprob=None, margin=2, max_votes=3))
    x, y = sorted(queue(store), key=lambda item: item.path)
    await judge(store, x, False)
    assert rejected_by_humans(store) == {Q}
    await override(context, Q, y.path, "why")
    assert queue(store) == []
    assert rejected_by_humans(store) == {Q}
    await override(context, Q, x.path, "what")
    assert rejected_by_humans(store) == set()


async def test_a_rejected_root_that_recomputed_to_another_answer_is_not_rejected_any_more(
    store: TraceStore,
) -> None:
    context = await asked(store, votes=ONE_VOTE)
    await judge(store, find_item(store, Q), False)
    assert rejected_by_humans(store) == {Q}
    await override(context, Q, "/0.0.0", "why")
    assert rejected_by_humans(store) == set()


async def test_an_item_is_found_by_the_beginning_of_its_trajectory(store: TraceStore) -> None:
    await asked(store, votes=ONE_VOTE)
    assert find_item(store, f"{Q[:6]}/0.0.1").answer == "Y"
    with pytest.raises(UsageError, match=r"no node '/9\.9\.9'"):
        find_item(store, f"{Q}/9.9.9")


async def test_an_item_is_that_of_the_newest_revision_unless_one_is_named(
    store: TraceStore,
) -> None:
    context = await asked(store, votes=ONE_VOTE)
    await override(context, Q, "/0.0.0", "why")
    await override(context, Q, "/0.0.0", "what")
    assert find_item(store, f"{Q}/0.0.0").answer == "what"
    assert find_item(store, f"{Q}~1/0.0.0").answer == "why"
