"""Several experts answer one question; all they say is recorded, and one answer comes of it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, ChatRequest, Completion, Step, SubQuestion
from reflux.graphs.amplify.context import Limits
from reflux.graphs.amplify.experts import past_answers
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.combiners import (
    Consensus,
    Expert,
    ExpertAnswer,
    PluralityVote,
    disagreement,
    learned_weights,
)
from tests.support.amplifying import ONE_VOTE, Transcript, amplified, answers_of

THREE = (Expert("ann", model="a"), Expert("bob", model="b"), Expert("cem", system="You are Cem."))


def by_expert(**said: str):
    """A client that answers by model, or by what the system message says."""

    def reply(request: ChatRequest) -> str:
        persona = request.messages[0][1]
        return said["cem" if "Cem" in persona else {"a": "ann", "b": "bob"}.get(request.model, "x")]

    return reply


def to(whom: str):
    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        if not transcript:
            return Ask((SubQuestion("q", to=whom),))
        return Answer(transcript[0].answer or f"none: {transcript[0].error}")

    return act


def panels(store: TraceStore) -> list[dict]:
    rows = store.select("SELECT detail FROM judgements WHERE kind='panel'")
    return [json.loads(row["detail"]) for row in rows]


async def test_the_majority_wins_and_everyone_is_on_record(store: TraceStore) -> None:
    client = ScriptedClient(by_expert(ann="yes", bob="no", cem="yes"))
    system = amplified(store, client, to("experts"), experts=THREE)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["spent"]["calls"]) == ("yes", 3)
    (panel,) = panels(store)
    assert panel["answers"] == {"ann": "yes", "bob": "no", "cem": "yes"}
    assert panel["disagreement"] == pytest.approx(1 / 3, abs=1e-3)
    assert list(past_answers(store)) == [("q", panel["answers"], "yes")]


async def test_weights_can_turn_the_majority(store: TraceStore) -> None:
    heavy = (*THREE[:1], Expert("bob", model="b", weight=2.5), *THREE[2:])
    client = ScriptedClient(by_expert(ann="yes", bob="no", cem="yes"))
    system = amplified(
        store, client, to("experts"), experts=heavy, combiner=PluralityVote(weighted=True)
    )
    assert (await answers_of(system, "root"))["answer"] == "no"


async def test_one_expert_can_be_asked_by_name_and_an_unknown_one_is_a_value(
    store: TraceStore,
) -> None:
    client = ScriptedClient(by_expert(ann="1", bob="2", cem="3"))
    system = amplified(store, client, to("expert:cem"), experts=THREE, votes=ONE_VOTE)
    assert (await answers_of(system, "root"))["answer"] == "3"
    unknown = amplified(store, client, to("expert:dan"), experts=THREE, limits=Limits(attempts=1))
    await store.add_question({"id": "other", "text": "root"})
    said = (await unknown.answer("root", "other"))["answer"]
    assert said is not None
    assert "asked 'expert:dan', which does not exist; there is expert:ann" in said


@pytest.mark.parametrize("whom", ["expert:dora", "experts:ann,dora", "experts:"])
async def test_a_question_to_nobody_ends_on_the_record_and_for_listeners(
    store: TraceStore, whom: str
) -> None:
    heard: list[Event] = []
    system = amplified(
        store, ScriptedClient(by_expert()), to(whom), experts=THREE, emit=heard.append
    )
    assert str((await answers_of(system, "root"))["answer"]).startswith("none: the overseer asked ")
    (child,) = load_tree(store, "root-id").children
    assert (child.status, child.answer) == ("failed", None)
    below = [event["event"] for event in heard if event["path"]]
    assert below == ["asked", "answered"]


async def test_everyone_answers_what_h_leaves_where_that_is_the_rule(store: TraceStore) -> None:
    client = ScriptedClient(by_expert(ann="yes", bob="yes", cem="no"))
    system = amplified(store, client, to(""), experts=THREE, everyone=True)
    assert (await answers_of(system, "root"))["answer"] == "yes"
    assert len(client.requests) == 3


async def test_an_expert_that_fails_leaves_the_others_standing(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        if request.model == "a":
            raise EndpointError("ann is out")
        return by_expert(bob="no", cem="no")(request)

    system = amplified(store, ScriptedClient(reply), to("experts"), experts=THREE)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["spent"]["calls"]) == ("no", 2)
    assert panels(store)[0]["failed"] == {"ann": "ann is out"}


async def test_a_model_finds_the_consensus_of_free_answers(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> str:
        asked = request.messages[-1][1]
        if "Consensus:" in asked:
            assert "Expert 2: it rains" in asked
            return "rain"
        return by_expert(ann="it is wet", bob="it rains", cem="rainy")(request)

    client = ScriptedClient(reply)
    system = amplified(store, client, to("experts"), experts=THREE, combiner=Consensus())
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["spent"]["calls"]) == ("rain", 4)
    roles = [row["role"] for row in store.select("SELECT role FROM calls WHERE kind='model'")]
    assert sorted(roles) == ["answer:ann", "answer:bob", "answer:cem", "consensus"]


async def test_where_all_agree_no_consensus_is_asked_for(store: TraceStore) -> None:
    client = ScriptedClient(by_expert(ann="dry", bob="dry", cem="dry"))
    system = amplified(store, client, to("experts"), experts=THREE, combiner=Consensus())
    assert (await answers_of(system, "root"))["spent"]["calls"] == 3


async def test_a_panel_spends_no_more_than_its_share(store: TraceStore) -> None:
    client = ScriptedClient(by_expert(ann="1", bob="2", cem="2"))
    system = amplified(
        store, client, to("experts"), experts=THREE, limits=Limits(calls=2, attempts=1)
    )
    outcome = await answers_of(system, "root")
    assert len(client.requests) == outcome["spent"]["calls"] == 2
    assert panels(store)[0]["failed"] == {"cem": "over budget"}


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_disagreement_is_the_share_outside_the_largest_camp(texts: list[str]) -> None:
    said = [ExpertAnswer(THREE[0], text, True) for text in texts]
    max_votes = max((texts.count(text) for text in texts), default=0)
    assert disagreement(said) == pytest.approx(1 - max_votes / len(texts) if texts else 0)


def test_weights_are_the_log_odds_of_past_accuracy_and_never_negative() -> None:
    past = [({"good": "x", "bad": "y", "new": "x"}, "x")] + [({"good": "x", "bad": "y"}, "x")] * 8
    weights = learned_weights(past)
    assert weights["good"] == pytest.approx(math.log(10 / 1))
    assert weights["bad"] == 0
    assert 0 < weights["new"] < weights["good"]
    assert isinstance(Completion("").tool_calls, tuple)
