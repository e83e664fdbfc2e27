"""The client against every behavior of the table, over real sockets: whole replies and streams."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from reflux.agents.clients.chat_replies import read_reply
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion, Delta, Sampling, ToolSpec
from tests.support.endpoint_behaviors import BEHAVIORS, Behavior, serve
from tests.support.endpoint_server import Served

ADD = ToolSpec("add", "Adds.", '{"type": "object", "properties": {}}')
EXAMPLES = (
    ("system", "Answer briefly."),
    ("user", "What is the capital of Chile?"),
    ("assistant", "Santiago"),
    ("user", "And of Peru?"),
)


UNFORESEEN = "think block without its opening tag"
"""The first stream of such a model shows its reasoning as content, until the tag comes."""


def request_for(behavior: Behavior) -> ChatRequest:
    return ChatRequest(
        "m",
        EXAMPLES,
        Sampling(top_logprobs=1, max_tokens=64),
        tools=(ADD,) if behavior.tools else (),
        schema='{"type": "object"}' if behavior.schema else "",
    )


async def no_sleep(seconds: float) -> None:
    assert seconds <= 120


def client_of(behavior: Behavior, served: Served, **options: Any) -> OpenAIClient:
    url = served.url.removesuffix("/v1") + behavior.path if behavior.path else served.url
    return OpenAIClient(url, "key", retries=2, sleep=no_sleep, **options)


def text_of(reply: Completion) -> str:
    """A reply's text, or its tool calls as text."""
    calls = " ".join(f"{call.name}({call.arguments})" for call in reply.tool_calls)
    return calls or reply.text


def check(behavior: Behavior, reply: Completion, served: Served) -> None:
    assert text_of(reply) == behavior.text
    assert reply.reasoning == behavior.reasoning
    assert reply.finish_reason == behavior.finish
    assert reply.truncated == behavior.truncated
    assert behavior.notes in " ".join(reply.notes) if behavior.notes else True
    if behavior.sent is not None:
        assert behavior.sent(served.bodies[-1])
    if behavior.requests is not None:
        assert len(served.requests) == behavior.requests


WHOLE = [behavior for behavior in BEHAVIORS.values() if behavior.whole]
STREAMED = [behavior for behavior in BEHAVIORS.values() if behavior.streams]


@pytest.mark.parametrize("behavior", WHOLE, ids=lambda b: b.name)
async def test_a_whole_reply(behavior: Behavior) -> None:
    with serve(behavior) as served:
        client = client_of(behavior, served)
        try:
            reply = await client.complete(request_for(behavior))
        except EndpointError as error:
            assert behavior.error and re.search(behavior.error, str(error)), str(error)
            assert "\n" not in str(error)
            if behavior.requests is not None:
                assert len(served.requests) == behavior.requests
        else:
            assert not behavior.error
            check(behavior, reply, served)
        finally:
            await client.close()


@pytest.mark.parametrize("behavior", STREAMED, ids=lambda b: b.name)
async def test_a_stream(behavior: Behavior) -> None:
    with serve(behavior) as served:
        client = client_of(behavior, served)
        try:
            pieces = [piece async for piece in client.stream(request_for(behavior))]
        except EndpointError as error:
            assert behavior.error and re.search(behavior.error, str(error)), str(error)
            return
        finally:
            await client.close()
    assert not behavior.error
    reply = pieces[-1]
    assert isinstance(reply, Completion)
    check(behavior, reply, served)
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    if behavior.name != UNFORESEEN:
        assert "".join(delta.text for delta in deltas) == reply.text
        assert "".join(delta.reasoning for delta in deltas).strip() == reply.reasoning


async def test_a_model_that_opens_its_block_in_the_template_is_known_from_its_first_reply() -> None:
    behavior = BEHAVIORS[UNFORESEEN]
    with serve(behavior) as served:
        client = client_of(behavior, served)
        await client.complete(request_for(behavior))
        pieces = [piece async for piece in client.stream(request_for(behavior))]
        await client.close()
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    assert "".join(delta.text for delta in deltas) == behavior.text


async def test_a_reasoning_model_whose_server_reads_its_reasoning_streams_its_answer() -> None:
    behavior = BEHAVIORS["field reasoning_content"]
    with serve(behavior) as served:
        client = client_of(behavior, served)
        request = replace(request_for(behavior), model="deepseek-r1")
        pieces = [piece async for piece in client.stream(request)]
        await client.close()
    texts = [piece.text for piece in pieces if isinstance(piece, Delta) and piece.text]
    assert len(texts) > 1 and "".join(texts) == behavior.text


def test_a_total_alone_counts_the_tokens() -> None:
    choice = {"message": {"content": "Lima"}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"total_tokens": 12}}
    assert read_reply(json.dumps(body).encode()).completion().tokens == 12
    body["usage"] = {"completion_tokens": 3, "total_tokens": 12}
    reply = read_reply(json.dumps(body).encode()).completion()
    assert (reply.prompt_tokens, reply.completion_tokens) == (9, 3)
    body["usage"] = {"input_tokens": 8, "output_tokens": 2}
    reply = read_reply(json.dumps(body).encode()).completion()
    assert (reply.prompt_tokens, reply.completion_tokens) == (8, 2)
