"""Seconds and money are one pool, of a question and of its run."""

import pytest

from reflux.agents.budget import Price, SpendLimit
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import Completion
from reflux.graphs.amplify.context import Limits
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from tests.support.amplifying import ONE_VOTE, amplified, answers_of, asking

PRICES = {"base": Price(prompt=1.0, completion=2.0)}


class Clock:
    """A clock that moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_money_follows_from_tokens_and_prices_and_replayed_calls_are_free() -> None:
    spend_limit = SpendLimit(money=1.0, prices=PRICES)
    spend_limit.pay("base", Completion("a", 200_000, 100_000))
    spend_limit.pay("other", Completion("a", 10**6, 10**6))
    spend_limit.pay("base", Completion("a", 10**6, 10**6, cached=True))
    assert spend_limit.left() == {"money": 0.6}
    spend_limit.pay("base", Completion("a", 600_000, 0))
    assert spend_limit.lacks == "money"


def test_money_that_nothing_costs_is_not_limited_in_silence() -> None:
    with pytest.raises(UsageError, match=r"limited to 2.*spend_limit\.prices"):
        SpendLimit(money=2)
    with pytest.raises(UsageError, match=r"limited to 0\.5"):
        SpendLimit().for_question(seconds=None, money=0.5)


def test_a_question_has_the_lesser_of_its_own_and_what_the_run_has_left() -> None:
    clock = Clock()
    run = SpendLimit(seconds=10, calls=2, clock=clock)
    clock.now = 4
    question = run.for_question(seconds=100, money=None)
    assert question.left() == {"seconds": 6, "calls": 2}
    question.pay("base", Completion("a"))
    question.pay("base", Completion("a"))
    assert (question.lacks, run.lacks) == ("calls", "calls")


def test_every_limit_counts_down_from_where_it_starts() -> None:
    clock = Clock()
    clock.now = 50
    spend_limit = SpendLimit(seconds=10, money=1, calls=3, tokens=20, prices=PRICES, clock=clock)
    assert spend_limit.left() == {"seconds": 10, "money": 1, "calls": 3, "tokens": 20}
    clock.now = 54
    spend_limit.pay("base", Completion("a", 3, 4))
    spend_limit.pay("other", Completion("a", 1, 2))
    left = spend_limit.left()
    assert left == {"seconds": 6, "money": pytest.approx(1 - 11e-6), "calls": 1, "tokens": 10}
    spend_limit.pay("other", Completion("a", 10, 1))
    assert spend_limit.left()["tokens"] == 0


def test_a_question_pays_the_runs_prices_from_the_runs_money_as_well() -> None:
    run = SpendLimit(money=1.0, calls=5, prices=PRICES)
    question = run.for_question(seconds=None, money=0.5)
    question.pay("base", Completion("a", 100_000, 0))
    assert (question.left()["money"], run.left()["money"]) == (0.4, 0.9)
    run.pay("base", Completion("a", 800_000, 0))
    assert question.left() == {"money": pytest.approx(0.1), "calls": 3}


@pytest.mark.parametrize("kind", ["prompt", "completion"])
def test_a_price_is_never_negative(kind: str) -> None:
    with pytest.raises(UsageError) as refused:
        Price(**{kind: -0.5})
    assert str(refused.value) == f"spend_limit.prices.{kind} is -0.5; it must be at least 0"


def test_nothing_is_lacking_where_nothing_is_limited() -> None:
    spend_limit = SpendLimit()
    spend_limit.pay("base", Completion("a", 10**9, 10**9))
    assert (spend_limit.lacks, spend_limit.left()) == (None, {})


async def test_where_time_runs_out_no_copy_is_asked_and_h_joins_what_there_is(
    store: TraceStore,
) -> None:
    clock = Clock()

    def slow(_: object) -> str:
        clock.now += 3
        return "late"

    system = amplified(
        store, ScriptedClient(slow), asking("a", "b", "c"), votes=ONE_VOTE,
        limits=Limits(seconds=5), spend_limit=SpendLimit(clock=clock),
    )  # fmt: skip
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["spent"]["calls"]) == ("late+late+None", 2)
    (cut,) = load_tree(store, "root-id").children[2:]
    assert (cut.status, cut.error) == ("over_budget", "no seconds left")


async def test_a_run_without_money_left_asks_nothing_more(store: TraceStore) -> None:
    client = ScriptedClient(lambda _: Completion("a", 500_000, 0))
    spend_limit = SpendLimit(money=1.0, prices=PRICES)
    first = amplified(store, client, asking("a", "b"), votes=ONE_VOTE, spend_limit=spend_limit)
    assert (await answers_of(first, "root"))["status"] == "unchecked"
    second = amplified(store, client, asking("a", "b"), votes=ONE_VOTE, spend_limit=spend_limit)
    outcome = await answers_of(second, "another")
    assert (outcome["status"], outcome["answer"], len(client.requests)) == ("over_budget", None, 2)
