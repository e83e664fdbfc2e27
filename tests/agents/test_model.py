"""A prompted model as H: a step comes of every reply, in a few calls, and the record says which."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.overseers.batch import alike, settle
from reflux.agents.overseers.model import REJECTED, ModelOverseer, step_schema
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.step_parser import loose_values, read_answer, read_step
from reflux.agents.prompts import KINDS
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Step, SubQuestion
from tests.support.contexts import ScriptedContext, last_messages
from tests.support.hostile import ANSWER, BOTH, FRANCE, JAPAN, QUESTION, REPLIES, SOUND

SAID = [Exchange(FRANCE, "Paris"), Exchange(JAPAN, "Tokyo")]
RUBBISH = "I'm sorry, I can't."
H = ModelOverseer()


async def act(context: ScriptedContext, said: Any = (), may_ask: bool = True, h: Any = H) -> Step:
    return await h.act(context.on(QUESTION, said, may_ask))


@pytest.mark.parametrize("name", REPLIES)
async def test_a_step_comes_of_whatever_the_model_replies(name: str) -> None:
    reply, expected = REPLIES[name]
    context = ScriptedContext([reply])
    step = await act(context)
    if expected is None:
        assert isinstance(step, Ask)
        assert not step.subquestions
        assert step.note.startswith("unreadable: ")
        assert len(context.client.requests) == H.max_tries
    else:
        assert step == expected
        rejected = isinstance(step, Ask) and step.note.startswith(REJECTED)
        assert len(context.client.requests) == (H.max_tries if rejected else 1)


@pytest.mark.parametrize("name", REPLIES)
async def test_with_answers_at_hand_an_answer_comes_of_it_or_more_questions(name: str) -> None:
    reply, _ = REPLIES[name]
    context = ScriptedContext([reply])
    step = await act(context, [Exchange("How many countries are there?", "195")])
    assert len(context.client.requests) <= H.max_tries
    if isinstance(step, Ask) and not step.subquestions:
        assert step.note.startswith((REJECTED, "unreadable: no answer in the reply (3 replies)"))
        assert read_answer(reply) is None


@pytest.mark.parametrize("name", REPLIES)
async def test_where_it_may_not_ask_a_leaf_costs_no_call_and_goes_to_x(name: str) -> None:
    context = ScriptedContext([REPLIES[name][0]])
    assert await act(context, may_ask=False) == PASS
    assert not context.client.requests


@pytest.mark.parametrize("name", REPLIES)
async def test_as_a_primitive_a_leaf_is_answered_or_passed_on(name: str) -> None:
    context = ScriptedContext([REPLIES[name][0]])
    step = await act(context, may_ask=False, h=ModelOverseer(primitives=True))
    assert isinstance(step, Answer) or getattr(step, "note", "").startswith("unreadable: no answer")
    assert len(context.client.requests) <= H.max_tries


async def test_a_model_that_does_not_know_a_primitive_passes_it_on() -> None:
    assert await act(ScriptedContext(["Pass."]), (), False, ModelOverseer(primitives=True)) == PASS


async def test_an_unreadable_reply_is_asked_for_again_with_another_seed() -> None:
    context = ScriptedContext([RUBBISH, SOUND])
    assert await act(context) == BOTH
    first, second = context.client.requests
    assert first.messages == second.messages
    assert (first.sampling.temperature, second.sampling.temperature) == (0.0, H.retry_temperature)
    assert first.sampling.seed != second.sampling.seed
    assert first.digest("weights") != second.digest("weights")


LOST = '{"ask": ["What are the capitals of these countries?"]}'
REASONS = (
    'sub-question 1 dangles: "these countries" stands for nothing; '
    'sub-question 1 loses "France", "Japan"'
)


async def test_a_batch_that_loses_what_it_needs_is_asked_for_again_with_the_reason() -> None:
    context = ScriptedContext([LOST, SOUND])
    assert await act(context) == Ask(BOTH.subquestions, f"asked again: {REASONS}")
    first, second = context.client.requests
    assert second.messages[: len(first.messages)] == first.messages
    reply, reason = second.messages[len(first.messages) :]
    assert reply[0] == "assistant" and read_step(reply[1]) == read_step(LOST)
    assert reason[0] == "user" and REASONS in reason[1]


@pytest.mark.parametrize("reply", [SOUND, '{"not_decomposable": "no"}', '{"answer": "x"}', RUBBISH])
async def test_what_comes_after_a_rejected_batch_stands(reply: str) -> None:
    step = await act(ScriptedContext([LOST, reply]))
    if reply == RUBBISH:
        assert step == Ask((), f"{REJECTED}: {REASONS} (3 replies)")
    elif isinstance(step, Ask):
        assert step.note.endswith(f"asked again: {REASONS}")
    else:
        assert step == Answer("x")


async def test_a_correction_that_does_not_fit_is_left_out() -> None:
    def reply(request: ChatRequest) -> str:
        if REASONS in request.messages[-1][1]:
            error = EndpointError("too long")
            error.refused = error.too_long = True
            raise error
        return LOST if not request.vote else SOUND

    context = ScriptedContext(reply)
    assert await act(context) == Ask(BOTH.subquestions, f"asked again: {REASONS}")
    first, _, last = context.client.requests
    assert first.messages == last.messages


async def test_batches_are_taken_as_they_are_where_nobody_validates_them() -> None:
    context = ScriptedContext([LOST])
    step = await act(context, h=ModelOverseer(validate=False))
    assert step == Ask.of("What are the capitals of these countries?")
    assert len(context.client.requests) == 1


async def test_one_model_is_several_minds_by_temperature_and_seed() -> None:
    drawn: set[tuple[float, int]] = set()
    for seed in range(3):
        context = ScriptedContext([RUBBISH])
        await act(context, h=ModelOverseer(temperature=0.9, seed=seed))
        drawn |= {(r.sampling.temperature, r.sampling.seed) for r in context.client.requests}
    assert drawn == {(0.9, seed) for seed in range(9)}


async def test_the_sub_answers_are_shown_and_combined() -> None:
    context = ScriptedContext(['{"answer": "Paris and Tokyo"}'])
    assert await act(context, SAID) == ANSWER
    (shown,) = last_messages(context.client.requests)
    assert f"- {FRANCE} Paris\n- {JAPAN} Tokyo" in shown


async def test_failed_and_doubtful_sub_answers_are_shown_as_such() -> None:
    context = ScriptedContext(['{"answer": "x"}'])
    await act(context, [Exchange(FRANCE, None, "busy"), Exchange(JAPAN, "Kyoto", "rejected")])
    (shown,) = last_messages(context.client.requests)
    assert "(no answer: busy)" in shown
    assert "Kyoto (in doubt: rejected)" in shown


async def test_with_answers_at_hand_the_last_try_takes_any_words_as_the_answer() -> None:
    context = ScriptedContext([RUBBISH, RUBBISH, "Paris and Tokyo."])
    assert await act(context, SAID) == Answer("Paris and Tokyo.")
    assert [bool(r.schema) for r in context.client.requests] == [True, True, False]


async def test_where_an_answer_is_asked_for_more_questions_are_none() -> None:
    context = ScriptedContext([SOUND])
    step = await act(context, SAID, h=ModelOverseer(max_subquestions=2))
    assert step == Ask((), "unreadable: no answer in the reply (3 replies)")
    assert len(context.client.requests) == 3


async def test_one_that_always_asks_more_is_made_to_answer_once_it_has_asked_its_fill() -> None:
    h = ModelOverseer(fanout=2, max_subquestions=5)
    said: list[Exchange] = []
    sizes: list[int] = []

    def more(request: ChatRequest) -> str:
        if not request.schema:
            return "enough"
        return json.dumps({"ask": [f"Which city of Japan is {len(said)}.{i}?" for i in range(9)]})

    context = ScriptedContext(more)
    while isinstance(step := await h.act(context.on(QUESTION, said)), Ask):
        sizes.append(len(step.subquestions))
        said += [Exchange(sub.text, "yes") for sub in step.subquestions]
    assert sizes == [2, 2, 1]
    assert step == Answer("enough")
    assert len(context.client.requests) == 4


async def test_what_has_been_answered_is_not_asked_again_and_what_failed_may_be() -> None:
    context = ScriptedContext([SOUND])
    step = await act(context, [Exchange(FRANCE, "Paris"), Exchange(JAPAN, None, "busy")])
    assert step == Ask((SubQuestion(JAPAN),), "1 of 2 sub-questions left out")


async def test_the_batch_is_told_and_held_to_what_is_left_of_its_cap() -> None:
    context = ScriptedContext([SOUND])
    h = ModelOverseer(max_subquestions=3)
    step = await act(context, [Exchange("a", "1"), Exchange("b", "2")], h=h)
    assert step == Ask((SubQuestion(FRANCE),), "cut from 2 to 1 sub-questions")
    (request,) = context.client.requests
    assert "1 sub-question." in request.messages[-1][1]
    assert request.schema == step_schema(("ask", "answer"), 1)


async def test_long_answers_are_cut_and_the_prompt_says_so() -> None:
    context = ScriptedContext(['{"answer": "x"}'])
    await act(context, [Exchange(FRANCE, "a" * 1_000_000), Exchange(JAPAN, "b" * 1_000_000)])
    (shown,) = last_messages(context.client.requests)
    assert len(shown) < 2 * H.transcript_chars
    assert "characters cut] a" in shown and "characters cut] b" in shown


async def test_a_transcript_that_does_not_fit_is_shortened_until_it_does() -> None:
    def reply(request: ChatRequest) -> str:
        if len(request.messages[-1][1]) > 900:
            error = EndpointError("too long")
            error.refused = error.too_long = True
            raise error
        return '{"answer": "x"}'

    context = ScriptedContext(reply)
    transcript = [Exchange(FRANCE, "a" * 3_000), Exchange(JAPAN, "Tokyo")]
    assert await act(context, transcript) == Answer("x")
    shown = last_messages(context.client.requests)[-1]
    assert "Tokyo" in shown and FRANCE in shown and "characters cut" in shown
    with pytest.raises(EndpointError, match="too long"):
        await act(ScriptedContext(reply), [Exchange("q" * 20, "a" * 20)] * 24)


async def test_the_model_is_x_unless_h_names_another() -> None:
    for h, model in ((H, "base"), (ModelOverseer("strong"), "strong")):
        context = ScriptedContext([SOUND])
        await act(context, h=h)
        assert [r.model for r in context.client.requests] == [model]
    assert (H.name, ModelOverseer("strong").name) == ("model:X", "model:strong")


async def test_an_endpoint_that_fails_is_the_step_s_failure_and_not_a_refusal() -> None:
    def fail(request: ChatRequest) -> str:
        raise EndpointError("busy")

    with pytest.raises(EndpointError, match="busy"):
        await act(ScriptedContext(fail))


async def test_no_call_is_made_that_the_desk_cannot_pay() -> None:
    context = ScriptedContext([RUBBISH], Budget(2, 10_000))
    with pytest.raises(EndpointError):
        await act(context)
    assert len(context.client.requests) == 2


async def test_what_it_reserves_pays_one_later_step_at_its_longest() -> None:
    long = [Exchange(f"{i}" * 5_000, "long " * 5_000) for i in range(H.fanout)]
    context = ScriptedContext([RUBBISH, RUBBISH, ""], H.reserve)
    await act(context, long)
    words = sum(len(turn[1]) for r in context.client.requests for turn in r.messages) // 3
    assert len(context.client.requests) <= H.reserve.calls
    assert words + H.max_tries * H.max_tokens <= H.reserve.tokens


def test_the_schema_is_of_the_form_that_strict_endpoints_take() -> None:
    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema["required"] == list(schema["properties"])
                assert schema["additionalProperties"] is False
            for part in schema.values():
                check(part)
        elif isinstance(schema, list):
            for part in schema:
                check(part)

    schema = json.loads(step_schema(tuple(KINDS), 8))
    assert schema["type"] == "object"
    check(schema)


async def test_what_it_may_reply_depends_on_what_it_has_asked() -> None:
    offers: list[tuple[set[str], set[str]]] = []
    for said, h in (((), H), ((), ModelOverseer(primitives=True)), (SAID, H)):
        context = ScriptedContext([SOUND, "x"])
        await act(context, said, h=h)
        first = context.client.requests[0]
        shown = {kind for kind, words in KINDS.items() if words in first.messages[0][1]}
        forms = json.loads(first.schema)["properties"]["step"]["anyOf"]
        offers.append((shown, {key for form in forms for key in form["properties"]}))
    assert [shown for shown, _ in offers] == [allowed for _, allowed in offers]
    assert [shown for shown, _ in offers] == [
        {"ask", "not_decomposable"},
        {"ask", "answer", "not_decomposable"},
        {"ask", "answer"},
    ]


JSON_LIKE = st.text(st.sampled_from(list("[]{}\"'“”:,\\ \n\0u0d8ask?1.-")), max_size=60)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["ask", "answer", "step", "question", "needs", "q1", "reason", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.text() | JSON_LIKE | ANY_JSON.map(json.dumps) | ANY_JSON.map(str))
def test_every_text_can_be_read(text: str) -> None:
    reading = read_step(text)
    batch = settle(reading.questions, [QUESTION], 8)
    for part in (reading.answer, reading.reason, read_answer(text)):
        assert part is None or part.strip()
    for sub in (*reading.questions, *batch.subquestions):
        sub.text.encode()
        assert "\0" not in sub.text


plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(values, max_size=4) | st.dictionaries(plain, values, max_size=4), st.booleans())
def test_what_is_json_is_read_as_json(value: Any, ascii_only: bool) -> None:
    (read,) = loose_values(f"So: {json.dumps(value, ensure_ascii=ascii_only)} and so on")
    assert read == value


@given(st.integers(0, 2_000))
def test_what_lies_too_deep_is_left_out_and_the_rest_goes_on(depth: int) -> None:
    found = list(loose_values("[" * depth + "]" * depth + '{"answer": "x"}'))
    assert {"answer": "x"} in found


proposals = st.lists(
    st.builds(
        SubQuestion,
        st.lists(
            st.sampled_from(["a", "b", "B", " ", "{0}", "{1}", "{2}", "{3}", "{9}"]), max_size=2
        ).map("".join),
        st.lists(st.integers(-2, 8), max_size=3).map(tuple),
    ),
    max_size=7,
)


@given(proposals, st.integers(0, 8))
def test_what_is_asked_can_be_asked(asked: list[SubQuestion], max_votes: int) -> None:
    batch = settle(asked, ["a"], max_votes).subquestions
    assert len(batch) <= max_votes
    texts = [alike(sub.text) for sub in batch]
    assert all(text and text != "a" for text in texts)
    assert len(set(texts)) == len(texts)
    for index, sub in enumerate(batch):
        assert all(0 <= need < index for need in sub.needs)
        answers = {need: "!" for need in sub.needs}
        assert "{" not in sub.filled(answers)


@given(proposals)
def test_what_can_be_asked_as_it_is_stays_as_it_is(asked: list[SubQuestion]) -> None:
    once = settle(asked, ["a"], 8).subquestions
    assert settle(once, ["a"], 8).subquestions == once
