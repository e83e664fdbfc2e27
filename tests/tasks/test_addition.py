"""Reversed addition: what H knows, what its check knows, and which questions are held out."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, Exchange
from reflux.graphs.evals.task import is_held_out
from reflux.tasks.addition import Addition, casts_out_nines, has_form, read, write
from tests.support.contexts import next_step

TASK = Addition()


@st.composite
def sums(draw: st.DrawFn, longest: int = 40) -> tuple[int, int, int, int]:
    """(length, a, b, carry), numbers as people mean them."""
    length = draw(st.integers(1, longest))
    number = st.integers(0, 10**length - 1)
    return length, draw(number), draw(number), draw(st.integers(0, 1))


def question_of(length: int, a: int, b: int, carry: int = 0) -> str:
    """By plain string work, as the module's docstring describes it."""
    left, right = (format(n, f"0{length}d")[::-1] for n in (a, b))
    return f"{left}+{right}+1=" if carry else f"{left}+{right}="


def answer_of(length: int, a: int, b: int, carry: int = 0) -> str:
    return format(a + b + carry, f"0{length + 1}d")[::-1]


async def exact(way: int, question: str) -> str:
    """H's script all the way down: every part is divided until H answers it itself."""
    transcript: list[Exchange] = []
    while True:
        step = await next_step(TASK.overseers()[way], question, transcript, may_ask=True)
        if isinstance(step, Answer):
            return step.text
        assert isinstance(step, Ask)
        for part in step.subquestions:
            transcript.append(Exchange(part.text, await exact(way, part.text)))


def test_the_example_of_the_docstring() -> None:
    assert question_of(3, 304, 517) == "403+715="
    assert answer_of(3, 304, 517) == "1280"
    assert TASK.score("403+715=", "1280")
    assert TASK.score("403+715+1=", "2280")


@settings(max_examples=60, deadline=None)
@given(sums(), st.integers(0, 1))
async def test_both_splits_lead_to_the_true_sum(drawn: tuple[int, int, int, int], way: int) -> None:
    assert await exact(way, question_of(*drawn)) == answer_of(*drawn)


async def asked_by(way: int, question: str, transcript: Sequence[Exchange] = ()) -> list[str]:
    step = await next_step(TASK.overseers()[way], question, transcript, may_ask=True)
    assert isinstance(step, Ask)
    return [part.text for part in step.subquestions]


async def test_the_two_splits_of_an_odd_length_differ() -> None:
    assert await asked_by(0, "123+456=") == ["1+4="]
    assert await asked_by(1, "123+456=") == ["12+45="]
    low = [Exchange("1+9+1=", "11")]
    assert await asked_by(0, "123+956+1=", low) == ["23+56+1="]


async def test_at_the_depth_limit_even_a_primitive_goes_to_a_copy() -> None:
    for question in ("1+2=", "12+34="):
        assert await next_step(TASK.overseers()[0], question, [], may_ask=False) == PASS


@pytest.mark.parametrize("said", [None, "", "5", "5x", "552", "12"])
async def test_h_does_not_go_on_with_a_part_that_is_no_sum(said: str | None) -> None:
    with pytest.raises(ValueError, match=r"no usable answer to 1\+4="):
        await next_step(TASK.overseers()[0], "12+45=", [Exchange("1+4=", said)], may_ask=True)


async def test_the_primitives_are_all_sums_of_one_digit() -> None:
    assert len(set(TASK.primitives())) == 200
    for question in TASK.primitives():
        step = await next_step(TASK.overseers()[0], question, [], may_ask=True)
        assert isinstance(step, Answer)
        assert TASK.score(question, step.text)


@given(sums())
def test_a_question_is_read_as_it_was_written(drawn: tuple[int, int, int, int]) -> None:
    question = question_of(*drawn)
    assert write(*read(question)) == question
    assert write(*read(f" {question}\n")) == question


@pytest.mark.parametrize(
    "text", ["", "1+2", "12+3=", "1+2+2=", "1+2+1", "+=", "-1+1=", "1+2=3", "1 + 2 ="]
)
def test_what_is_no_question_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not of the form 403"):
        read(text)
    assert TASK.canonical(text) == text.strip()
    if text != "1+2":
        with pytest.raises(UsageError, match=r'write a sum as "304\+517"'):
            TASK.from_user(text)


@given(sums())
def test_a_plus_b_b_plus_a_and_the_carry_fall_on_the_same_side(
    drawn: tuple[int, int, int, int],
) -> None:
    length, a, b, _ = drawn
    alike = [question_of(length, x, y, c) for x, y in ((a, b), (b, a)) for c in (0, 1)]
    assert len({TASK.canonical(question) for question in alike}) == 1
    assert len({is_held_out(TASK, question) for question in alike}) == 1


