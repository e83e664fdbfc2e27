"""The direct answer to a root question is weighed against those of several decompositions."""

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.overseers.router import Past, Router
from reflux.agents.types import Answer, Ask, ChatRequest, Step
from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Candidate, Weighing, agree
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import ONE_VOTE, answers_of, asked_of, rejecting

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
        ("का", "की", False),
        ("C", "C++", False),
        ("C#", "C", False),
        ("2 + 3", "2+3", True),
        ("✅", "❌", False),
        ("<", ">", False),
        ("61", "86 + 61 = 147", False),
        ("147", "86 + 61 = 147", True),
        ("147", "147, which is 86 + 61", False),
        ("-128", "205 - 838 + 505 = -128", True),
        ("Room 12", "It is in Room 12 of 40", True),
        ("<", "<.", True),
        ("", "✅", False),
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


def test_of_answers_that_agree_the_whole_one_is_chosen() -> None:
    cut = candidate("Paris, since", divided=False, truncated=True)
    whole = candidate("Paris", divided=True)
    choice = Weighing().choose(QUESTION, [cut, whole], 0)
    assert choice is not None
    assert choice.candidate == whole
    assert choice.detail["candidates"][0]["answer"] == "Paris"


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


class Dividing:
    """Asks what stands at the place of its attempt, and answers with the reply."""

    name = "dividing"

    def __init__(self, *parts: str) -> None:
        self.parts = parts
        self.attempts: list[int] = []

    async def act(self, context: OverseerContext) -> Step:
        if context.path:
            return PASS
        if context.transcript:
            return Answer(str(context.transcript[-1].answer))
        self.attempts.append(context.attempt)
        part = self.parts[context.attempt]
        return Ask.of(part) if part else Ask((), "not decomposable: too plain")


def reply(request: ChatRequest) -> str:
    asked = request.messages[-1][1]
    return "direct" if asked == "root" else asked


def weighed(
    store: TraceStore, overseer: Dividing, **other: object
) -> tuple[Amplified, ScriptedClient]:
    client = ScriptedClient(reply)
    options = {"votes": ONE_VOTE, "weighing": Weighing()} | other
    context = AmplifyContext(RecordedClient(client, store), "base", [overseer], **options)  # type: ignore[arg-type]
    return Amplified(context), client


@pytest.mark.parametrize(
    ("parts", "answer", "calls"),
    [
        (("direct",), "direct", 2),
        (("x", "x"), "x", 3),
        (("x", "y"), "direct", 3),
        (("x", "direct"), "direct", 3),
        (("",), "direct", 1),
        (("x", ""), "direct", 2),
    ],
)
async def test_decompositions_follow_until_none_could_change_the_answer(
    store: TraceStore, parts: tuple[str, ...], answer: str, calls: int
) -> None:
    overseer = Dividing(*parts)
    system, client = weighed(store, overseer)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == (answer, "unchecked")
    assert outcome["spent"]["calls"] == len(client.requests) == calls
    assert asked_of(client)[0] == "root"
    assert overseer.attempts == list(range(len(parts)))
    again = await answers_of(system, "root")
    assert again["answer"] == answer
    assert len(client.requests) == calls


async def test_the_record_says_what_each_answer_weighed(store: TraceStore) -> None:
    system, _ = weighed(store, Dividing("x", "x"))
    await answers_of(system, "root")
    assert load_tree(store, "root-id").note == (
        "'direct' weighs 1.5 (the direct answer); 'x' weighs 2 (2 decompositions)"
    )
    system, _ = weighed(store, Dividing(""))
    await store.add_question({"id": "other", "text": "root"})
    await system.answer("root", "other")
    assert load_tree(store, "other").note == "not decomposable: too plain"


async def test_where_there_is_a_check_the_first_answer_that_passes_it_stands(
    store: TraceStore,
) -> None:
    system, client = weighed(store, Dividing("x", "y"), checker=rejecting("direct"))
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("x", "ok")
    assert asked_of(client) == ["root", "x"]


async def test_a_budget_that_ends_leaves_the_direct_answer(store: TraceStore) -> None:
    system, _ = weighed(store, Dividing("x", "x"), limits=Limits(calls=1))
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("direct", "unchecked")


async def test_an_overseer_that_fails_leaves_the_direct_answer(store: TraceStore) -> None:
    system, client = weighed(store, Dividing())
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("direct", "unchecked")
    assert "IndexError" in load_tree(store, "root-id").note
    assert len(client.requests) == 1


async def test_candidates_need_attempts_and_no_other_rule_of_acceptance(store: TraceStore) -> None:
    system, _ = weighed(store, Dividing(), limits=Limits(attempts=2))
    with pytest.raises(UsageError, match=r"candidates is 2 and .* only 2: raise"):
        await answers_of(system, "root")
    with pytest.raises(UsageError, match="leave out"):
        weighed(store, Dividing(), checks=CheckPolicy(confirm=2))


async def test_the_first_decomposition_is_asked_as_without_a_direct_answer(
    store: TraceStore,
) -> None:
    system, client = weighed(store, Dividing("x", "x"), votes=VotePolicy(max_votes=1))
    await answers_of(system, "root")
    direct, first, second = client.requests
    assert direct.sampling.temperature == first.sampling.temperature == 0
    assert second.sampling.temperature > 0
    assert second.sampling.seed != first.sampling.seed
