"""The values that agents exchange: questions asked, steps taken, calls made."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]
"""One chat message: `{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class SubQuestion:
    """What H asks one copy of X."""

    text: str
    """The question; `{i}` stands for the answer to sub-question i of the same batch."""
    needs: tuple[int, ...] = ()
    """Positions in the batch that must be answered first."""
    to: str = ""
    """Who is to answer: `tool:NAME`, `expert:NAME`, all `experts` or some of them,
    `experts:NAME,NAME`; a copy of X where empty."""

    def filled(self, answers: Mapping[int, str]) -> str:
        """The question with the answers that it needs in place; an answer that itself holds a
        `{i}` stays as it is."""

        def put(match: re.Match[str]) -> str:
            return answers.get(int(match[1]), match[0])

        return re.sub(r"\{(\d{1,9})\}", put, self.text)


@dataclass(frozen=True)
class Ask:
    """H asks a batch of sub-questions, which run in parallel."""

    subquestions: tuple[SubQuestion, ...]
    note: str = ""
    """Why H asks so, for the record: for example that the question cannot be decomposed."""

    @staticmethod
    def of(*texts: str) -> "Ask":
        """Independent sub-questions, in order."""
        return Ask(tuple(SubQuestion(text) for text in texts))


@dataclass(frozen=True)
class Answer:
    """H ends the question with its answer."""

    text: str


@dataclass(frozen=True)
class Defer:
    """H hands the question to a person, who may take days; `form` is what the person sees."""

    form: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Chain:
    """H asks one question after the other, each made of the last answer by its `follow`; see
    `reflux.agents.overseers.protocol.Follower`."""

    first: str


Step = Ask | Answer | Defer | Chain


@dataclass(frozen=True)
class Exchange:
    """One entry of the transcript: what was asked, and what came back."""

    question: str
    answer: str | None
    """None where the copy failed and left no partial answer."""
    error: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn. Temperature 0 is greedy."""

    temperature: float = 0.0
    max_tokens: int = 256
    top_logprobs: int = 0
    """Alternatives returned for each token, 0 to 20; 0 asks for no log-probabilities."""
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
    """A model's wish to have a tool called."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it: it may be anything."""


Turn = tuple[str, ...]
"""(role, content), or (role, content, JSON text of the message's other fields)."""


@dataclass(frozen=True)
class ChatRequest:
    """One model call. `vote` keeps independent votes apart in every cache."""

    model: str
    messages: tuple[Turn, ...]
    """In order."""
    sampling: Sampling = Sampling()
    vote: int = 0
    tools: tuple[ToolSpec, ...] = ()
    """Tools that the reply may ask for."""
    schema: str = ""
    """JSON schema that the reply is to follow, as text; empty for free text."""

    def payload(self) -> list[dict[str, Any]]:
        """The messages in the form of the chat protocol."""
        return [
            {"role": turn[0], "content": turn[1], **(json.loads(turn[2]) if turn[2:] else {})}
            for turn in self.messages
        ]

    def digest(self, model_digest: str) -> str:
        """Hash of all that decides the reply: model, messages, sampling, seed, vote, and where
        there are any tools and schema (hex, 32)."""
        body: list[Any] = [model_digest, self.messages, vars(self.sampling), self.vote]
        if self.tools or self.schema:
            body += [[vars(tool) for tool in self.tools], self.schema]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a completion, with its natural-log probability and the runners-up."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model answered, and what that cost."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finish_reason: str = "stop"
    logprobs: tuple[TokenLogprob, ...] = ()
    retries: tuple[str, ...] = ()
    """One line for each failed try before this one."""
    cached: bool = False
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def truncated(self) -> bool:
        """True where the token limit ended the reply."""
        return self.finish_reason == "length"

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def min_logprob(self) -> float | None:
        """Log-probability of the least certain token; None where the endpoint gave none."""
        return min((t.logprob for t in self.logprobs), default=None)


class ChatClient(Protocol):
    """Anything that completes a chat: an endpoint, the embedded engine, a script."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            EndpointError: no reply after every retry.
            MissingError: the model or its endpoint is not there.
        """
        ...

    async def model_digest(self, model: str) -> str:
        """What identifies the weights behind a model name: base and adapter."""
        ...


def step_to_json(step: Step) -> dict[str, Any]:
    """A step as plain JSON types, the form that states and logs hold."""
    if isinstance(step, Answer):
        return {"kind": "answer", "text": step.text}
    if isinstance(step, Defer):
        return {"kind": "defer", "form": dict(step.form)}
    if isinstance(step, Chain):
        return {"kind": "chain", "first": step.first}
    asked = [
        {"text": s.text, "needs": list(s.needs)} | ({"to": s.to} if s.to else {})
        for s in step.subquestions
    ]
    return {"kind": "ask", "subquestions": asked} | ({"note": step.note} if step.note else {})


def step_from_json(data: Mapping[str, Any]) -> Step:
    """The inverse of `step_to_json`."""
    if data["kind"] == "answer":
        return Answer(str(data["text"]))
    if data["kind"] == "defer":
        return Defer(data["form"])
    if data["kind"] == "chain":
        return Chain(str(data["first"]))
    asked: Sequence[Mapping[str, Any]] = data["subquestions"]
    return Ask(
        tuple(SubQuestion(s["text"], tuple(s["needs"]), s.get("to", "")) for s in asked),
        data.get("note", ""),
    )