@given(sums(6), sums(6))
def test_other_operands_are_another_question(
    one: tuple[int, int, int, int], two: tuple[int, int, int, int]
) -> None:
    same = one[0] == two[0] and sorted(one[1:3]) == sorted(two[1:3])
    assert (TASK.canonical(question_of(*one)) == TASK.canonical(question_of(*two))) == same


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 20),
    level=st.integers(1, 12),
    split=st.sampled_from(["train", "held_out"]),
    seed=st.integers(0, 1_000),
)
def test_a_sample_is_the_same_each_time_and_of_its_side_and_length(
    n: int, level: int, split: str, seed: int
) -> None:
    sample = TASK.sample(n, level, split, seed)  # type: ignore[arg-type]
    assert sample == Addition().sample(n, level, split, seed)  # type: ignore[arg-type]
    assert len(set(sample)) == len(sample)
    # No sum of one digit is held out: H answers them itself.
    assert len(sample) == (n if level > 1 or split == "train" else 0)
    for question in sample:
        a, b, carry = read(question)
        assert len(a) == len(b) == level
        assert is_held_out(TASK, question) == (split == "held_out")
        if split == "held_out":
            assert (carry, "0" in (a[-1], b[-1])) == (0, False)


@pytest.mark.slow
def test_other_seeds_draw_other_questions() -> None:
    assert TASK.sample(5, 6, "train", 0) != TASK.sample(5, 6, "train", 1)
    assert TASK.sample(500, 1, "train", 0) == TASK.sample(500, 1, "train", 0)
    assert len(TASK.sample(500, 1, "train", 0)) == 200  # There are no more.


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_a_person_asks_and_reads_with_the_highest_digit_first(a: int, b: int) -> None:
    question = TASK.from_user(f" {a} + {b} ")
    left, right, carry = read(question)
    assert (int(left[::-1]), int(right[::-1]), carry) == (a, b, 0)
    assert len(left) == max(len(str(a)), len(str(b)))
    assert TASK.to_user(question, answer_of(len(left), a, b)) == str(a + b)


def test_a_person_may_use_the_form_of_the_task_and_sees_any_answer_as_it_is() -> None:
    assert TASK.from_user(" 403+715+1= ") == "403+715+1="
    assert TASK.from_user("7+12") == "70+21="
    assert TASK.to_user("403+715=", "I do not know") == "I do not know"
    assert TASK.to_user("00+00=", "000") == "0"
    long = TASK.from_user("9" * 5_000 + "+1")  # Longer than Python turns into a number.
    assert TASK.to_user(long, "0" * 5_000 + "1") == "1" + "0" * 5_000


@given(sums())
def test_every_true_sum_passes_the_check(drawn: tuple[int, int, int, int]) -> None:
    question, answer = question_of(*drawn), answer_of(*drawn)
    assert TASK.checker().check(question, answer).ok
    assert TASK.score(question, answer)
    assert len(answer) <= TASK.answer_tokens(question)


@given(sums(), st.data())
def test_one_wrong_digit_fails_the_check_unless_nine_stands_for_nought(
    drawn: tuple[int, int, int, int], data: st.DataObject
) -> None:
    question, answer = question_of(*drawn), answer_of(*drawn)
    at = data.draw(st.integers(0, len(answer) - 2))
    digit = data.draw(st.sampled_from(sorted(set("0123456789") - {answer[at]})))
    wrong = answer[:at] + digit + answer[at + 1 :]
    assert casts_out_nines(question, wrong) == ({digit, answer[at]} == {"0", "9"})
    assert not TASK.score(question, wrong)


def test_the_check_knows_no_adder_and_lets_some_wrong_sums_pass() -> None:
    for wrong in ("2180", "8210", "1370", "9920"):
        assert TASK.checker().check("403+715=", wrong).ok
        assert not TASK.score("403+715=", wrong)


@given(sums(), st.text("0123456789x ", max_size=8))
def test_the_form_is_one_digit_more_than_the_operands_and_a_carry_last(
    drawn: tuple[int, int, int, int], text: str
) -> None:
    length = drawn[0]
    assert has_form(question_of(*drawn), text) == (
        len(text) == length + 1 and text.isdecimal() and text[-1] in "01"
    )


@pytest.mark.parametrize("bad", ["", "128", "12800", "1282", "128x", "1 80", "-180", "1280\n"])
def test_an_answer_without_the_form_is_refused_for_it(bad: str) -> None:
    assert TASK.checker().check("403+715=", bad).rule == "form"


def test_a_refusal_names_its_rule_and_white_space_is_no_difference() -> None:
    assert TASK.checker().check("403+715=", "1290").rule == "casting_out_nines"
    assert TASK.normalise(" 12 80\n") == "1280"


@pytest.mark.parametrize("levels", [(1, 3), (2, 2), (4, 2)])
def test_rounds_at_most_double_the_digits(levels: Sequence[int]) -> None:
    TASK.check_levels((1, 2, 4, 7))
    with pytest.raises(UsageError, match=f"from level {levels[0]} to {levels[1]}"):
        TASK.check_levels(levels)
