"""The direct answer to a root question is weighed against those of several decompositions."""

import math
from collections.abc import Sequence

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS, ModelContext, OverseerContext
from reflux.agents.overseers.router import Past, Router
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Exchange,
    Step,
    TokenLogprob,
)
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Candidate, Weighing, agree
from reflux.graphs.ask import Amplified, Origin, ask
from reflux.graphs.ask_options import options_of
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.confidence import Cascade
from reflux.graphs.voting.voting import VotePolicy
from reflux.report.terminal import tree_view
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


async def test_the_record_says_which_answer_was_taken_and_why(store: TraceStore) -> None:
    system, _ = weighed(store, Dividing("x", "x"))
    await answers_of(system, "root")
    root = load_tree(store, "root-id")
    assert root.note == (
        'a decomposition\'s answer was taken: both decompositions say "x", the direct answer was '
        '"direct"'
    )
    assert [(each["answer"], each["weight"]) for each in root.candidates] == [
        ("direct", 1.5),
        ("x", 2.0),
    ]
    assert [child.decomposition for child in root.children] == ["1 of 2", "2 of 2"]
    assert root.division == "divided 2 times into 1 and 1 sub-questions"
    assert root.children[0].division == "not divided: the overseer left it to the agent"
    assert root.to_json()["total"]["calls"] == root.total["calls"] == 3
    assert "(own: 1 call, " in (line := str(tree_view(root).label)) and "in all: 3 calls" in line
    assert "decomposition 2 of 2:" in str(tree_view(root).children[1].label)
    system, _ = weighed(store, Dividing(""))
    await store.add_question({"id": "other", "text": "root"})
    await system.answer("root", "other")
    assert load_tree(store, "other").note == "not decomposable: too plain"


LONG = "It is the larger one of the two, since it has been measured several times in the last years"


@pytest.mark.parametrize(
    ("answers", "router", "note"),
    [
        ("aa", 0, "kept the direct answer: the decomposition gave the same one"),
        ("ab", 0, 'kept the direct answer: one decomposition, which said "b", is not enough'),
        ("aba", 0, 'kept the direct answer: 1 of 2 decompositions gave the same one, not "b"'),
        (
            "abc", 0,
            'kept the direct answer: 2 decompositions did not agree with each other ("b", "c")',
        ),
        (
            "abb", 0,
            "a decomposition's answer was taken: both decompositions say \"b\", the direct answer "
            'was "a"',
        ),
        (
            "abbb", 9,
            "kept the direct answer, which weighs 9 against 3 on questions like this: all 3 "
            'decompositions say "b"',
        ),
        (
            "ab", 0.5,
            "a decomposition's answer was taken, which weighs 1 against 0.5 on questions like "
            'this: the only decomposition says "b", the direct answer was "a"',
        ),
        (
            "aL", 0,
            'kept the direct answer: one decomposition, which said "It is the larger one of the '
            'two, since it has been …", is not enough',
        ),
    ],
)  # fmt: skip
def test_the_note_is_for_somebody_who_knows_nothing_of_weights(
    answers: str, router: float, note: str
) -> None:
    candidates = [
        candidate(LONG if answer == "L" else answer, divided=index > 0)
        for index, answer in enumerate(answers)
    ]
    choice = Weighing(direct=router or 1.5).choose(QUESTION, candidates, 0)
    assert choice is not None
    assert choice.detail["note"] == note


class Alike:
    """Finds that all answers say the same, by a call."""

    async def same(self, context: ModelContext, question: str, one: str, other: str) -> bool:
        await context.complete(ChatRequest(context.model, (("user", f"{one}={other}"),)))
        return {one, other} == {"x", "y"}


async def test_answers_in_other_words_are_compared_as_votes_are(store: TraceStore) -> None:
    system, client = weighed(store, Dividing("x", "y"), same=Alike())
    outcome = await answers_of(system, "root")
    assert outcome["answer"] == "x"
    assert asked_of(client) == ["root", "x", "direct=x", "y", "direct=y", "x=y"]
    assert outcome["spent"]["calls"] == len(client.requests)
    assert "both decompositions say" in load_tree(store, "root-id").note


