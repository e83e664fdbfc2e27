"""Replies as they arrive: pieces of text, and at the end the whole completion.

A client that streams has a method `stream` beside `complete`; `stream_of` has any client stream,
one that cannot in a single piece.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from pydantic import BaseModel, ValidationError

from reflux.agents.clients.chat_protocol import Logprobs, Usage, garbled
from reflux.agents.types import ChatClient, ChatRequest, Completion, TokenLogprob, ToolCall


@dataclass(frozen=True)
class Delta:
    """A piece of a reply."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


Pieces = AsyncGenerator[Delta | Completion]
"""Deltas, and at the end the completion that they make. To be closed where it is not read out."""


class StreamingClient(Protocol):
    """A client whose replies can be read as they arrive."""

    def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; an endpoint that takes no schemas refuses one.

        Raises:
            EndpointError: no reply after every retry, or the stream broke off.
        """
        ...


def stream_of(client: ChatClient, request: ChatRequest) -> Pieces:
    """The reply of any client, piece by piece where the client can."""
    if hasattr(client, "stream"):
        return cast(StreamingClient, client).stream(request)
    return _at_once(client, request)


async def _at_once(client: ChatClient, request: ChatRequest) -> Pieces:
    reply = await client.complete(request)
    for piece in in_one_piece(reply):
        yield piece


def in_one_piece(reply: Completion) -> tuple[Delta | Completion, ...]:
    """A reply that is there as if it had arrived."""
    return (Delta(reply.text, reply.logprobs), reply) if reply.text else (reply,)


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _CallPart(BaseModel):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Change(BaseModel):
    content: str | None = None
    tool_calls: list[_CallPart] | None = None


class _Choice(BaseModel):
    delta: _Change = _Change()
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: Usage | None = None


@dataclass
class _Gathered:
    """What has come so far."""

    text: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    calls: dict[int, tuple[str, str, str]] = field(default_factory=dict[int, tuple[str, str, str]])
    """(id, name, arguments) of each tool call, by its place."""
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)

    def take(self, chunk: _Chunk) -> Delta | None:
        """Add a chunk; a delta where it holds text."""
        self.usage = chunk.usage or self.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        for part in choice.delta.tool_calls or ():
            id, name, arguments = self.calls.get(part.index, ("", "", ""))
            said = part.function
            self.calls[part.index] = (
                id or part.id or "",
                name or said.name or "",
                arguments + (said.arguments or ""),
            )
        text = choice.delta.content or ""
        logprobs = choice.logprobs.read() if choice.logprobs else ()
        if not (text or logprobs):
            return None
        self.text.append(text)
        self.logprobs += logprobs
        return Delta(text, logprobs)

    def whole(self, seconds: float, retries: tuple[str, ...]) -> Completion:
        """The completion that all of it makes."""
        return Completion(
            "".join(self.text),
            prompt_tokens=self.usage.prompt_tokens or 0,
            completion_tokens=self.usage.completion_tokens or 0,
            seconds=seconds,
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs),
            retries=retries,
            tool_calls=tuple(ToolCall(*self.calls[at]) for at in sorted(self.calls)),
        )


async def read_stream(
    chunks: AsyncIterable[Any], begun: float, retries: tuple[str, ...] = ()
) -> Pieces:
    """Take the chunks of a streamed reply apart; `begun` is when it was asked, by perf_counter.

    Raises:
        openai.APIError: a chunk is none of the protocol's, or they end before the reply does.
    """
    gathered = _Gathered()
    try:
        async for chunk in chunks:
            if (delta := gathered.take(_Chunk.model_validate(chunk))) is not None:
                yield delta
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "chunk"
        raise garbled(f"a chunk is none of a chat completion ({where}: {first['msg']})") from error
    except ValueError as error:
        raise garbled(f"a chunk is no JSON ({error})") from error
    if not gathered.finish_reason:
        raise garbled("the stream ended before the reply did")
    yield gathered.whole(time.perf_counter() - begun, retries)
