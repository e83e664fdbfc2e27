"""Best of n: a majority without H, at the tokens of the amplified system."""

from collections.abc import Awaitable, Callable

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.types import ChatRequest, Completion
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.best_of import BestOf, equal_votes
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree

ASKED = Origin("run", 0, "best", "any", "file")


async def answered(
    store: TraceStore, said: list[str], checker: RuleChecker | None = None, **other: object
) -> tuple[Outcome, ScriptedClient]:
    """What becomes of votes that say this."""
    client = ScriptedClient(lambda request: said[request.vote])
    context = AmplifyContext(
        RecordedClient(client, store), "base", (), checker=checker or RuleChecker({})
    )
    system = BestOf(context, len(said), **other)  # type: ignore[arg-type]
    (outcome,) = await answer_all(system, ASKED, ["q"])
    return outcome, client


async def test_the_most_frequent_answer_wins_and_the_earliest_among_equals(
    store: TraceStore,
) -> None:
    outcome, client = await answered(store, ["c", "a", "b", "b", "a"])
    assert (outcome["answer"], outcome["status"]) == ("a", "unchecked")
    assert outcome["spent"]["calls"] == 5
    temperatures = [r.sampling.temperature for r in sorted(client.requests, key=lambda r: r.vote)]
    assert temperatures[0] == 0.0
    assert min(temperatures[1:]) > 0
    assert len({r.sampling.seed for r in client.requests}) == 5
    tree = load_tree(store, ASKED.question_id("q"))
    assert (tree.answer, tree.votes, tree.calls) == ("a", 5, 5)


async def test_answers_that_say_the_same_are_votes_for_one(store: TraceStore) -> None:
    outcome, _ = await answered(store, ["x", "Paris", "paris"], same_answer=str.casefold)
    assert outcome["answer"] == "Paris"


async def test_votes_that_the_check_refuses_do_not_count(store: TraceStore) -> None:
    short = RuleChecker({"short": lambda _, answer: len(answer) < 2})
    outcome, _ = await answered(store, ["long", "long", "a"], short)
    assert (outcome["answer"], outcome["status"]) == ("a", "ok")


async def test_where_the_check_refuses_all_the_majority_is_kept_and_marked(
    store: TraceStore,
) -> None:
    never = RuleChecker({"never": lambda *_: False})
    outcome, _ = await answered(store, ["a", "b", "b"], never)
    assert (outcome["answer"], outcome["status"]) == ("b", "rejected")


async def test_a_vote_that_is_missing_leaves_the_question_open(store: TraceStore) -> None:
    down = [True]

    def reply(request: ChatRequest) -> str:
        if request.vote == 2 and down[0]:
            raise EndpointError("busy")
        return "a"

    client = ScriptedClient(reply)
    system = BestOf(AmplifyContext(RecordedClient(client, store), "base", ()), 4)
    (outcome,) = await answer_all(system, ASKED, ["q"])
    assert (outcome["status"], outcome["error"]) == ("failed", "busy")
    down[0] = False
    (outcome,) = await answer_all(system, ASKED, ["q"])
    assert (outcome["answer"], outcome["status"]) == ("a", "unchecked")
    assert len(client.requests) == 5  # Those that were answered are not asked again.


def costs(votes: Callable[[int], int]) -> Callable[[int], Awaitable[int]]:
    """A price for n votes."""

    async def tokens_of(n: int) -> int:
        return votes(n)

    return tokens_of


@pytest.mark.parametrize("amplified", [1, 29, 30, 31, 299, 300, 301, 1_000])
@pytest.mark.parametrize(
    "votes",
    [lambda n: 30 * n, lambda n: 30 + 34 * (n - 1), lambda n: 30 + 21 * (n - 1)],
    ids=("even", "dearer", "cheaper"),
)
async def test_n_is_the_most_votes_that_take_no_more_tokens(
    amplified: int, votes: Callable[[int], int]
) -> None:
    tokens_of = costs(votes)
    equal = await equal_votes(tokens_of, amplified)
    assert equal.tokens == votes(equal.votes)
    if amplified < votes(1):
        assert (equal.votes, equal.dearer) == (1, True)
        return
    assert not equal.dearer
    assert equal.tokens <= amplified
    # One more does not fit, be it at the mean price of the others or at its own.
    n = equal.votes
    assert votes(n) * (n + 1) / n > amplified or votes(n + 1) > amplified


async def test_without_tokens_there_is_no_equality() -> None:
    tokens_of = costs(lambda n: 0)
    with pytest.raises(RefluxError, match="best-of-8"):
        await equal_votes(tokens_of, 100)


async def test_a_completion_is_paid_for_with_its_prompt(store: TraceStore) -> None:
    client = ScriptedClient(lambda _: Completion("a", 10, 2))
    system = BestOf(AmplifyContext(RecordedClient(client, store), "base", ()), 3)
    (outcome,) = await answer_all(system, ASKED, ["q"])
    assert outcome["spent"]["tokens"] == 36
