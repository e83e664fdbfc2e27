"""Reversed multiplication: what H knows, what goes to X, and which questions are held out."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.evals.task import is_held_out, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import addition
from reflux.tasks.multiplication import Multiplication, MultiplicationLeaves, read, write
from tests.support.contexts import next_step

TASK = Multiplication()
LEAVES = MultiplicationLeaves()
FACTORS = st.tuples(st.integers(0, 10**8 - 1), st.integers(0, 10**8 - 1))


def product_of(a: int, b: int) -> tuple[str, str]:
    """(question, answer), by plain string work."""
    left, right = str(a), str(b)
    return f"{left[::-1]}*{right[::-1]}=", format(a * b, f"0{len(left) + len(right)}d")[::-1]


def exact(question: str) -> str:
    """An X that knows all products and sums."""
    if "*" in question:
        left, right = question.removesuffix("=").split("*")
        return product_of(int(left[::-1]), int(right[::-1]))[1].ljust(len(left + right), "0")
    a, b, *carry = question.removesuffix("=").split("+")
    return str(int(a[::-1]) + int(b[::-1]) + len(carry)).zfill(len(a) + 1)[::-1]


async def by_h(way: int, question: str, said: Callable[[str], str], leaf: int = 2) -> str:
    """H's script all the way down; `said` answers what H leaves to X."""
    task = Multiplication()
    task.direct_digits = leaf
    transcript: list[Exchange] = []
    while True:
        step = await next_step(task.overseers()[way], question, transcript, may_ask=True)
        if isinstance(step, Answer):
            return step.text
        assert isinstance(step, Ask)
        if not step.subquestions:
            return said(question)
        for part in step.subquestions:
            transcript.append(Exchange(part.text, await by_h(way, part.text, said, leaf)))


def test_the_example_of_the_docstring() -> None:
    assert product_of(123, 45) == ("321*54=", "53550")
    assert TASK.score("321*54=", "53550")


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.integers(0, 1), st.integers(0, 3))
async def test_both_ways_lead_to_the_true_product_whatever_is_left_to_x(
    factors: tuple[int, int], way: int, leaf: int
) -> None:
    question, answer = product_of(*factors)
    assert await by_h(way, question, exact, leaf) == answer


async def test_x_is_asked_products_of_one_digit_and_sums_of_two_at_the_most() -> None:
    asked: list[str] = []

    def said(question: str) -> str:
        asked.append(question)
        return exact(question)

    await by_h(0, "654321*123456=", said)
    products = [read(question) for question in asked if "*" in question]
    sums = [addition.read(question) for question in asked if "+" in question]
    assert (len(products), {len(a + b) for a, b in products}) == (36, {2})
    assert {len(a) for a, _, _ in sums} == {1, 2}


async def parts_of(way: int, question: str, transcript: Sequence[Exchange] = ()) -> list[str]:
    step = await next_step(TASK.overseers()[way], question, transcript, may_ask=True)
    assert isinstance(step, Ask)
    return [part.text for part in step.subquestions]


async def test_the_two_ways_split_another_factor_or_elsewhere() -> None:
    assert await parts_of(0, "123*456=") == ["1*456=", "23*456="]
    assert await parts_of(1, "123*456=") == ["45*123=", "6*123="]
    assert await parts_of(0, "1*456=") == ["4*1=", "56*1="]
    halves = [Exchange("2*54=", "090"), Exchange("1*54=", "540")]
    # 45 * 12 = 90 + 45 * 10: the lowest digit stays, 09 + 045 is asked for.
    assert await parts_of(0, "21*54=", halves) == ["900+540="]


async def test_h_joins_the_low_digits_with_the_sum() -> None:
    said = [Exchange("2*54=", "090"), Exchange("1*54=", "540"), Exchange("900+540=", "4500")]
    assert await next_step(TASK.overseers()[0], "21*54=", said, may_ask=True) == Answer("0450")


async def test_h_does_not_go_on_with_what_cannot_be() -> None:
    for said in (None, "", "09", "09x", "0900"):
        wrong = [Exchange("2*54=", said), Exchange("1*54=", "540")]
        with pytest.raises(ValueError, match=r"no usable answer to 2\*54="):
            await next_step(TASK.overseers()[0], "21*54=", wrong, may_ask=True)
    said = [Exchange("2*54=", "099"), Exchange("1*54=", "990"), Exchange("990+990=", "8911")]
    with pytest.raises(ValueError, match="longer than"):
        await next_step(TASK.overseers()[0], "21*54=", said, may_ask=True)


async def test_at_the_depth_limit_all_goes_to_a_copy() -> None:
    for task in (TASK, LEAVES):
        for question in ("1*2=", "12*34=", "1+2="):
            assert await next_step(task.overseers()[0], question, [], may_ask=False) == PASS


async def test_of_the_leaves_h_answers_what_has_one_digit() -> None:
    assert len(set(LEAVES.primitives())) == 300
    for question in LEAVES.primitives():
        step = await next_step(LEAVES.overseers()[0], question, [], may_ask=True)
        assert isinstance(step, Answer)
        assert LEAVES.score(question, step.text)
    step = await next_step(LEAVES.overseers()[0], "12+34=", [], may_ask=True)
    assert step == Ask((SubQuestion("1+3="),))