async def test_where_there_is_a_check_the_first_answer_that_passes_it_stands(
    store: TraceStore,
) -> None:
    system, client = weighed(store, Dividing("x", "y"), checker=rejecting("direct"))
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == ("x", "ok")
    assert asked_of(client) == ["root", "x"]


@pytest.mark.parametrize(
    ("parts", "answer", "calls"), [(("y", "y"), "y", 3), (("x", "y"), "direct", 2)]
)
async def test_a_check_of_the_form_alone_says_what_is_weighed(
    store: TraceStore, parts: tuple[str, ...], answer: str, calls: int
) -> None:
    no_x = RuleChecker({"form": lambda question, answer: answer != "x"}, form_only=True)
    system, client = weighed(store, Dividing(*parts), checker=no_x)
    outcome = await answers_of(system, "root")
    assert (outcome["answer"], outcome["status"]) == (answer, "ok")
    assert len(client.requests) == calls


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


def sure_of(**logprobs: float) -> ScriptedClient:
    """A model that answers `of QUESTION` and is as sure of it as its name says, else certain."""

    def reply(request: ChatRequest) -> Completion:
        question = request.messages[-1][1]
        tokens = (TokenLogprob("of", -0.01), TokenLogprob("", logprobs.get(question, -0.01)))
        return Completion(f"of {question}", 3, 2, logprobs=tokens)

    return ScriptedClient(reply)


@pytest.mark.parametrize("weighing", [None, Weighing()])
@pytest.mark.parametrize(
    ("question", "answer", "calls", "note"),
    [
        ("sure", "of sure", 1, "the agent alone: it is sure to 0.90, and 0.8 is enough"),
        ("unsure", "of a, of b", 3, "amplified: the agent is sure to 0.50, below 0.8"),
        ("whole", "of whole", 1, "amplified: the agent is sure to 0.50, below 0.8"),
    ],
)
async def test_an_agent_that_is_sure_enough_answers_alone(
    store: TraceStore, question: str, answer: str, calls: int, note: str, weighing: Weighing | None
) -> None:
    def divide(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if question == "whole" or not may_ask:
            return PASS
        if not transcript:
            return Ask.of("a", "b")
        return Answer(", ".join(part.answer or "" for part in transcript))

    client = sure_of(sure=math.log(0.9), unsure=math.log(0.5), whole=math.log(0.5))
    context = AmplifyContext(
        RecordedClient(client, store), "base", (ScriptedOverseer("h", divide),),
        votes=ONE_VOTE, cascade=Cascade(0.8), weighing=weighing,
    )  # fmt: skip
    answered = await ask(context, question, Origin("run", 0, "s", "t", "asked"))
    assert answered.outcome is not None
    assert answered.outcome["answer"] == answer
    tree = load_tree(store, answered.trajectory)
    asked = [request.messages[-1][1] for request in client.requests]
    assert asked.count(question) == 1  # An answer that does not stand costs no second call.
    if weighing is None or question == "sure":
        assert note in tree.note
        assert len(asked) == calls == answered.outcome["spent"]["calls"]
    if question == "sure":
        assert answered.outcome.get("confidence") == pytest.approx(0.9)
    # The same, read from the record, with the options that it was asked with.
    options = options_of(store, answered.trajectory)
    assert options is not None
    assert Cascade.of(options.cascade) == context.cascade


async def test_a_sure_answer_that_the_check_refuses_is_amplified(store: TraceStore) -> None:
    client = sure_of()
    checker = RuleChecker({"joined": lambda question, answer: "+" in answer or question != "sum"})

    def divide(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if not transcript:
            return Ask.of("a", "b")
        return Answer("+".join(part.answer or "" for part in transcript))

    context = AmplifyContext(
        RecordedClient(client, store), "base", (ScriptedOverseer("h", divide),),
        votes=ONE_VOTE, cascade=Cascade(0.5), checker=checker,
    )  # fmt: skip
    answered = await ask(context, "sum", Origin("run", 0, "s", "t", "asked"))
    assert answered.outcome is not None
    assert (answered.outcome["answer"], answered.outcome["status"]) == ("of a+of b", "ok")
