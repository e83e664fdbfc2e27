"""Records of answers: confidence, price and depth, all from the log; and the breakdown."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from reflux.agents.budget import Price
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.calculator import Calculator
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Exchange,
    Step,
    SubQuestion,
    TokenLogprob,
)
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, Spent
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.answers import Answered, Ledger, SeedResult, answers_of, confidence
from reflux.graphs.evals.eval_task import LevelEvalTask
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.results import Grading
from reflux.graphs.evals.runner import marks_of
from reflux.graphs.evals.scores import Breakdown, Level, PartRight, Score, Tally
from reflux.graphs.evals.task import task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.combiners import Expert
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.addition import Addition
from tests.support.amplifying import ONE_VOTE, amplified, asking

ASKED = Origin("run", 0, "x", "any", "file")


def min_logprob(text: str, *logprobs: float) -> Completion:
    tokens = tuple(TokenLogprob("t", logprob) for logprob in logprobs)
    return Completion(text, 10, 2, seconds=0.5, logprobs=tokens)


async def confidence_of(system: System, question: str) -> float | None:
    await answer_all(system, ASKED, [question])
    store = system.context.recorded_client.store
    root = ASKED.question_id(question)
    return confidence(store, root, load_tree(store, root))


def direct(store: TraceStore, reply: Any, **other: Any) -> Direct:
    context = AmplifyContext(RecordedClient(ScriptedClient(reply), store), "base", (), **other)
    return Direct(context)


async def test_one_copy_is_as_sure_as_its_least_certain_token(store: TraceStore) -> None:
    system = direct(store, lambda _: min_logprob("a", -0.1, -0.7, 0.0))
    assert await confidence_of(system, "q") == pytest.approx(math.exp(-0.7))


async def test_without_log_probabilities_nobody_knows(store: TraceStore) -> None:
    assert await confidence_of(direct(store, lambda _: "a"), "q") is None


async def test_an_answer_that_is_missing_has_no_confidence(store: TraceStore) -> None:
    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        raise ValueError("H is ill")

    assert await confidence_of(amplified(store, ScriptedClient(str), act), "root") is None


async def test_a_vote_is_as_sure_as_its_share(store: TraceStore) -> None:
    replies = ["a", "b", "b", "b"]
    client = ScriptedClient(lambda request: min_logprob(replies[request.vote], -2.0))
    votes = VotePolicy(margin=2, max_votes=4)
    system = amplified(store, client, asking("part"), votes=votes)
    assert await confidence_of(system, "root") == pytest.approx(3 / 4)


async def test_experts_are_as_sure_as_they_agree(store: TraceStore) -> None:
    client = ScriptedClient(lambda request: "a" if request.messages[0][1] != "odd" else "b")
    experts = [Expert(str(i), system="odd" if i == 2 else "even") for i in range(3)]
    system = amplified(store, client, lambda *_: PASS, experts=experts, everyone=True)
    assert await confidence_of(system, "q") == pytest.approx(2 / 3, abs=1e-3)


async def test_a_combination_is_as_sure_as_its_least_sure_part(store: TraceStore) -> None:
    logprobs = {"one": -0.2, "two": -0.9}

    def reply(request: ChatRequest) -> Completion:
        text = request.messages[-1][1]
        return min_logprob(text, logprobs[text])

    system = amplified(store, ScriptedClient(reply), asking("one", "two"), votes=ONE_VOTE)
    assert await confidence_of(system, "root") == pytest.approx(math.exp(-0.9))


async def test_what_one_part_leaves_open_the_whole_does(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> Completion:
        return min_logprob("x", -0.3) if request.messages[-1][1] == "one" else Completion("y", 1, 1)

    system = amplified(store, ScriptedClient(reply), asking("one", "two"))
    assert await confidence_of(system, "root") is None


async def test_only_the_parts_of_the_last_attempt_count(store: TraceStore) -> None:
    def reply(request: ChatRequest) -> Completion:
        first = request.messages[-1][1] == "one"
        return min_logprob("bad", -3.0) if first else min_logprob("good", -0.4)

    fussy = RuleChecker({"good": lambda q, answer: q != "root" or answer == "good"})
    system = amplified(
        store, ScriptedClient(reply), asking("one"), asking("two"), checker=fussy, votes=ONE_VOTE
    )
    assert await confidence_of(system, "root") == pytest.approx(math.exp(-0.4))


async def test_h_and_tools_bring_no_doubt_of_their_own(store: TraceStore) -> None:
    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if question == "known":
            return Answer("7")
        if question != "root":
            return Ask(())
        return Answer("done") if transcript else Ask.of("known", "part")

    system = amplified(store, ScriptedClient(lambda _: min_logprob("x", -0.6)), act, votes=ONE_VOTE)
    assert await confidence_of(system, "root") == pytest.approx(math.exp(-0.6))
    assert await confidence_of(system, "known") is None


TASK = Addition()


def sums(request: ChatRequest) -> Completion:
    """Right, but where both numbers are the same length and begin with the digit 1."""
    a, b = (int(part[::-1]) for part in request.messages[-1][1].rstrip("=").split("+")[:2])
    carry = request.messages[-1][1].count("+") - 1
    length = len(request.messages[-1][1].split("+")[0]) + 1
    off = 9 if request.messages[-1][1].startswith("1") else 0
    return min_logprob(str(a + b + carry + off).zfill(length)[::-1], -0.1)


async def records(
    store: TraceStore, system: System, key: str, prices: dict[str, Price] | None = None
) -> list[Answered]:
    eval_task = LevelEvalTask(TASK, 2, 40)
    questions = eval_task.questions(1)
    asked = Origin("run", -1, key, TASK.name, "held_out")
    await answer_all(system, asked, questions)
    found = SeedResult(1, asked, questions)
    mark = marks_of(eval_task, None)
    return [a for a, _ in answers_of(Ledger(store, prices or {}), eval_task, key, found, mark)]


def summary(model: str, answers: Sequence[Answered]) -> Score:
    tally = Tally()
    for a in answers:
        spent = Spent(calls=a.calls, cached=a.cached, tokens=a.tokens)
        tally.add(a.right, a.status, spent, id=a.id, error=a.error, seconds=a.seconds,
                  cost=a.cost, confidence=a.confidence)  # fmt: skip
    return tally.score(model)


def breakdown(trees: Sequence[Node], part_right: PartRight) -> list[Level]:
    nodes = Breakdown()
    for tree in trees:
        nodes.add(tree, part_right)
    return nodes.levels()


def of_task(store: TraceStore, reply: Any = sums) -> AmplifyContext:
    return task_context(
        AmplifyContext(RecordedClient(ScriptedClient(reply), store), "base", ()), TASK
    )


async def test_a_record_says_what_was_answered_and_what_it_cost(store: TraceStore) -> None:
    prices = {"base": Price(prompt=2.0, completion=5.0)}
    found = await records(store, Amplified(of_task(store)), "amplified", prices)
    assert len({answer.id for answer in found}) == 40
    assert {answer.depth for answer in found} == {1}
    for answer in found:
        assert answer.right == (answer.answer is not None and TASK.score(
            answer.question, answer.answer
        ))  # fmt: skip
        tree = load_tree(store, answer.trajectory)
        assert answer.calls == sum(node.calls for node in tree.walk())
        assert answer.tokens == 12 * answer.calls
        assert answer.seconds == pytest.approx(0.5 * answer.calls)
        assert answer.cost == pytest.approx(answer.calls * (10 * 2 + 2 * 5) / 1e6)
        if answer.calls == 2:
            assert answer.confidence == pytest.approx(math.exp(-0.1))
    assert 0 < sum(answer.right for answer in found) < 40


async def test_without_a_price_the_cost_is_unknown(store: TraceStore) -> None:
    found = await records(store, Direct(of_task(store)), "direct", {"other": Price(1, 1)})
    assert {answer.cost for answer in found} == {None}
    assert summary("base", found).cost is None


async def test_a_call_from_the_cache_counts_what_the_first_one_took(store: TraceStore) -> None:
    ledger = Ledger(store, {})
    roots = [Origin("run", number, "x", "any", "file") for number in range(2)]
    for asked, cached in zip(roots, (False, True), strict=True):
        seconds = 0.0 if cached else 0.5
        reply = Completion("a", 10, 2, seconds=seconds, cached=cached)
        await answer_all(direct(store, lambda _, reply=reply: reply), asked, ["same"])
    costs = [ledger.of(asked.question_id("same")) for asked in roots]
    assert [cost["cached"] for cost in costs] == [0, 1]
    assert [cost["seconds"] for cost in costs] == [0.5, 0.5]
    assert [cost["tokens"] for cost in costs] == [12, 12]


async def test_a_summary_adds_up_and_pairs_are_compared(store: TraceStore) -> None:
    one = await records(store, Direct(of_task(store)), "direct")
    other = await records(store, Amplified(of_task(store)), "amplified")
    found = summary("base", one)
    right = sum(answer.right for answer in one)
    assert (found.n, found.questions, found.accuracy) == (40, 40, right / 40)
    assert found.ci95 == wilson(right, 40)
    assert found.tokens == sum(answer.tokens for answer in one)
    assert sum(found.statuses.values()) == 40
    assert found.calibration is not None
    assert found.calibration.n == 40
    eval_task = LevelEvalTask(TASK, 2, 40)
    grading = Grading(eval_task, store, {}, marks_of(eval_task, None))
    questions = eval_task.questions(1)
    for key in ("direct", "amplified"):
        asked = Origin("run", -1, key, TASK.name, "held_out")
        grading.add(key, [SeedResult(1, asked, questions)])
    results = grading.results({"direct": "base", "amplified": "base"}, record={}, settings={})
    assert results.summaries["direct"] == found
    assert list(results.answers["amplified"]) == other
    (pair,) = results.differences
    assert (pair.first, pair.second, pair.n) == ("amplified", "direct", 40)
    assert pair.value == pytest.approx(summary("base", other).accuracy - found.accuracy)


async def test_the_breakdown_counts_every_node_once(store: TraceStore) -> None:
    found = await records(store, Amplified(of_task(store)), "amplified")
    trees = [load_tree(store, answer.trajectory) for answer in found]
    levels = breakdown(trees, LevelEvalTask(TASK, 2, 40).part_right)
    assert (levels[0].depth, levels[0].kind) == (0, "combined")
    assert {level.kind for level in levels if level.depth == 1} == {"copy"}
    assert sum(level.nodes for level in levels) == sum(len(list(t.walk())) for t in trees)
    assert sum(level.calls for level in levels) == sum(answer.calls for answer in found)
    assert sum(level.tokens for level in levels) == sum(answer.tokens for answer in found)
    root = levels[0]
    assert (root.nodes, root.marked) == (40, 40)
    assert root.accuracy == pytest.approx(sum(answer.right for answer in found) / 40)
    # Sums of one digit are H's primitives, which no one may mark.
    assert [level.marked for level in levels[1:]] == [0]
    assert levels[1].accuracy is None


async def test_the_breakdown_tells_who_answered(store: TraceStore) -> None:
    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if question == "known":
            return Answer("7")
        if question != "root":
            return Ask(())
        if transcript:
            return Answer("done")
        return Ask(
            (SubQuestion("known"), SubQuestion("copy"), SubQuestion("1+1", to="tool:calculator"))
        )

    system = Amplified(
        AmplifyContext(
            RecordedClient(ScriptedClient(lambda _: min_logprob("x", -0.1)), store),
            "base",
            [ScriptedOverseer("h", act)],
            tools={"calculator": Calculator()},
            votes=ONE_VOTE,
        )
    )
    outcomes: list[Outcome] = await answer_all(system, ASKED, ["root"])
    assert outcomes[0]["answer"] == "done"
    levels = breakdown(
        [load_tree(store, ASKED.question_id("root"))],
        lambda question, answer: answer == "x" if question == "copy" else None,
    )
    assert [(level.depth, level.kind, level.nodes, level.calls) for level in levels] == [
        (0, "combined", 1, 0),
        (1, "H", 1, 0),
        (1, "copy", 1, 1),
        (1, "tool", 1, 0),
    ]
    assert [level.marked for level in levels] == [0, 0, 1, 0]
    assert levels[2].accuracy == 1.0


def test_an_interval_holds_its_accuracy_however_often_each_question_was_asked() -> None:
    often = [Node("", "often", answer="x", status="ok", answered_by="base") for _ in range(999)]
    once = Node("", "once", answer="y", status="ok", answered_by="base")
    (level,) = breakdown([*often, once], lambda question, answer: answer == "x")
    assert level.ci95 is not None
    assert level.accuracy == 0.999
    assert level.ci95[0] < 0.999 <= level.ci95[1]
    assert level.ci95 == wilson(2 * 0.999, 2)  # Of two questions, not of a thousand.
    made = [answered(id, right) for id, right in [("a", True)] * 999 + [("b", False)]]
    found = summary("base", made)
    assert (found.accuracy, found.questions, found.n) == (0.999, 2, 1_000)
    assert found.ci95 == level.ci95


def answered(id: str, right: bool) -> Answered:
    return Answered(
        "direct", 1, id, "q", "x", right, "ok", None, None, 1, 0, 2, 0.1, None, 0, "t"
    )  # fmt: skip
