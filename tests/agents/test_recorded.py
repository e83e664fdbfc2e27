"""Steps of a record, taken again."""

from typing import Any

import pytest

from reflux.agents.budget import Budget
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import RecordedOverseer, ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from tests.support.contexts import ScriptedContext, next_step
from tests.support.hostile import ANSWER, QUESTION

FIRST: list[Step] = [Ask.of("a?", "b?"), Ask.of("c?"), Answer("abc")]
SECOND: list[Step] = [Ask.of("d?"), Answer("d")]
RECORD = {"root": [FIRST, SECOND], "a?": [[PASS]], "b?": [[Answer("B")]]}
ELSE = ScriptedOverseer("else", lambda q, t, m: Answer(f"{q} after {len(t)}"))


def said(count: int) -> list[Exchange]:
    return [Exchange(f"{i}?", str(i)) for i in range(count)]


async def act(h: RecordedOverseer, question: str, count: int, may_ask: bool = True) -> Step:
    return await next_step(h, question, said(count), may_ask)


@pytest.mark.parametrize(
    ("question", "exchanges", "step"),
    [
        ("root", 0, FIRST[0]),
        ("root", 2, FIRST[1]),
        ("root", 3, FIRST[2]),
        ("a?", 0, PASS),
        ("b?", 0, Answer("B")),
    ],
)
async def test_the_next_step_is_the_one_after_so_many_exchanges(
    question: str, exchanges: int, step: Step
) -> None:
    assert await act(RecordedOverseer(RECORD), question, exchanges) == step


async def test_each_attempt_takes_its_own_steps_and_a_later_one_the_last() -> None:
    first, second = (RecordedOverseer(RECORD, attempt) for attempt in (0, 1))
    assert await act(first, "root", 0) == FIRST[0]
    assert await act(second, "root", 0) == SECOND[0]
    assert await act(second, "root", 1) == SECOND[1]
    assert await act(second, "b?", 0) == Answer("B")
    assert await act(RecordedOverseer(RECORD, attempt=9), "root", 0) == SECOND[0]


@pytest.mark.parametrize(("question", "exchanges"), [("new?", 0), ("root", 1), ("root", 4)])
async def test_what_the_record_lacks_goes_to_the_fallback_or_to_x_with_a_note(
    question: str, exchanges: int
) -> None:
    with_fallback = RecordedOverseer(RECORD, fallback=ELSE)
    assert await act(with_fallback, question, exchanges) == Answer(f"{question} after {exchanges}")
    step = await act(RecordedOverseer(RECORD), question, exchanges)
    assert step == Ask((), f"not recorded: no step after {exchanges} exchanges")


async def test_where_it_may_not_ask_a_recorded_batch_is_left_to_x() -> None:
    assert await act(RecordedOverseer(RECORD), "root", 0, may_ask=False) == PASS


async def test_batches_alone_can_be_replayed_and_their_answers_combined_anew() -> None:
    h = RecordedOverseer(RECORD, fallback=ELSE, asks_only=True)
    assert [await act(h, "root", count) for count in (0, 2, 3)] == [
        *FIRST[:2],
        Answer("root after 3"),
    ]


async def test_the_fallback_asks_models_in_the_same_context() -> None:
    context = ScriptedContext(['{"answer": "Paris and Tokyo"}'])
    h = RecordedOverseer({}, fallback=ModelOverseer("m"))
    assert await h.act(context.on(QUESTION)) == ANSWER
    assert len(context.client.requests) == 1
    assert (h.name, h.reserve) == ("recorded:model:m", ModelOverseer("m").reserve)


def test_an_empty_record_is_one_overseer_that_reserves_nothing() -> None:
    empty: Any = {}
    h = RecordedOverseer(empty)
    assert (h.name, h.reserve) == ("recorded", Budget(0, 0))
