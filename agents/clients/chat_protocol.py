"""The OpenAI chat protocol: bodies of requests, replies, and replies that stream in pieces.

A client that streams has a method `stream` beside `complete`; `stream_of` lets any client stream,
a client without that method in a single piece.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from pydantic import BaseModel, Field, ValidationError

from reflux.agents.types import (
    ChatClient,
    ChatRequest,
    Completion,
    Sampling,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)

if TYPE_CHECKING:
    import openai


def request_body(request: ChatRequest) -> dict[str, Any]:
    """The body to post."""
    body: dict[str, Any] = {"model": request.model, "messages": request.payload()}
    body |= sampling_fields(request.sampling)
    if request.sampling.stop:
        body["stop"] = list(request.sampling.stop)
    if request.tools:
        body["tools"] = [function_spec(tool) for tool in request.tools]
    if request.schema:
        form = {"name": "reply", "schema": json.loads(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body | json.loads(request.extra) if request.extra else body


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Settings by the names of the chat protocol, without `stop`."""
    body = {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
    }
    logprobs = {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body | logprobs if sampling.top_logprobs else body


def function_spec(tool: ToolSpec) -> dict[str, Any]:
    """A tool in the form of the chat protocol."""
    body = {"name": tool.name, "description": tool.description}
    return {"type": "function", "function": body | {"parameters": json.loads(tool.parameters)}}


class Alternative(BaseModel):
    """A token that the model might have chosen instead."""

    token: str
    logprob: float


class Token(Alternative):
    """A token of the reply, with its alternatives."""

    top_logprobs: list[Alternative] | None = None


class Logprobs(BaseModel):
    """Log-probabilities in OpenAI's form."""

    content: list[Token] | None = None

    def read(self) -> tuple[TokenLogprob, ...]:
        return tuple(
            TokenLogprob(
                t.token, t.logprob, tuple((a.token, a.logprob) for a in t.top_logprobs or ())
            )
            for t in self.content or ()
        )


@dataclass(frozen=True)
class Delta:
    """A piece of a reply."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""


Pieces = AsyncGenerator[Delta | Completion]
"""Deltas, and at the end the completion that they make up. Close it if you do not exhaust it."""


@runtime_checkable
class StreamingClient(Protocol):
    """A client whose replies can be read as they arrive."""

    def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; an endpoint without schemas refuses a schema.

        Raises:
            EndpointError: no reply after every retry, or the stream broke off.
        """
        ...


async def stream_of(client: ChatClient, request: ChatRequest) -> Pieces:
    """The reply of any client, in one piece if the client cannot stream."""
    if isinstance(client, StreamingClient):
        async with aclosing(client.stream(request)) as pieces:
            async for piece in pieces:
                yield piece
        return
    for piece in in_one_piece(await client.complete(request)):
        yield piece


def in_one_piece(reply: Completion) -> tuple[Delta | Completion, ...]:
    """A complete reply in the form of a stream."""
    return (Delta(reply.text, reply.logprobs), reply) if reply.text else (reply,)


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(BaseModel):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Ending(BaseModel):
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Choice(_Ending):
    message: _Message


class _StreamedChoice(_Ending):
    delta: _Message = _Message()


class Usage(BaseModel):
    """Token counts, where the endpoint reports them."""

    prompt_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    completion_tokens: int | None = Field(default=None, ge=0, lt=2**31)


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None


class _Chunk(BaseModel):
    choices: list[_StreamedChoice] = []
    usage: Usage | None = None


@dataclass
class _PartialReply:
    """A reply so far."""

    text: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    calls: dict[int, tuple[str, str, str]] = field(default_factory=dict[int, tuple[str, str, str]])
    """(id, name, arguments) of each tool call, by its index."""
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)

    def add(self, message: _Message, ending: _Ending) -> Delta | None:
        """Add a message, or a part of it; returns a delta if it holds text."""
        self.finish_reason = ending.finish_reason or self.finish_reason
        for position, part in enumerate(message.tool_calls or ()):
            index = position if part.index is None else part.index
            id, name, arguments = self.calls.get(index, ("", "", ""))
            self.calls[index] = (
                id or part.id or "",
                name or part.function.name or "",
                arguments + (part.function.arguments or ""),
            )
        text = message.content or ""
        logprobs = ending.logprobs.read() if ending.logprobs else ()
        if not (text or logprobs):
            return None
        self.text.append(text)
        self.logprobs += logprobs
        return Delta(text, logprobs)

    def completion(self, seconds: float = 0.0, retries: tuple[str, ...] = ()) -> Completion:
        return Completion(
            "".join(self.text),
            prompt_tokens=self.usage.prompt_tokens or 0,
            completion_tokens=self.usage.completion_tokens or 0,
            seconds=seconds,
            finish_reason=self.finish_reason or "stop",
            logprobs=tuple(self.logprobs),
            retries=retries,
            tool_calls=tuple(ToolCall(*self.calls[index]) for index in sorted(self.calls)),
        )


def read_reply(body: bytes) -> Completion:
    """Read the body of a reply.

    Raises:
        openai.APIError: it lacks a field that the protocol requires.
    """
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError as error:
        raise garbled(
            f"the reply is no chat completion ({_first_error(error)}); it begins "
            f"{body[:120].decode(errors='replace')!r}"
        ) from error
    whole = _PartialReply(usage=reply.usage or Usage())
    whole.add(reply.choices[0].message, reply.choices[0])
    return whole.completion()


async def read_stream(
    chunks: AsyncIterable[Any], start: float, retries: tuple[str, ...] = ()
) -> Pieces:
    """Read the chunks of a streamed reply; `start` is the time of the request, by `perf_counter`.

    Raises:
        openai.APIError: a chunk violates the protocol, or the chunks end before the reply does.
    """
    partial = _PartialReply()
    try:
        async for chunk in chunks:
            part = _Chunk.model_validate(chunk)
            partial.usage = part.usage or partial.usage
            for choice in part.choices[:1]:
                if (delta := partial.add(choice.delta, choice)) is not None:
                    yield delta
    except ValidationError as error:
        raise garbled(f"a chunk is not a chat completion chunk ({_first_error(error)})") from error
    except ValueError as error:
        raise garbled(f"a chunk is no JSON ({error})") from error
    if not partial.finish_reason:
        raise garbled("the stream ended before the reply did")
    yield partial.completion(time.perf_counter() - start, retries)


def _first_error(error: ValidationError) -> str:
    """Where and how a body first departs from the protocol."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"


def garbled(message: str) -> "openai.APIError":
    """The error of a reply that violates the protocol; it is worth another try."""
    import openai  # Takes a third of a second, so only on this path.

    return openai.APIError(message, cast(Any, None), body=None)
