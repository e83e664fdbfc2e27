"""What the log tells of votes: accuracy, correlation and the worth of red flags."""

from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.agents.verifiers import RedFlags
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.vote_log import (
    by_acceptance,
    by_task,
    flag_effects,
    measure,
    voted_questions,
)
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.addition import Addition
from tests.support.amplifying import amplified, asking

ASKED = Origin("run", 0, "amplified", "letters", "train")


def completion(text: str, logprob: float = -1.0) -> Completion:
    return Completion(text, 3, 2, logprobs=(TokenLogprob(text, logprob),))


async def voted(store: TraceStore, reply: Any, *texts: str, **other: Any) -> None:
    system = amplified(store, ScriptedClient(reply), asking(*texts), **other)
    await answer_all(system, ASKED, ["root"])


async def test_votes_are_read_in_order_with_the_answer_they_chose(store: TraceStore) -> None:
    replies = {0: "no", 1: "yes", 2: "yes", 3: "yes"}
    await voted(
        store,
        lambda r: completion(replies[r.vote]),
        "a",
        votes=VotePolicy(rule=AheadBy(2, 9), min_logprob=None),
    )
    (one,) = voted_questions(store, "amplified")
    assert (one.question, one.answer) == ("a", "yes")
    assert [reply.text for reply in one.replies] == ["no", "yes", "yes", "yes"]
    assert list(voted_questions(store, "another")) == []


async def test_first_votes_alone_measure_the_accuracy(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> Completion:
        asked = request.messages[-1][1]
        return completion("wrong" if asked == "a" and request.vote == 0 else "right")

    policy = VotePolicy(rule=AheadBy(1, 9), min_logprob=None)
    await voted(store, reply, "a", "b", "c", "d", votes=policy)
    measured = measure(list(voted_questions(store)), lambda question, text: text == "right")
    assert measured is not None
    assert measured.accuracy == 0.75
    assert measured.questions == 4
    assert measured.steps == 4
    assert measured.tokens == 5
    assert measured.wrong_answers == 0.25
    assert sorted(measured.marked) == [(False,), (True,), (True,), (True,)]


async def test_where_nobody_knows_the_truth_nothing_is_measured(store: TraceStore) -> None:
    await voted(store, lambda r: completion("x"), "a")
    assert measure(list(voted_questions(store)), lambda question, text: None) is None


def test_a_task_marks_held_out_questions_alone() -> None:
    task = Addition()
    (held_out,) = task.sample(1, 3, "held_out", 0)
    (train,) = task.sample(1, 3, "train", 0)
    right = by_task(task)
    assert right(train, "anything") is None
    assert right(held_out, "no sum") is False


async def test_against_accepted_answers_a_shared_error_looks_right(store: TraceStore) -> None:
    await voted(store, lambda r: completion("wrong"), "a", "b")
    log = list(voted_questions(store))
    measured = measure(log, by_acceptance(log, str.strip))
    assert measured is not None
    assert measured.accuracy == 1.0


async def test_a_flag_is_worth_what_it_discards(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> Completion:
        asked = request.messages[-1][1]
        return completion("perhaps 4" if asked in "ab" else "4")

    await voted(store, reply, "a", "b", "c", votes=VotePolicy(max_votes=1))
    log = list(voted_questions(store))
    flags = RedFlags(hedges=("perhaps",), longest=100)
    effects = {e.rule: e for e in flag_effects(log, flags, lambda question, text: text == "4")}
    assert set(effects) == {"hedges", "longest"}
    assert (effects["hedges"].flagged, effects["hedges"].n) == (2, 3)
    assert effects["hedges"].accuracy_flagged == 0.0
    assert effects["hedges"].accuracy_kept == 1.0
    assert effects["longest"].accuracy_flagged is None
    assert effects["longest"].accuracy_kept == pytest.approx(1 / 3)


async def test_flagged_replies_have_no_vote_and_are_asked_again(store: TraceStore) -> None:
    replies = {0: "perhaps 5", 1: "4", 2: "4"}
    client = ScriptedClient(lambda r: completion(replies[r.vote]))
    policy = VotePolicy(rule=AheadBy(2, 9), min_logprob=None)
    system = amplified(
        store, client, asking("a"), votes=policy, flags=RedFlags(hedges=("perhaps",))
    )
    (outcome,) = await answer_all(system, ASKED, ["root"])
    assert outcome["answer"] == "4"
    (row,) = store.select("SELECT detail ->> 'flags' FROM judgements WHERE kind='direct'")
    assert row[0] == '{"hedges":1}'
