"""Error checking by other methods than the one that found an answer, and what follows a failure."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.prompts import read_verdict
from reflux.agents.tools.calculator import Calculator
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Step
from reflux.agents.verifiers import (
    BackwardVerifier,
    ConsistencyVerifier,
    CriticVerifier,
    RuleChecker,
    ToolVerifier,
)
from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, Limits
from reflux.graphs.amplify.interrupts import InterruptibleRun, open_interruptible_run
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from tests.support.amplifying import (
    ONE_VOTE,
    Transcript,
    amplified,
    answers_of,
    asked_of,
    asking,
    echo,
    rejecting,
)

ASKED = Origin("run", 0, "amplified", "letters", "train")


async def answered(store: TraceStore, client: ScriptedClient, *ways: Any, **other: Any) -> Outcome:
    system = amplified(store, client, *ways, **other)
    await store.add_question({"id": "q", "text": "root", **vars(ASKED)})
    return await system.answer("root", "q")


def checks(store: TraceStore) -> list[tuple[int, str]]:
    rows = store.select("SELECT ok, detail ->> 'rule' FROM judgements WHERE kind='check'")
    return [tuple(row) for row in rows]


def critical(verdict: str) -> ScriptedClient:
    """A model that answers in capitals, and as a critic says `verdict`."""

    def reply(request: ChatRequest) -> str:
        asked = request.messages[-1][1]
        return verdict if "Proposed answer" in asked else asked.upper()

    return ScriptedClient(reply)


@pytest.mark.parametrize(
    ("said", "status"), [("All well. RIGHT", "ok"), ("No. WRONG.", "rejected"), ("Hm?", "ok")]
)
async def test_a_critic_rejects_what_it_calls_wrong(
    store: TraceStore, said: str, status: str
) -> None:
    client = critical(said)
    outcome = await answered(
        store, client, asking("a", "b"), verifiers=[CriticVerifier()], limits=Limits(attempts=2)
    )
    assert outcome["status"] == status
    assert outcome["answer"] == "A+B"
    assert {rule for _, rule in checks(store)} == ({"critic"} if status != "ok" else {""})
    # Its calls are on the record, in the price, and see question, sub-answers and answer.
    critic = [text for text in asked_of(client) if "Proposed answer" in text]
    assert outcome["spent"]["calls"] == len(client.requests)
    assert all("root" in text and "A+B" in text and "- a A" in text for text in critic)


async def test_an_answer_whose_critic_is_out_of_reach_has_failed_and_says_why(
    store: TraceStore,
) -> None:
    def reply(request: ChatRequest) -> str:
        if "Proposed answer" in request.messages[-1][1]:
            raise EndpointError("the endpoint is down")
        return echo(request)

    client = ScriptedClient(reply)
    outcome = await answered(
        store, client, asking("a"), verifiers=[CriticVerifier()], limits=Limits(attempts=2)
    )
    assert (outcome["status"], outcome["answer"]) == ("failed", "A")
    assert outcome["error"] == "the answer could not be verified: the endpoint is down"


async def test_attempts_that_can_never_agree_are_refused_before_any_call(
    store: TraceStore,
) -> None:
    client = ScriptedClient(echo)
    with pytest.raises(UsageError, match=r"confirm is 3 and limits\.attempts only 2: raise"):
        await answered(
            store, client, asking("a"), checks=CheckPolicy(confirm=3), limits=Limits(attempts=2)
        )
    assert client.requests == []


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("RIGHT", True),
        ("It seems right at first, but it is **wrong**.", False),
        ("wrong? no: right", True),
        ("I cannot say", None),
        ("", None),
    ],
)
def test_the_last_word_of_a_critic_counts(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


def sums(question: str, transcript: Transcript, may_ask: bool) -> Step:
    """2 + 3 asked of X."""
    if question != "root":
        return PASS
    return Answer(str(transcript[0].answer)) if transcript else Ask.of("2+3")


@pytest.mark.parametrize(("found", "status"), [("5", "ok"), ("6", "rejected")])
async def test_the_inverse_question_finds_a_wrong_sum(
    store: TraceStore, found: str, status: str
) -> None:
    client = ScriptedClient(
        lambda r: found if r.messages[-1][1] == "2+3" else str(int(r.messages[-1][1][0]) - 3)
    )
    inverse = BackwardVerifier(lambda question, answer: (f"{answer}-3", lambda left: left == "2"))
    outcome = await answered(store, client, sums, verifiers=[inverse], limits=Limits(attempts=1))
    assert outcome["status"] == status


@pytest.mark.parametrize(("found", "status"), [("5", "ok"), ("6", "rejected")])
async def test_a_tool_finds_a_wrong_sum(store: TraceStore, found: str, status: str) -> None:
    tool = ToolVerifier(
        Calculator(), lambda question, answer: "2+3", lambda ours, theirs: ours == theirs
    )
    outcome = await answered(
        store, ScriptedClient(lambda _: found), sums, verifiers=[tool], limits=Limits(attempts=1)
    )
    assert outcome["status"] == status


async def test_a_tool_that_refuses_tells_nothing(store: TraceStore) -> None:
    tool = ToolVerifier(Calculator(), lambda question, answer: "2+", lambda ours, theirs: False)
    outcome = await answered(store, ScriptedClient(lambda _: "5"), sums, verifiers=[tool])
    assert outcome["status"] == "ok"


@pytest.mark.parametrize("broken", [False, True])
async def test_an_answer_must_follow_from_its_parts(store: TraceStore, broken: bool) -> None:
    def holds(question: str, transcript: Sequence[Exchange], answer: str) -> bool:
        if broken:
            raise ValueError("no parts")
        return all(str(said.answer) in answer for said in transcript)

    outcome = await answered(
        store,
        ScriptedClient(echo),
        asking("a", "b"),
        verifiers=[ConsistencyVerifier("parts", holds)],
    )
    assert outcome["status"] == ("rejected" if broken else "ok")


async def test_an_examiner_that_gives_no_verdict_leaves_doubt(store: TraceStore) -> None:
    class Careless:
        async def verify(self, *_: object) -> Any:
            return "yes"

    outcome = await answered(store, ScriptedClient(echo), asking("a"), verifiers=[Careless()])
    assert outcome["status"] == "rejected"
    assert checks(store)[0] == (0, "Careless raised TypeError")


async def test_an_examiner_that_raises_leaves_doubt_and_ends_nothing(store: TraceStore) -> None:
    def holds(question: str, transcript: Sequence[Exchange], answer: str) -> bool:
        raise KeyError(question)

    outcome = await answered(
        store, ScriptedClient(echo), asking("a"), verifiers=[ConsistencyVerifier("parts", holds)]
    )
    assert outcome["status"] == "rejected"
    assert checks(store)[0] == (0, "ConsistencyVerifier raised KeyError")


async def test_rules_come_before_examiners_that_cost(store: TraceStore) -> None:
    client = critical("WRONG")
    outcome = await answered(
        store, client, asking("a"), verifiers=[CriticVerifier()], checker=rejecting("A")
    )
    assert outcome["status"] == "rejected"
    assert not [text for text in asked_of(client) if "Proposed answer" in text]


async def test_two_decompositions_have_to_agree(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    outcome = await answered(
        store, client, asking("a"), asking("b"), asking("b"), checks=CheckPolicy(confirm=2)
    )
    assert outcome["answer"] == "B"
    assert outcome["status"] == "unchecked"
    assert asked_of(client) == ["a", "b", "b"]


async def test_where_too_few_agree_the_answer_is_rejected_and_kept(store: TraceStore) -> None:
    outcome = await answered(
        store, ScriptedClient(echo), asking("a"), asking("b"), asking("c"),
        checks=CheckPolicy(confirm=2),
    )  # fmt: skip
    assert outcome["status"] == "rejected"
    assert outcome["answer"] == "A"
    assert outcome["error"] == "the check 'unconfirmed' failed"


async def test_a_policy_may_retry_the_same_decomposition_before_another(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    outcome = await answered(
        store, client, asking("a"), asking("b"),
        checker=rejecting("A"), checks=CheckPolicy(after_failure=("retry", "other")),
        votes=ONE_VOTE,
    )  # fmt: skip
    assert outcome["answer"] == "B"
    assert asked_of(client) == ["a", "a", "b"]
    assert len({request.sampling.seed for request in client.requests[:2]}) == 2


@asynccontextmanager
async def waiting(folder: Path, client: ScriptedClient) -> AsyncIterator[InterruptibleRun]:
    store = TraceStore(folder / "traces.db")
    context = AmplifyContext(
        RecordedClient(client, store),
        "base",
        [ScriptedOverseer("way", asking("a"))],
        rejecting("A", "mine"),
        checks=CheckPolicy(after_failure=("retry", "human")),
        votes=ONE_VOTE,
    )
    async with open_interruptible_run(context, folder / "checkpoints.db") as interruptible_run:
        yield interruptible_run
    store.close()


async def test_a_person_is_asked_where_checks_go_on_failing_and_has_the_last_word(
    tmp_path: Path,
) -> None:
    client = ScriptedClient(echo)
    async with waiting(tmp_path, client) as interruptible_run:
        progress = await interruptible_run.ask("root", "q")
    assert progress.outcome is None
    (pending,) = progress.pending
    assert pending.form["question"] == "root"
    assert pending.form["failed"] == ["A", "A"]
    async with waiting(tmp_path, client) as interruptible_run:
        done = await interruptible_run.reply("q", {pending.id: {"kind": "answer", "text": "mine"}})
    assert done.outcome is not None
    assert (done.outcome["answer"], done.outcome["status"]) == ("mine", "ok")
    assert asked_of(client) == ["a", "a"]


def test_an_action_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="is 'humn'; choose one of retry"):
        CheckPolicy(after_failure=cast(Any, ("humn",)))
    with pytest.raises(UsageError, match=r"checks.confirm is 0"):
        CheckPolicy(confirm=0)


class Broken:
    has_rules = True

    def __init__(self, result: Any) -> None:
        self._result = result

    def check(self, question: str, answer: str) -> Any:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


@pytest.mark.parametrize(
    "checker",
    [Broken(KeyError("where")), RuleChecker({"odd": lambda q, a: {}[q] == a})],
)
async def test_a_checker_that_fails_ends_the_question_with_one_message(
    tmp_path: Path, checker: Any
) -> None:
    failure = r"the checker \w+ failed on the answer .* to .*Error.*correct it and repeat"
    client = ScriptedClient(echo)
    system = amplified(TraceStore(tmp_path / "t.db"), client, asking("a"), checker=checker)
    with pytest.raises(RefluxError, match=failure):
        await answers_of(system, "root")
    system.context.recorded_client.store.close()
