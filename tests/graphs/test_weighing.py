"""The direct answer to a root question is weighed against those of several decompositions."""

from typing import Any

import pytest

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.overseers.router import Past, Router
from reflux.agents.types import Answer, Ask, Step
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Candidate, Weighing, agree

QUESTION = "Which is older, A or B?"


def candidate(answer: str, *, divided: bool, truncated: bool = False) -> Candidate:
    return {"answer": answer, "divided": divided, "truncated": truncated}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Paris", "paris.", True),
        ("Paris", "The capital of France is Paris.", True),
        ("8", "It is 8.", True),
        ("8", "18", False),
        ("1,000", "1000", True),
        ("-5", "5", False),
        ("5", "5%", False),
        ("A", "B", False),
        ("Lyon", "Paris", False),
        ("New York", "York", True),
        ("東京", "東京", True),
        ("", "", True),
        ("", "Paris", False),
        ("", "...", True),
    ],
)
def test_answers_agree_in_other_words_and_never_with_other_numbers(
    one: str, other: str, same: bool
) -> None:
    assert agree(one, other) == agree(other, one) == same


@pytest.mark.parametrize(
    ("answers", "left", "chosen", "settled"),
    [
        (["a"], 2, "a", False),
        (["a"], 1, "a", True),
        (["a", "a"], 1, "a", True),
        (["a", "b"], 1, "a", False),
        (["a", "b"], 0, "a", True),
        (["a", "b", "b"], 0, "b", True),
        (["a", "b", "c"], 0, "a", True),
    ],
)
def test_only_decompositions_that_agree_outvote_the_direct_answer(
    answers: list[str], left: int, chosen: str, settled: bool
) -> None:
    candidates = [candidate(answer, divided=index > 0) for index, answer in enumerate(answers)]
    choice = Weighing().choose(QUESTION, candidates, left)
    assert choice is not None
    assert (choice.candidate["answer"], choice.settled) == (chosen, settled)


def test_what_the_token_limit_cut_weighs_nothing() -> None:
    cut = candidate("a", divided=False, truncated=True)
    choice = Weighing().choose(QUESTION, [cut, candidate("b", divided=True)], 0)
    assert choice is not None
    assert choice.candidate["answer"] == "b"


def test_a_router_weighs_by_what_was_right_on_like_questions() -> None:
    past = [Past(f"Which is older, {n} or {n + 1}?", None, n % 10 == 0, True) for n in range(40)]
    router = Router.fit(past)
    weighing = Weighing(router=router)
    direct, divided = weighing.weights(QUESTION)
    assert divided > direct
    choice = weighing.choose(
        QUESTION, [candidate("a", divided=False), candidate("b", divided=True)], 0
    )
    assert choice is not None
    assert choice.candidate["answer"] == "b"
    assert weighing.weights("何時ですか") == (1.5, 1.0)
