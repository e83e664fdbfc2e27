"""Decompose only where it pays: the router learns from past questions which ones X can do alone."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.router import Past, Routed, Router, logistic
from reflux.agents.types import Answer, Ask, ChatRequest, Completion, Step, TokenLogprob
from reflux.graphs.amplify.direct_answer import first_request
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.store import TraceStore
from tests.support.amplifying import ONE_VOTE, Transcript, amplified, answers_of


def easy(i: int) -> str:
    return f"What is the capital of country {i}?"


def hard(i: int) -> str:
    return f"Multiply the numbers {i} and {i + 7} step by step."


def murky(i: int) -> str:
    return f"Is the animal number {i} heavier than a cow?"


def past(n: int = 60) -> list[Past]:
    """Of easy ones X alone is right, of hard ones only the tree, and of murky ones X where sure."""
    luck = random.Random(0)
    found: list[Past] = []
    for i in range(n):
        found += [Past(easy(i), -0.1, True, i % 3 > 0), Past(hard(i), -0.1, False, True)]
        min_logprob = luck.random() < 0.5
        found.append(
            Past(murky(i), -0.01 if min_logprob else -2.0, min_logprob, luck.random() < 0.6)
        )
    return found


def test_like_questions_alone_decide_where_they_are_clear() -> None:
    router = Router.fit(past())
    one, other = (router.before(router.similar(kind(1000))) for kind in (easy, hard))
    assert one is not None
    assert other is not None
    assert (one.decompose, other.decompose) == (False, True)
    assert one.seen == "like"


def test_where_they_are_not_clear_x_s_own_certainty_decides() -> None:
    router = Router.fit(past())
    similar = router.similar(murky(1000))
    assert router.before(similar) is None
    min_logprob, unsure = router.after(-0.01, similar), router.after(-2.0, similar)
    assert (min_logprob.decompose, unsure.decompose) == (False, True)
    assert min_logprob.direct > unsure.direct


def test_a_question_like_no_other_is_looked_at_and_not_guessed() -> None:
    router = Router.fit(past())
    assert router.before(router.similar("Ünïcödé: ζωή;")) is None


def test_a_router_needs_a_past() -> None:
    with pytest.raises(UsageError, match="20 past questions or more, there are 3"):
        Router.fit(past(1))


def test_a_router_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    router, path = Router.fit(past()), tmp_path / "router.json"
    router.save(path)
    assert Router.load(path) == router
    path.write_text(json.dumps({"past": [{"no": 1}]}))
    with pytest.raises(UsageError, match="does not hold a router"):
        Router.load(path)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_the_regression_finds_no_slope_at_its_weights(seed: int) -> None:
    luck = np.random.default_rng(seed)
    x = np.hstack([np.ones((80, 1)), luck.normal(size=(80, 3))])
    y = (luck.random(80) < 1 / (1 + np.exp(-(x @ [0.3, 1.0, -2.0, 0.0])))).astype(float)
    w = np.array(logistic(x, y))
    held = np.diag([1e-6, 1.0, 1.0, 1.0])
    slope = x.T @ (y - 1 / (1 + np.exp(-(x @ w)))) - held @ w
    assert np.abs(slope).max() < 1e-6


def divided(question: str, transcript: Transcript, may_ask: bool) -> Step:
    if transcript:
        return Answer("from the tree")
    return Ask.of(f"part of {question}")


def routed(store: TraceStore, client: ScriptedClient) -> Amplified:
    system = amplified(store, CachedClient(client), divided, votes=ONE_VOTE)
    (inner,) = system.context.overseers
    context = system.context
    h = Routed(inner, Router.fit(past()), lambda question: first_request(context, question))
    return amplified_with(system, h)


def amplified_with(system: Amplified, h: Routed) -> Amplified:
    from dataclasses import replace

    return Amplified(replace(system.context, overseers=(h,)))


def certain(logprob: float):
    def reply(request: ChatRequest) -> Completion:
        return Completion("alone", 3, 1, logprobs=(TokenLogprob("alone", logprob),))

    return reply


@pytest.mark.parametrize(
    ("question", "logprob", "answer", "made"),
    [
        (easy(900), -1.0, "alone", 1),  # Known to be easy: X alone.
        (hard(900), 0.0, "from the tree", 1),  # Known to be hard: the tree's one leaf.
        (murky(900), -0.01, "alone", 1),  # Looked at; the answer is taken from the cache.
        (murky(900), -2.0, "from the tree", 2),  # Looked at, and then divided.
    ],
)
async def test_a_question_is_divided_only_where_the_router_says_so(
    store: TraceStore, question: str, logprob: float, answer: str, made: int
) -> None:
    client = ScriptedClient(certain(logprob))
    outcome = await answers_of(routed(store, client), question)
    assert (outcome["answer"], len(client.requests)) == (answer, made)
    if answer == "alone":
        (step,) = store.select("SELECT completion FROM calls WHERE kind='script'")
        assert json.loads(step["completion"])["note"].startswith("router: X alone, ")
