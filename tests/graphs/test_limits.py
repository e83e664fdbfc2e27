"""The caps of an amplified question: budget, depth, repetition, size, batches and steps."""

import json

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, Step
from reflux.agents.types import SubQuestion as Sub
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import Limits
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import (
    ONE_VOTE,
    Transcript,
    amplified,
    asked_of,
    asking,
    echo,
    rejecting,
)


async def test_a_batch_shares_the_budget_in_order_and_later_steps_get_what_it_leaves(
    store: TraceStore,
) -> None:
    def two_batches(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        batches: list[Step] = [Ask.of("greedy", "cheap", "greedy2"), Ask.of("last"), Answer("end")]
        return batches[{0: 0, 3: 1, 4: 2}[len(transcript)]]

    client = ScriptedClient(echo)
    system = amplified(
        store, client, two_batches, votes=VotePolicy(max_votes=9),
        checker=RuleChecker({"cheap_is_good": lambda q, a: a in ("CHEAP", "end")}),
        limits=Limits(calls=8),
    )  # fmt: skip
    outcome = await system.answer("root", "q")
    # 8 calls in three are 3, 3 and 2; cheap takes one of its own, and the last gets the two left.
    assert [asked_of(client).count(x) for x in ("greedy", "cheap", "greedy2", "last")] == [
        3, 1, 2, 2,
    ]  # fmt: skip
    assert (outcome["answer"], outcome["status"]) == ("end", "ok")
    assert outcome["spent"]["calls"] == 8
    rows = store.select("SELECT path, detail FROM judgements WHERE kind = 'direct' ORDER BY path")
    statuses = {row["path"]: json.loads(row["detail"])["status"] for row in rows}
    assert statuses == {
        "/0.0.0": "over_budget", "/0.0.1": "ok", "/0.0.2": "over_budget", "/0.1.0": "over_budget"
    }  # fmt: skip


@pytest.mark.parametrize("limits", [Limits(calls=4), Limits(tokens=10)])
async def test_over_budget_ends_with_the_best_answer_so_far(
    store: TraceStore, limits: Limits
) -> None:
    # Each call costs one word asked and one answered; the check refuses what comes of them.
    client = ScriptedClient(echo)
    system = amplified(
        store, client, asking("a", "b"), votes=ONE_VOTE, limits=limits, checker=rejecting("A+B")
    )
    outcome = await system.answer("root", "q")
    assert (outcome["answer"], outcome["status"]) == ("A+B", "over_budget")
    assert outcome["spent"]["calls"] == len(client.requests)


async def test_without_any_budget_nothing_is_asked(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    system = amplified(store, client, lambda *_: PASS, limits=Limits(calls=0))
    outcome = await system.answer("root", "q")
    assert outcome["status"] == "over_budget"
    assert client.requests == []


async def test_a_token_budget_caps_the_length_of_every_answer(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    system = amplified(
        store, client, asking("a", "b"), max_tokens=8, limits=Limits(tokens=11),
        checker=RuleChecker({"never": lambda *_: False}),
    )  # fmt: skip
    await system.answer("root", "q")
    # 6 tokens for a, 5 for b; their first votes take two, the two of the next batch share the rest.
    assert [r.sampling.max_tokens for r in client.requests if echo(r) == "A"] == [6, 2, 2]
    assert [r.sampling.max_tokens for r in client.requests if echo(r) == "B"] == [5, 2, 1]


async def test_at_the_depth_limit_a_question_goes_to_x_even_if_h_would_divide_it(
    store: TraceStore,
) -> None:
    client = ScriptedClient(echo)
    system = amplified(store, client, asking("a"), limits=Limits(depth=0))
    assert (await system.answer("root", "q"))["answer"] == "ROOT"
    assert asked_of(client) == ["root"]


async def test_a_question_that_repeats_an_ancestor_is_refused(store: TraceStore) -> None:
    heard: list[str | None] = []

    def circle(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if transcript:
            heard.append(transcript[0].error)
            return Answer("no end")
        return Ask.of({"root": "other", "other": " ROOT "}[question])

    system = amplified(
        store, ScriptedClient(echo), circle,
        limits=Limits(depth=9), canonical=lambda text: text.strip().lower(),
    )  # fmt: skip
    outcome = await system.answer("root", "q")
    assert (outcome["answer"], outcome["status"]) == ("no end", "unchecked")
    assert heard == ["CycleError: ' ROOT ' repeats one of its ancestors", None]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (" \n", "the question is empty"),
        ("x" * 21, "the question has 21 characters, the limit is 20"),
        ("half \ud83d", "half a surrogate pair"),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_the_root_and_below(
    store: TraceStore, question: str, reason: str
) -> None:
    client = ScriptedClient(echo)
    limits = Limits(question_chars=20)
    outcome = await amplified(store, client, asking("a"), limits=limits).answer(question, "q1")
    assert (outcome["answer"], outcome["status"]) == (None, "failed")
    assert reason in str(outcome["error"])
    outcome = await amplified(store, client, asking(question), limits=limits).answer("root", "q2")
    assert outcome["answer"] == "None"
    assert client.requests == []


async def test_a_batch_wider_than_the_fan_out_limit_is_not_asked(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    limits = Limits(fanout=2, attempts=1)
    outcome = await amplified(store, client, asking(*"abc"), limits=limits).answer("root", "q")
    assert outcome["status"] == "failed"
    assert outcome["error"] == (
        "the overseer asked 3 sub-questions at once: raise limits.fanout from 2"
    )
    assert client.requests == []


async def test_an_h_that_goes_on_asking_is_stopped_at_the_step_limit(store: TraceStore) -> None:
    def endless(question: str, transcript: Transcript, may_ask: bool) -> Step:
        return Ask.of(f"more {len(transcript)}")

    client = ScriptedClient(echo)
    limits = Limits(steps=3, attempts=2)
    outcome = await amplified(store, client, endless, limits=limits).answer("root", "q")
    assert (outcome["status"], outcome["error"]) == ("failed", "no answer after 3 steps")
    assert asked_of(client) == ["more 0", "more 1", "more 2"] * 2


@pytest.mark.parametrize("need", [1, 2, -1])
async def test_a_sub_question_may_need_only_those_before_it(store: TraceStore, need: int) -> None:
    asked = Ask((Sub("a"), Sub("b", (need,)), Sub("c")))
    outcome = await amplified(store, ScriptedClient(echo), lambda *_: asked).answer("root", "q")
    assert outcome["status"] == "failed"
    assert "only those before it" in str(outcome["error"])


async def test_a_long_chain_of_needs_ends_by_no_limit_of_langgraph(store: TraceStore) -> None:
    chain = Ask((Sub("x"), *(Sub(f"x{{{i}}}", (i,)) for i in range(39))))

    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        return Answer(str(transcript[-1].answer)) if transcript else chain

    system = amplified(store, ScriptedClient(echo), act, limits=Limits(fanout=40))
    assert (await system.answer("root", "q"))["answer"] == "X" * 40


async def test_a_long_chain_deep_in_the_tree_ends_by_no_limit_either(store: TraceStore) -> None:
    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question == "root" and not transcript:
            return Ask.of("deep")
        if question in ("root", "deep"):
            return (
                Answer("end")
                if len(transcript) == 1 + 29 * (question == "deep")
                else Ask.of(f"x{len(transcript)}")
            )
        return PASS

    system = amplified(store, ScriptedClient(echo), act, limits=Limits(depth=2))
    assert (await system.answer("root", "q"))["answer"] == "end"
