"""Model calls on the record: replayed, or made, committed and only then used."""

import asyncio
import json
from dataclasses import replace
from functools import partial

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.redaction import PLACEHOLDER
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import Answer, Ask, ChatRequest, Completion, SubQuestion, TokenLogprob
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore

KEY = CallKey("q1", "/0.0.0", "answer")
REQUEST = ChatRequest("base", (("system", ""), ("user", "2+2?")))
SECRET = "sk-abcdefghijklmnopqrstuvwx"
FULL = Completion(
    "4", 9, 1, 0.5, "length", (TokenLogprob("4", -0.1, (("4", -0.1),)),), ("500 busy",), False,
    reasoning="two and two", notes=("left out: seed",),
)  # fmt: skip


async def test_a_recorded_call_is_replayed_whole_and_not_made_again(store: TraceStore) -> None:
    model = ScriptedClient(lambda _: FULL)
    recorded_client = RecordedClient(model, store)
    assert await recorded_client.ask(KEY, REQUEST) == FULL
    assert await recorded_client.ask(KEY, REQUEST) == FULL
    assert len(model.requests) == 1


async def test_reasoning_of_any_client_is_apart_on_the_record(store: TraceStore) -> None:
    model = ScriptedClient(lambda _: f"<think>two and two {SECRET}</think>4")
    recorded_client = RecordedClient(model, store)
    for reply in (
        await recorded_client.ask(KEY, REQUEST),
        await recorded_client.ask(KEY, REQUEST),
        [piece async for piece in recorded_client.stream(replace(KEY, vote=1), REQUEST)][-1],
    ):
        assert isinstance(reply, Completion)
        assert (reply.text, reply.reasoning) == ("4", f"two and two {PLACEHOLDER}")
    unrecorded = await recorded_client.unrecorded(replace(KEY, vote=2), REQUEST)
    assert unrecorded.text == "4"


async def test_another_request_under_the_same_key_is_an_error(store: TraceStore) -> None:
    model = ScriptedClient(lambda _: "4")
    recorded_client = RecordedClient(model, store)
    await recorded_client.ask(KEY, REQUEST)
    with pytest.raises(ReplayError, match=r"another request.*--run"):
        await recorded_client.ask(KEY, replace(REQUEST, model="student-r1"))
    assert len(model.requests) == 1


async def test_keys_that_differ_are_calls_of_their_own(store: TraceStore) -> None:
    model = ScriptedClient(lambda _: "4")
    recorded_client = RecordedClient(model, store)
    for key in (KEY, replace(KEY, vote=1), replace(KEY, path=""), replace(KEY, attempt=1)):
        await recorded_client.ask(key, REQUEST)
    assert len(model.requests) == 4


async def test_secrets_are_taken_out_before_sending_and_storing(store: TraceStore) -> None:
    model = ScriptedClient(lambda _: f"you said {SECRET}")
    reply = await RecordedClient(model, store).ask(
        KEY, replace(REQUEST, messages=(("user", f"my key is {SECRET}"),))
    )
    assert reply.text == f"you said {PLACEHOLDER}"
    assert model.requests[0].messages == (("user", f"my key is {PLACEHOLDER}"),)
    row = store.find_call(KEY)
    assert row is not None and SECRET not in json.dumps(dict(row))


async def test_secrets_are_taken_out_of_steps_and_errors(store: TraceStore) -> None:
    def fail(_: ChatRequest) -> str:
        raise EndpointError(f"401: incorrect key {SECRET}")

    recorded_client = RecordedClient(ScriptedClient(fail), store)
    with pytest.raises(EndpointError):
        await recorded_client.ask(KEY, REQUEST)
    asked = Ask((SubQuestion("first"), SubQuestion(f"use {SECRET} on {{0}}", (0,))))
    step = await recorded_client.step(replace(KEY, role="overseer"), "human", asked)
    assert step == Ask((SubQuestion("first"), SubQuestion(f"use {PLACEHOLDER} on {{0}}", (0,))))
    await recorded_client.step(replace(KEY, role="overseer", step=1), "human", Answer(SECRET))
    stored = json.dumps([dict(row) for row in store.select("SELECT * FROM calls")])
    assert SECRET not in stored
    assert stored.count(PLACEHOLDER) == 3


async def test_a_failed_call_is_recorded_and_made_again_the_next_time(store: TraceStore) -> None:
    failures = iter([EndpointError("down")])

    def reply(_: ChatRequest) -> str:
        for failure in failures:
            raise failure
        return "4"

    recorded_client = RecordedClient(ScriptedClient(reply), store)
    with pytest.raises(EndpointError, match="down"):
        await recorded_client.ask(KEY, REQUEST)
    (row,) = store.select("SELECT error, finish_reason, model, messages FROM calls")
    assert (row["error"], row["finish_reason"], row["model"]) == ("down", "error", "base")
    assert json.loads(row["messages"]) == REQUEST.payload()
    assert (await recorded_client.ask(KEY, REQUEST)).text == "4"


async def test_the_row_is_there_when_the_answer_is_used(store: TraceStore) -> None:
    recorded_client = RecordedClient(ScriptedClient(lambda _: FULL), store)
    await recorded_client.ask(KEY, REQUEST)
    row = store.find_call(KEY)
    assert row is not None
    assert (row["kind"], row["model"], row["model_digest"]) == ("model", "base", "scripted:base")
    assert row["request_digest"] == REQUEST.digest("scripted:base")
    assert (row["prompt_tokens"], row["completion_tokens"], row["seconds"]) == (9, 1, 0.5)
    assert json.loads(row["retries"]) == ["500 busy"]


async def test_a_step_taken_again_is_one_row_and_another_step_is_an_error(
    store: TraceStore,
) -> None:
    recorded_client = RecordedClient(ScriptedClient(lambda _: "4"), store)
    for _ in range(2):
        assert await recorded_client.step(KEY, "script:h", Ask.of("a", "b")) == Ask.of("a", "b")
    assert len(list(store.select("SELECT 1 FROM calls"))) == 1
    with pytest.raises(ReplayError, match="deterministic"):
        await recorded_client.step(KEY, "script:h", Answer("a"))


async def test_a_tool_that_two_ask_at_once_has_one_reply(store: TraceStore) -> None:
    """As two processes on one run folder do."""
    both_there = asyncio.Barrier(2)

    async def work(reply: str) -> ToolReply:
        await both_there.wait()
        return ToolReply(reply, True)

    callers = [RecordedClient(ScriptedClient(lambda _: "4"), store) for _ in range(2)]
    replies = await asyncio.gather(
        *(
            recorded_client.tool(KEY, "dice", "roll", partial(work, str(number)))
            for number, recorded_client in enumerate(callers)
        )
    )
    assert len({reply.text for reply in replies}) == 1
    with pytest.raises(ReplayError, match="other arguments"):
        await callers[0].tool(KEY, "dice", "roll twice", partial(work, "7"))
