"""Several overseers propose, and one step comes of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, MissingError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.panel import Panel
from reflux.agents.overseers.protocol import PASS, Overseer, OverseerContext
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, ChatRequest, Defer, Exchange, Step, SubQuestion
from tests.support.contexts import ScriptedContext

AB = Ask.of("a?", "b?")
SAID = [Exchange("a?", "1")]


def says(step: Step | Exception) -> Overseer:
    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if isinstance(step, Exception):
            raise step
        return step

    return ScriptedOverseer("fixed", act)


def panel(*steps: Step | Exception, **other: Any) -> Panel:
    return Panel(tuple(says(step) for step in steps), **other)


async def chosen(panel: Panel, context: ScriptedContext | None = None, said: Any = ()) -> Step:
    return await panel.act((context or ScriptedContext()).on("root", said))


MAJORITIES: dict[str, tuple[list[Step], Step]] = {
    "answers": ([Answer("4"), Answer("5"), Answer("5")], Answer("5")),
    "answers in other case and spacing": (
        [Answer("x"), Answer("The  Rhine"), Answer("the rhine")], Answer("The  Rhine"),
    ),
    "the kind before the step": ([Answer("1"), AB, Answer("2")], Answer("1")),
    "batches in any order": ([Ask.of("c?"), AB, Ask.of("b?", "A?")], AB),
    "leaving it to X": ([AB, PASS, Ask((), "not decomposable: one fact")], PASS),
    "a person": ([Defer({"about": 1}), AB, Defer({"about": 2})], Defer({"about": 1})),
    "the first among equals": ([AB, Answer("1")], AB),
}  # fmt: skip


@pytest.mark.parametrize("name", MAJORITIES)
async def test_the_majority_is_of(name: str) -> None:
    steps, expected = MAJORITIES[name]
    assert await chosen(panel(*steps)) == expected


async def test_batches_that_need_their_own_answers_are_alike_in_the_same_order_alone() -> None:
    one = Ask((SubQuestion("a?"), SubQuestion("more than {0}?", (0,))))
    other = Ask((SubQuestion("more than {0}?", (0,)), SubQuestion("a?")))
    assert await chosen(panel(other, one, one)) == one


async def test_a_merged_batch_asks_all_without_those_alike_and_keeps_their_needs() -> None:
    needy = Ask((SubQuestion("B?"), SubQuestion("c?"), SubQuestion("{0} or {1}?", (0, 1))))
    assert await chosen(panel(AB, needy, choice="merge")) == Ask(
        (
            SubQuestion("a?"),
            SubQuestion("b?"),
            SubQuestion("c?"),
            SubQuestion("{1} or {2}?", (1, 2)),
        ),
        "merged 2 proposals; 1 of 5 sub-questions left out",
    )


async def test_what_is_alike_once_its_needs_are_is_merged_into_one() -> None:
    one = Ask((SubQuestion("a?"), SubQuestion("more than {0}?", (0,))))
    other = Ask((SubQuestion("b?"), SubQuestion("A?"), SubQuestion("more than {1}?", (1,))))
    step = await chosen(panel(one, other, choice="merge"))
    assert isinstance(step, Ask)
    assert step.subquestions == (*one.subquestions, SubQuestion("b?"))


async def test_a_merged_batch_lacks_the_question_and_what_was_answered_and_is_cut() -> None:
    step = await chosen(panel(AB, Ask.of("ROOT", "c?"), choice="merge", fanout=1), said=SAID)
    assert isinstance(step, Ask)
    assert [sub.text for sub in step.subquestions] == ["b?"]


async def test_where_most_would_answer_nothing_is_merged() -> None:
    assert await chosen(panel(AB, Answer("1"), Answer("1"), choice="merge")) == Answer("1")


subs = st.lists(
    st.builds(
        SubQuestion,
        st.sampled_from(["a", "b", "c", "d {0}", "e {1}", "f {0} {1}"]),
        st.lists(st.integers(0, 3), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=4,
).map(lambda asked: Ask(tuple(asked)))


@given(st.lists(subs, min_size=1, max_size=4), st.integers(1, 8))
async def test_whatever_is_merged_needs_only_what_comes_before_it(
    steps: list[Ask], fanout: int
) -> None:
    step = await chosen(panel(*steps, choice="merge", fanout=fanout))
    assert isinstance(step, Ask)
    if step.note.startswith("merged"):
        assert 0 < len(step.subquestions) <= fanout
        assert len({sub.text for sub in step.subquestions}) == len(step.subquestions)
        for index, sub in enumerate(step.subquestions):
            assert all(0 <= need < index for need in sub.needs)


@pytest.mark.parametrize(
    "reply", ["2", '{"choice": 2}', "I choose number 2, because 1 is worse", "{'choice': '2'"]
)
async def test_a_judge_chooses_among_all_that_was_proposed(reply: str) -> None:
    context = ScriptedContext([reply])
    step = await chosen(panel(Answer("1"), AB, Answer("1"), choice="judge", judge="wise"), context)
    assert step == Ask(AB.subquestions, "the judge chose 2")
    (request,) = context.client.requests
    assert request.model == "wise"
    assert '2. {"kind": "ask"' in request.messages[-1][1]


@pytest.mark.parametrize("reply", ["", "none of them", "0", "4", "-", "999999999999999999999"])
async def test_where_the_judge_cannot_be_read_the_majority_counts(reply: str) -> None:
    context = ScriptedContext([reply])
    step = await chosen(panel(AB, AB, Answer("1"), choice="judge"), context)
    assert step == Ask(AB.subquestions, "the judge did not choose")
    assert len(context.client.requests) == 1


async def test_a_judge_that_cannot_be_paid_leaves_it_to_the_majority() -> None:
    context = ScriptedContext(["1"], Budget(0, 0))
    assert await chosen(panel(Answer("x"), Answer("1"), Answer("1"), choice="judge"), context) == (
        Answer("1")
    )


async def test_a_panel_of_one_mind_asks_no_judge() -> None:
    context = ScriptedContext(["1"])
    assert await chosen(panel(AB, AB, choice="judge"), context) == AB
    assert not context.client.requests


@pytest.mark.parametrize("failure", [EndpointError("busy"), ValueError("oops")])
async def test_a_member_that_fails_does_not_fail_the_panel(failure: Exception) -> None:
    step = await chosen(panel(failure, AB, AB))
    assert step == Ask(AB.subquestions, "1 of 3 members failed")


async def test_where_all_members_fail_the_step_fails_with_the_first() -> None:
    with pytest.raises(EndpointError, match="busy"):
        await chosen(panel(EndpointError("busy"), ValueError("oops")))


async def test_what_is_missing_for_all_is_not_passed_over() -> None:
    with pytest.raises(MissingError, match="no model"):
        await chosen(panel(AB, MissingError("no model"), AB))


async def test_members_ask_side_by_side_each_within_its_share() -> None:
    max_concurrency = asyncio.Barrier(2)

    class Meeting:
        name = "meeting"

        async def act(self, context: OverseerContext) -> Step:
            async with asyncio.timeout(20):
                await max_concurrency.wait()
            await context.complete(ChatRequest("base", (("user", "q"),)))
            return Answer(f"{context.budget.calls}")

    context = ScriptedContext(["x"], Budget(9, 900))
    members: tuple[Overseer, ...] = (Meeting(), says(Answer("none")), Meeting())
    assert await chosen(Panel(members), context) == Answer("4")
    assert [share.limit.calls for share in context.shares] == [5, 4]
    assert context.budget.calls == 7


async def test_models_of_different_minds_are_heard_through_one_context() -> None:
    replies = {"one": '{"ask": ["a?"]}', "two": '{"ask": ["b?", "A?"]}', "three": "no"}
    context = ScriptedContext(lambda request: replies[request.model])
    models = tuple(ModelOverseer(name, max_tries=1, validate=False) for name in replies)
    step = await chosen(Panel(models, "merge"), context)
    assert step == Ask(
        (SubQuestion("a?"), SubQuestion("b?")),
        "merged 2 proposals; 1 of 3 sub-questions left out",
    )


def test_a_panel_reserves_what_its_members_do_and_its_judge() -> None:
    one = ModelOverseer()
    assert Panel((one, says(PASS), one)).reserve == Budget(
        2 * one.reserve.calls, 2 * one.reserve.tokens
    )
    assert Panel((says(PASS),), "judge").reserve.calls == 1


def test_a_panel_is_recorded_under_the_names_of_its_members() -> None:
    assert Panel((says(PASS), ModelOverseer("m")), "merge").name == (
        "panel:merge(script:fixed, model:m)"
    )
