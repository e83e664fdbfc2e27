"""The values that agents exchange: questions, steps, model calls."""

import hashlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Message = dict[str, str]
"""One chat message: `{"role": ..., "content": ...}`."""


REFERENCE = re.compile(r"\{(\d{1,9})\}")
"""A sub-question's reference to the answer of another one of its batch."""


@dataclass(frozen=True)
class SubQuestion:
    """A question that the overseer asks one copy of the agent."""

    text: str
    """The question; `{i}` is replaced by the answer to sub-question i of the same batch."""
    needs: tuple[int, ...] = ()
    """Positions in the batch that must be answered first."""
    to: str = ""
    """Who answers: `tool:NAME`, `expert:NAME`, all `experts`, or some, `experts:NAME,NAME`; a copy
    without tools whose answer is a value, `typed:TYPE`; a copy of the agent if empty."""

    def filled(self, answers: Mapping[int, str]) -> str:
        """The question with the answers in place; a `{i}` within an answer stays."""
        return REFERENCE.sub(lambda match: answers.get(int(match[1]), match[0]), self.text)


@dataclass(frozen=True)
class Ask:
    """The overseer asks a batch of sub-questions, which run in parallel."""

    subquestions: tuple[SubQuestion, ...]
    note: str = ""
    """The reason, for the record: for example that the question cannot be decomposed."""

    @staticmethod
    def of(*texts: str) -> "Ask":
        """Independent sub-questions, in order."""
        return Ask(tuple(SubQuestion(text) for text in texts))


@dataclass(frozen=True)
class Answer:
    """The overseer ends the question with its answer."""

    text: str
    reason: str = ""
    """How it follows from the sub-answers: for the record, and for learned overseers, which write
    it before the answer."""


@dataclass(frozen=True)
class Defer:
    """The overseer hands the question to a human, who may take days and sees `form`."""

    form: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Chain:
    """The overseer asks a sequence of questions; its `follow` derives each from the last answer
    (`reflux.agents.overseers.protocol.ChainOverseer`)."""

    first: str


Step = Ask | Answer | Defer | Chain


@dataclass(frozen=True)
class Exchange:
    """One entry of the transcript: a sub-question and its answer."""

    question: str
    answer: str | None
    """None if the copy failed and left no partial answer."""
    error: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How a completion is sampled. Temperature 0 is greedy."""

    temperature: float = 0.0
    max_tokens: int = 256
    top_logprobs: int = 0
    """Alternatives to return for each token, 0 to 20; 0 requests no log-probabilities."""
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a model sees it."""

    name: str
    description: str
    parameters: str
    """JSON schema of its arguments, as text."""


@dataclass(frozen=True)
class ToolCall:
    """A model's request to call a tool."""

    id: str
    name: str
    arguments: str
    """JSON text as the model wrote it: it may be invalid."""

    def to_json(self) -> dict[str, Any]:
        """In the form of the chat protocol."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


Turn = tuple[str, ...]
"""(role, content), or (role, content, JSON text of the message's other fields)."""


@dataclass(frozen=True)
class ChatRequest:
    """One model call. `vote` keeps independent votes apart in every cache."""

    model: str
    messages: tuple[Turn, ...]
    sampling: Sampling = Sampling()
    vote: int = 0
    tools: tuple[ToolSpec, ...] = ()
    schema: str = ""
    """JSON schema of the reply, as text; empty for free text."""
    extra: str = ""
    """Further fields of the body, as JSON text, for an endpoint of the chat protocol; they take
    precedence."""

    def extra_fields(self) -> dict[str, Any]:
        return json.loads(self.extra) if self.extra else {}

    def payload(self) -> list[dict[str, Any]]:
        """The messages in the form of the chat protocol."""
        return [
            {"role": turn[0], "content": turn[1], **(json.loads(turn[2]) if turn[2:] else {})}
            for turn in self.messages
        ]

    def digest(self, model_digest: str) -> str:
        """Hash of all that determines the reply: model, messages, sampling, seed, vote, tools,
        schema and further fields (hex, 32)."""
        body: list[Any] = [model_digest, self.messages, vars(self.sampling), self.vote]
        if self.tools or self.schema:
            body += [[vars(tool) for tool in self.tools], self.schema]
        if self.extra:
            body.append({"extra": self.extra})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a completion, with its natural-log probability and its alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


PRINTED_CALL = "the reply is a tool call as text, which the endpoint does not read"
"""The note of a reply that is no answer."""


@dataclass(frozen=True)
class Completion:
    """A model's reply, and what it cost."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finish_reason: str = "stop"
    logprobs: tuple[TokenLogprob, ...] = ()
    retries: tuple[str, ...] = ()
    """One line for each failed try before the reply."""
    cached: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    """What the model thought before it answered: for the record and the screen, never part of an
    answer, a vote, a prompt or a row."""
    notes: tuple[str, ...] = ()
    """What a reader of the record should know: settings that were left out, an odd reply."""

    @property
    def prints_call(self) -> bool:
        """True where the model wrote a tool call as text, so that the text is no answer."""
        return PRINTED_CALL in self.notes

    @property
    def truncated(self) -> bool:
        """True where the token limit ended the reply."""
        return self.finish_reason == "length"

    @property
    def filtered(self) -> bool:
        """True where the endpoint's content filter ended the reply."""
        return self.finish_reason == "content_filter"

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def min_logprob(self) -> float | None:
        """Log-probability of the least certain token; None if the endpoint returned none."""
        return min((t.logprob for t in self.logprobs), default=None)


class ChatClient(Protocol):
    """Completes chats: an endpoint, the embedded engine, a script."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            EndpointError: no reply after every retry.
            MissingError: the model or its endpoint is missing.
        """
        ...

    async def model_digest(self, model: str) -> str:
        """Identifies the weights behind a model name: base and adapter."""
        ...


def step_to_json(step: Step) -> dict[str, Any]:
    """A step as plain JSON types, as in states and logs."""
    if isinstance(step, Answer):
        reason = {"reason": step.reason} if step.reason else {}
        return {"kind": "answer", "text": step.text} | reason
    if isinstance(step, Defer):
        return {"kind": "defer", "form": dict(step.form)}
    if isinstance(step, Chain):
        return {"kind": "chain", "first": step.first}
    subquestions = [
        {"text": s.text, "needs": list(s.needs)} | ({"to": s.to} if s.to else {})
        for s in step.subquestions
    ]
    note = {"note": step.note} if step.note else {}
    return {"kind": "ask", "subquestions": subquestions} | note


def step_from_json(data: Mapping[str, Any]) -> Step:
    """The inverse of `step_to_json`."""
    if data["kind"] == "answer":
        return Answer(str(data["text"]), data.get("reason", ""))
    if data["kind"] == "defer":
        return Defer(data["form"])
    if data["kind"] == "chain":
        return Chain(str(data["first"]))
    subquestions: Sequence[Mapping[str, Any]] = data["subquestions"]
    return Ask(
        tuple(SubQuestion(s["text"], tuple(s["needs"]), s.get("to", "")) for s in subquestions),
        data.get("note", ""),
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
    """A client whose replies can be read as they arrive; `stream_of` reads those of any client."""

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
    if not (reply.text or reply.reasoning):
        return (reply,)
    return (Delta(reply.text, reply.logprobs, reply.reasoning), reply)
