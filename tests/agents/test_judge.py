"""Votes whose wordings differ are counted together where a judge says that they are one answer."""

import json

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.prompts import read_yes
from reflux.agents.types import ChatRequest
from reflux.agents.verifiers import Judge
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import amplified, asking

ASKED = Origin("run", 0, "amplified", "letters", "train")
SAID = ["It is Paris.", "Lyon", "Paris", "The capital: Paris!", "Lyon, I think", "paris"]
POLICY = VotePolicy(min_logprob=None, rule=AheadBy(2, 6))


def comparing(request: ChatRequest) -> str:
    """Copies of many wordings, and a judge who looks for the city."""
    asked = request.messages[-1][1]
    if not asked.startswith("Question:"):
        return SAID[request.vote]
    first, second = asked.lower().split("first answer:")[1].split("second answer:")
    return "YES" if any(city in first and city in second for city in ("paris", "lyon")) else "No."


async def voted(store: TraceStore, client: ScriptedClient, judge: Judge | None) -> Outcome:
    system = amplified(store, client, asking("capital of France?"), votes=POLICY, same=judge)
    return (await answer_all(system, ASKED, ["root"]))[0]


async def test_a_judge_counts_wordings_of_one_answer_together(store: TraceStore) -> None:
    client = ScriptedClient(comparing)
    outcome = await voted(store, client, Judge())
    assert outcome["answer"] == "It is Paris."
    (row,) = store.select("SELECT detail FROM judgements WHERE kind='direct'")
    assert json.loads(row["detail"])["tally"] == [["It is Paris.", 3], ["Lyon", 1]]
    assert outcome["spent"]["calls"] == len(client.requests)


async def test_what_was_compared_is_not_compared_again(store: TraceStore) -> None:
    client = ScriptedClient(comparing)
    await voted(store, client, Judge())
    asked = [
        r.messages[-1][1] for r in client.requests if r.messages[-1][1].startswith("Question:")
    ]
    # Lyon with Paris, then each new wording with the answers before it.
    assert len(asked) == len(set(asked)) == 3


async def test_without_one_each_wording_is_an_answer_of_its_own(store: TraceStore) -> None:
    await voted(store, ScriptedClient(comparing), None)
    (row,) = store.select("SELECT detail FROM judgements WHERE kind='direct'")
    assert len(json.loads(row["detail"])["tally"]) == 6


async def test_its_comparisons_are_replayed(store: TraceStore) -> None:
    client = ScriptedClient(comparing)
    one = await voted(store, client, Judge())
    made = len(client.requests)
    assert await voted(store, client, Judge()) == one
    assert len(client.requests) == made


async def test_a_judge_that_does_not_answer_fails_the_question_and_keeps_its_votes(
    store: TraceStore,
) -> None:
    def reply(request: ChatRequest) -> str:
        if request.messages[-1][1].startswith("Question:"):
            raise EndpointError("down")
        return SAID[request.vote]

    await voted(store, ScriptedClient(reply), Judge())
    (row,) = store.select("SELECT detail FROM judgements WHERE kind='direct'")
    detail = json.loads(row["detail"])
    assert (detail["status"], detail["error"]) == ("failed", "down")
    assert detail["votes"] == 2


@pytest.mark.parametrize(
    ("reply", "yes"), [("Yes.", True), ("NO, they are not", False), ("Perhaps", None), ("", None)]
)
def test_a_judge_says_yes_or_no_or_nothing(reply: str, yes: bool | None) -> None:
    assert read_yes(reply) is yes