async def amplified(
    folder: Path, questions: Sequence[str], reply: Callable[[ChatRequest], str]
) -> list[str | None]:
    """Answers of the voted and checked tree."""
    store = TraceStore(folder / "traces.db")
    context = AmplifyContext(
        RecordedClient(ScriptedClient(reply), store),
        "base",
        (),
        limits=Limits(depth=10, calls=50_000, tokens=10**8),
        votes=VotePolicy(min_logprob=None, rule=AheadBy(2, 9)),
    )
    system = Amplified(task_context(context, TASK))
    outcomes = await answer_all(system, Origin("t", 0, "a", "t", "held_out"), questions)
    store.close()
    return [outcome["answer"] for outcome in outcomes]


@pytest.mark.slow
async def test_a_tree_with_an_exact_x_multiplies_eight_digits(tmp_path: Path) -> None:
    question, answer = product_of(98_765_432, 10_908_077)
    assert await amplified(tmp_path, [question], lambda r: exact(r.messages[-1][1])) == [answer]


async def test_an_erring_x_is_mended_by_the_check_and_the_votes(tmp_path: Path) -> None:
    """One vote in ten is wrong: of some 20 leaves all would be right in one tree of eight."""
    draw = random.Random(7)
    erred = 0

    def erring(request: ChatRequest) -> str:
        nonlocal erred
        truth = exact(request.messages[-1][1])
        if draw.random() > 0.1:
            return truth
        erred += 1
        at = draw.randrange(len(truth) - 1)
        return truth[:at] + draw.choice("0123456789") + truth[at + 1 :]

    asked = [product_of(draw.randrange(100, 1000), draw.randrange(100, 1000)) for _ in range(5)]
    found = await amplified(tmp_path, [question for question, _ in asked], erring)
    assert found == [answer for _, answer in asked]
    assert erred > 20


@given(FACTORS)
def test_a_times_b_and_b_times_a_fall_on_the_same_side(factors: tuple[int, int]) -> None:
    a, b = factors
    one, other = product_of(a, b)[0], product_of(b, a)[0]
    for task in (TASK, LEAVES):
        assert task.canonical(one) == task.canonical(other)
        assert is_held_out(task, one) == is_held_out(task, other)
    assert TASK.canonical("12+34+1=") == TASK.canonical("34+12=")
    assert TASK.canonical("12+34=") != TASK.canonical("12*34=")


@pytest.mark.parametrize("task", [TASK, LEAVES], ids=lambda task: task.name)
@pytest.mark.parametrize("level", [1, 2, 3, 6])
def test_nothing_that_is_learned_is_held_out(task: Multiplication, level: int) -> None:
    learned = task.sample(60, level, "train", 3)
    held = task.sample(60, level, "held_out", 3)
    assert learned == task.sample(60, level, "train", 3)
    assert not {task.canonical(q) for q in learned} & {task.canonical(q) for q in held}
    assert not any(is_held_out(task, question) for question in [*learned, *task.primitives()])
    assert all(is_held_out(task, question) for question in held)
    # What has one digit is H's own, and exempt.
    assert (len(learned), len(held)) == (60, 0 if level == 1 else 60)


def test_a_held_out_product_has_factors_of_the_level_and_no_leading_zero() -> None:
    for question in TASK.sample(50, 5, "held_out", 0):
        a, b = read(question)
        assert (len(a), len(b), "0" in (a[-1], b[-1])) == (5, 5, False)


@given(FACTORS)
def test_a_person_asks_and_reads_with_the_highest_digit_first(factors: tuple[int, int]) -> None:
    a, b = factors
    question, answer = product_of(a, b)
    assert TASK.from_user(f" {a} * {b} ") == TASK.from_user(question) == question
    assert TASK.to_user(question, answer) == str(a * b)
    assert write(*read(question)) == question


@pytest.mark.parametrize("text", ["", "1*2", "*=", "-1*1=", "1*2*3=", "1 * 2 =", "1+2*3"])
def test_what_is_no_question_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form 321\*54="):
        read(text)
    if text != "1*2":
        with pytest.raises(UsageError, match=r"write a (sum|product) as"):
            TASK.from_user(text)


@given(FACTORS, st.data())
def test_the_check_passes_every_true_product_and_sees_one_wrong_digit(
    factors: tuple[int, int], data: st.DataObject
) -> None:
    question, answer = product_of(*factors)
    assert TASK.checker().check(question, answer).ok
    assert len(answer) < TASK.answer_tokens(question)
    at = data.draw(st.integers(0, len(answer) - 1))
    digit = data.draw(st.sampled_from(sorted(set("0123456789") - {answer[at]})))
    wrong = answer[:at] + digit + answer[at + 1 :]
    # Nine and nought leave the same rest.
    assert TASK.checker().check(question, wrong).ok == ({digit, answer[at]} == {"0", "9"})
    assert TASK.checker().check(question, answer + "0").rule == "form"
    assert not TASK.score(question, wrong)
