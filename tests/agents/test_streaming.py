"""Replies that are read while they arrive: what is passed on, what is recorded, how they break."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from reflux.agents.clients.endpoints import CachedClient, Endpoint, Endpoints
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.types import (
    ChatRequest,
    Completion,
    Delta,
    Pieces,
    Sampling,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    stream_of,
)
from reflux.graphs.traces.losses import find_failure
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore
from tests.support.serving import CALL, Scripted

ASKED = ChatRequest("m", (("user", "one two three"),))
KEY = CallKey("q", "", "answer")


async def read(pieces: Pieces) -> tuple[list[str], Completion]:
    """The texts of the deltas, and the whole that came last."""
    came = [piece async for piece in pieces]
    whole = came.pop()
    assert isinstance(whole, Completion)
    return [piece.text for piece in came if isinstance(piece, Delta)], whole


def rows(store: TraceStore) -> list[tuple[str, str | None, str]]:
    found = store.select("SELECT completion, error, finish_reason FROM calls ORDER BY id")
    return [(row["completion"], row["error"], row["finish_reason"]) for row in found]


async def test_a_reply_comes_in_pieces_and_then_whole(script: Scripted) -> None:
    texts, whole = await read(script.client().stream(ASKED))
    assert texts == ["ONE", " TWO", " THREE"]
    assert (whole.text, whole.finish_reason) == ("ONE TWO THREE", "stop")
    assert (whole.prompt_tokens, whole.completion_tokens) == (10, 3)
    assert whole.seconds > 0


async def test_pieces_carry_their_log_probabilities(script: Scripted) -> None:
    asked = replace(ASKED, sampling=Sampling(top_logprobs=1))
    came = [piece async for piece in script.client().stream(asked)]
    assert came[0] == Delta("ONE", (TokenLogprob("ONE", -0.5, (("a", -0.5),)),))
    whole = came[-1]
    assert isinstance(whole, Completion)
    assert [one.token for one in whole.logprobs] == ["ONE", "TWO", "THREE"]


async def test_calls_of_tools_are_put_together(script: Scripted) -> None:
    asked = replace(ASKED, tools=(ToolSpec("weather", "", "{}"),))
    texts, whole = await read(script.client().stream(asked))
    arguments = CALL["function"]["arguments"]
    assert (texts, whole.tool_calls) == ([], (ToolCall("call_1", "weather", arguments),))


async def test_a_failure_before_the_first_piece_is_tried_again(script: Scripted) -> None:
    script.refusal = lambda body: (503, "busy") if len(script.asked) == 1 else None
    texts, whole = await read(script.client(retries=1, backoff=0).stream(ASKED))
    assert "".join(texts) == "ONE TWO THREE"
    assert len(whole.retries) == 1 and "busy" in whole.retries[0]


async def test_a_stream_that_breaks_off_is_no_reply_and_is_not_begun_anew(
    script: Scripted,
) -> None:
    script.breaks = True
    came: list[Delta | Completion] = []
    with pytest.raises(EndpointError):
        async for piece in script.client(retries=3, backoff=0).stream(ASKED):
            came.append(piece)
    assert came == [Delta("ONE")]
    assert len(script.asked) == 1


async def test_a_schema_that_is_refused_is_not_dropped_from_a_stream(script: Scripted) -> None:
    script.refusal = lambda body: (400, "no schemas") if "response_format" in body else None
    asked = replace(ASKED, schema=json.dumps({"type": "object"}))
    with pytest.raises(EndpointError, match="no schemas") as failed:
        await read(script.client().stream(asked))
    assert failed.value.status == 400
    assert (await script.client().complete(asked)).text == "ONE TWO THREE"


async def test_a_client_that_cannot_stream_says_its_reply_in_one_piece() -> None:
    client = ScriptedClient(lambda request: "one two")
    texts, whole = await read(stream_of(client, ASKED))
    assert (texts, whole.text) == (["one two"], "one two")


async def test_a_known_reply_is_not_asked_for_again(script: Scripted) -> None:
    client = CachedClient(script.client())
    first = await read(client.stream(ASKED))
    again = await read(client.stream(ASKED))
    whole = await client.complete(ASKED)
    assert len(script.asked) == 1
    assert again[0] == ["".join(first[0])]
    assert (again[1].cached, whole.cached, whole.text) == (True, True, "ONE TWO THREE")


async def test_the_name_of_a_model_says_which_endpoint_is_asked(script: Scripted) -> None:
    rest = ScriptedClient(lambda request: f"rest: {request.model}")
    both = Endpoints({"near": Endpoint(script.client(), "far")}, rest)
    texts, _ = await read(both.stream(replace(ASKED, model="near")))
    assert "".join(texts) == "ONE TWO THREE"
    assert script.asked[0]["model"] == "far"
    assert (await both.complete(ASKED)).text == "rest: m"
    assert await both.model_digest("near") == f"{script.url}#far"
    assert (await read(both.stream(ASKED)))[0] == ["rest: m"]


async def test_a_streamed_call_is_recorded_before_it_is_whole_and_replayed(
    script: Scripted, store: TraceStore
) -> None:
    recorded_client = RecordedClient(script.client(), store)
    whole: Completion | None = None
    async for piece in recorded_client.stream(KEY, ASKED):
        if isinstance(piece, Completion):
            whole = piece
            assert rows(store) == [("ONE TWO THREE", None, "stop")]
        else:
            assert rows(store) == []
    again = await read(recorded_client.stream(KEY, ASKED))
    assert whole is not None and again == (["ONE TWO THREE"], whole)
    assert len(script.asked) == 1
    with pytest.raises(ReplayError):
        await read(recorded_client.stream(KEY, replace(ASKED, messages=(("user", "four"),))))


async def test_what_came_of_a_broken_stream_is_recorded_with_the_error(
    script: Scripted, store: TraceStore
) -> None:
    script.breaks = True
    recorded_client = RecordedClient(script.client(), store)
    with pytest.raises(EndpointError):
        await read(recorded_client.stream(KEY, ASKED))
    ((text, error, reason),) = rows(store)
    assert (text, reason) == ("ONE", "error")
    assert error and script.url in error
    failure = find_failure(store, "q")
    assert failure is not None and failure.is_last and not failure.refused


async def test_a_reader_that_leaves_closes_the_stream_and_what_came_is_recorded(
    script: Scripted, store: TraceStore
) -> None:
    script.pause = lambda body: 0.02
    asked = replace(ASKED, messages=(("user", "word " * 200),))
    async with aclosing(RecordedClient(script.client(), store).stream(KEY, asked)) as pieces:
        await anext(pieces)
        await anext(pieces)
    assert rows(store) == [("WORD WORD", "the reader left after 2 pieces", "cancelled")]
    for _ in range(200):
        if script.left:
            break
        await asyncio.sleep(0.02)
    assert script.left == 1


async def test_a_task_that_is_cancelled_records_what_came(
    script: Scripted, store: TraceStore
) -> None:
    script.pause = lambda body: 0.02
    asked = replace(ASKED, messages=(("user", "word " * 200),))
    first = asyncio.Event()

    async def work() -> None:
        async with aclosing(RecordedClient(script.client(), store).stream(KEY, asked)) as pieces:
            async for _ in pieces:
                first.set()

    task = asyncio.create_task(work())
    await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ((text, error, _),) = rows(store)
    assert text.startswith("WORD") and error and "the reader left" in error
