"""Steps as numbered lines, as whole plans, and with the instructions last."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.agents.overseers.batch import settle
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.step_forms import reply_text
from reflux.agents.overseers.step_parser import read_lines
from reflux.agents.types import Answer, Ask, Exchange, SubQuestion
from tests.support.contexts import ScriptedContext

OLDER = "Which is older, the Louvre or the Prado?"
A, B, C = "When was the Louvre opened?", "When was the Prado opened?", "Is {0} before {1}?"
THREE = (A, B, C)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (f"1. {A}\n2. {B}\n3. Is {{1}} before {{2}}?", THREE),
        (f"Sure! The steps:\n\n1) {A}\n2) {B}\n3) Is {{1}} before {{2}}?\n\nThis helps.", THREE),
        (f"**1. {A}**\n**2.** {B}\n**3. Is {{1}} before {{2}}?** It compares them.", THREE),
        (f"Q1: {A}\nQ2: {B} 1819\nQ3: Is {{Q1}} before {{Q2}}?", THREE),
        (f"Step 1: {A} (a year)\nStep 2: {B} - 1819\nStep 3: Is {{1}} before {{2}}?", THREE),
        (f"### Step 1\n{A}\n### Step 2\n{B}\n### Step 3\nIs {{1}} before {{2}}?", THREE),
        (f"1. {A}\n2. {B}\n3. Is the answer to 1 before the answer to question 2?", THREE),
        (f"0. {A}\n1. {B}\n2. Is {{0}} before {{1}}?", THREE),
        (f"1. {A}\n2. {B}\n3. Is {{0}} before {{1}}?", THREE),
        (f"1. {A}\n2. {B}\n\nQuestion: Who wrote Emma?\n1. Who is Emma?", (A, B)),
        (f"1. {A}\n   - look it up\n2. {B}", (A, B)),
        (f"- {A}\n- {B}", (A, B)),
        (f"{A}\n{B}", (A, B)),
        (f"1. **First year**: {A}\n2. **Second year**: {B}", (A, B)),
        (
            "1. 3 + 4\n2. {1} + 5\n3. Compare {2} with 12.",
            ("3 + 4", "{0} + 5", "Compare {1} with 12."),
        ),
        (
            "1. In which year? Answer with the year alone.",
            ("In which year? Answer with the year alone.",),
        ),
        ('{"ask": [{"question": "a", "needs": []}, {"question": "b", "needs": []}]}', ("a", "b")),
        ("<think>1. hm?</think>\n1. a\n2. b", ("a", "b")),
        ("I cannot help with that.", ()),
        ("It is 3.14, or 12 - 5.", ()),
    ],
)
def test_lines_are_read_whatever_is_around_them(reply: str, expected: tuple[str, ...]) -> None:
    batch = settle(read_lines(reply).questions, [OLDER], 8)
    assert tuple(sub.text for sub in batch.subquestions) == expected


@pytest.mark.parametrize(
    ("reply", "answer", "reason"),
    [
        ("Answer: the Louvre", "the Louvre", None),
        ("**Final answer:** the Louvre\n\nBecause it is.", "the Louvre", None),
        ("The answer is the Louvre", "the Louvre", None),
        ("Answer:\nthe Louvre", "the Louvre", None),
        ("Indivisible: it is one fact.", None, "it is one fact."),
        ("indivisible", None, "no reason given"),
        ('{"answer": "the Louvre"}', "the Louvre", None),
    ],
)
def test_answers_and_reasons_have_labels(
    reply: str, answer: str | None, reason: str | None
) -> None:
    reading = read_lines(reply)
    assert (reading.answer, reading.reason, reading.questions) == (answer, reason, ())


@given(st.text(st.sampled_from(list("1234.):*?_#- \nQqabAnswer{}[]\"'\0\ud800")), max_size=80))
def test_every_text_can_be_read(text: str) -> None:
    reading = read_lines(text)
    for sub in settle(reading.questions, [OLDER], 8).subquestions:
        sub.text.encode()
        assert sub.text.strip()


@given(
    st.lists(
        st.sampled_from(["Who?", "What is {0}?", "Is {1} more than {0}?"]),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_what_an_example_shows_is_read_as_it_was_meant(texts: list[str]) -> None:
    subs = settle([SubQuestion(text) for text in texts], [], 8).subquestions
    reply = {"ask": [{"question": sub.text, "needs": list(sub.needs)} for sub in subs]}
    assert settle(read_lines(reply_text(reply, "lines")).questions, [], 8).subquestions == subs


LINES = f"1. {A}\n2. {B}\n3. Is {{1}} before {{2}}?"
STEP = Ask((SubQuestion(A), SubQuestion(B), SubQuestion(C, (0, 1))))
SAID = [Exchange(A, "1793"), Exchange(B, "1819")]


@pytest.mark.parametrize("form", ["json", "lines"])
def test_an_example_names_the_tools_that_there_are(form: Any) -> None:
    asked = {"question": "3 + 4", "needs": [], "to": "tool:calculator"}
    assert "calculator: 3 + 4" in reply_text({"ask": [asked]}, form, ["calculator"])
    assert "calculator" not in reply_text({"ask": [asked]}, form)


async def test_lines_are_asked_for_without_a_schema() -> None:
    context = ScriptedContext([LINES])
    assert await ModelOverseer(form="lines").act(context.on(OLDER)) == STEP
    (request,) = context.client.requests
    assert not request.schema
    assert "JSON" not in request.messages[0][1]
    assert "3. Which year is earlier, {1} or {2}?" in request.messages[2][1]


@pytest.mark.parametrize("reply", ["Answer: the Louvre", "the Louvre", '{"answer": "the Louvre"}'])
async def test_an_answer_in_lines_needs_no_label(reply: str) -> None:
    context = ScriptedContext([reply])
    assert await ModelOverseer(form="lines").act(context.on(OLDER, SAID)) == Answer("the Louvre")
    assert len(context.client.requests) == 1


async def test_auto_asks_for_lines_after_a_reply_that_is_no_json() -> None:
    context = ScriptedContext(["Well.", LINES])
    assert await ModelOverseer(form="auto").act(context.on(OLDER)) == STEP
    assert [bool(request.schema) for request in context.client.requests] == [True, False]


async def test_the_instructions_stand_where_they_are_to() -> None:
    for where, index in (("first", 0), ("last", -1)):
        context = ScriptedContext([LINES])
        await ModelOverseer(form="lines", instructions=where).act(context.on(OLDER))  # type: ignore[arg-type]
        (request,) = context.client.requests
        holds = [n for n, turn in enumerate(request.messages) if "You split questions" in turn[1]]
        assert holds == [index % len(request.messages)]
        assert request.messages[0][0] == "system"
        assert OLDER in request.messages[-1][1]


@pytest.mark.parametrize(
    ("transcript", "replies", "expected"),
    [
        ([*SAID, Exchange("Is 1793 before 1819?", "the Louvre")], [], Answer("the Louvre")),
        (SAID, ["the Louvre"], Answer("the Louvre")),
        ([*SAID, Exchange("Is 1793 before 1819?", None, "busy")], ["Louvre"], Answer("Louvre")),
        ([Exchange(A, "1793")], ["no idea"], Answer("no idea")),
        ([*SAID, Exchange("Is 1793 late?", "no")], ["the Louvre"], Answer("the Louvre")),
    ],
)
async def test_a_plan_ends_with_its_last_answer_or_is_combined(
    transcript: Any, replies: list[str], expected: Answer
) -> None:
    context = ScriptedContext([*replies, ""])
    assert await ModelOverseer(plan=True).act(context.on(OLDER, transcript)) == expected
    assert len(context.client.requests) == len(replies)


async def test_a_plan_is_asked_for_as_one() -> None:
    context = ScriptedContext([LINES])
    assert await ModelOverseer(form="lines", plan=True).act(context.on(OLDER)) == STEP
    (request,) = context.client.requests
    assert "The last sub-question asks for the whole answer" in request.messages[0][1]
    assert request.messages[4][1].endswith("3. Grass is {1}, snow is {2}. Name both colours.")


def test_another_form_is_refused_in_one_message() -> None:
    for field, value in (("form", "xml"), ("instructions", "middle")):
        with pytest.raises(UsageError, match=value):
            ModelOverseer(**{field: value})  # type: ignore[arg-type]
