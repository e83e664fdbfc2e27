"""What an answer to a chat request says, piece by piece and as a whole.

Answers in the form of the OpenAI protocol: whole, and as chunks of a stream.

What a tree does while it grows is `reasoning_content`, a field that common clients show as the
model's reasoning; its answer is `content`.
"""

import json
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from reflux.agents.clients.streaming import Delta
from reflux.agents.types import Completion, TokenLogprob
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.ask import Asked
from reflux.graphs.traces.events import Event
from reflux.server.chat_request import ChatRequest


@dataclass(frozen=True)
class Reply:
    """The whole answer: its choices, and the tokens that all of it took."""

    choices: Sequence[Completion]
    prompt_tokens: int
    completion_tokens: int
    streamed: bool = False
    """Whether its text was said in pieces already."""


Said = str | tuple[int, Delta] | Reply
"""A thought, a piece of the choice at a position, and last the reply."""
Emit = Callable[[Event], None]


def asked_anew(run: OpenRun, task: str = "") -> Asked:
    """Where a served question comes from: each is a trajectory of its own."""
    return Asked(run.folder.id, -1, f"serve-{uuid.uuid4().hex[:12]}", task, "asked")


def seed_of(request: ChatRequest) -> int:
    """The seed that is given; where replies are drawn and none is, one that is drawn, too."""
    if request.seed is not None:
        return request.seed
    return secrets.randbelow(2**31) if request.temperature else 0


DONE = b"data: [DONE]\n\n"
PING = b": still at work\n\n"


class Usage(BaseModel):
    """Tokens of the whole tree."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    """`chatcmpl-` and the id of the trajectory."""
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class Form:
    """Puts what is said in answer to one request into the protocol's form."""

    def __init__(self, request: ChatRequest, trajectory: str) -> None:
        self._request = request
        self._head = {
            "id": f"chatcmpl-{trajectory}",
            "created": int(time.time()),
            "model": request.model,
        }
        options = request.stream_options
        self._tells_usage = options is not None and options.include_usage

    def whole(self, reply: Reply) -> bytes:
        """The body of an answer that is not streamed."""
        choices = [self._choice(at, said) for at, said in enumerate(reply.choices)]
        body = self._head | {"object": "chat.completion", "choices": choices}
        return _json(body | {"usage": _usage(reply)})

    def begin(self) -> bytes:
        """The chunks that begin a stream, one for each choice."""
        said = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(at, said) for at in range(self._request.n or 1))

    def chunk(self, said: Said | None) -> bytes:
        """What is said, as a chunk; for nothing in a while, a comment."""
        if said is None:
            return PING
        if isinstance(said, str):
            return self._chunk(0, {"reasoning_content": said})
        if isinstance(said, Reply):
            return self._end(said)
        at, delta = said
        logprobs = delta.logprobs if self._request.logprobs else ()
        return self._chunk(at, {"content": delta.text}, logprobs=logprobs)

    def _end(self, reply: Reply) -> bytes:
        """What is left to say of each choice, and the usage where it is asked for."""
        chunks: list[bytes] = []
        for at, said in enumerate(reply.choices):
            if not reply.streamed and said.text:
                chunks.append(self._chunk(at, {"content": said.text}))
            if calls := _calls(said):
                numbered = [{"index": i, **call} for i, call in enumerate(calls)]
                chunks.append(self._chunk(at, {"tool_calls": numbered}))
            chunks.append(self._chunk(at, {}, _reason(said)))
        if self._tells_usage:
            chunks.append(self._event({"choices": [], "usage": _usage(reply)}))
        return b"".join(chunks) + DONE

    def _choice(self, at: int, said: Completion) -> dict[str, Any]:
        calls = _calls(said)
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if calls:
            message |= {"content": said.text or None, "tool_calls": calls}
        logprobs = said.logprobs if self._request.logprobs else ()
        return {
            "index": at,
            "message": message,
            "logprobs": self._logprobs(logprobs) if self._request.logprobs else None,
            "finish_reason": _reason(said),
        }

    def _chunk(
        self,
        at: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> bytes:
        choice: dict[str, Any] = {"index": at, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(logprobs) if logprobs else None
        body: dict[str, Any] = {"choices": [choice]}
        return self._event(body | {"usage": None} if self._tells_usage else body)

    def _event(self, body: dict[str, Any]) -> bytes:
        return as_event(self._head | {"object": "chat.completion.chunk"} | body)

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        most = self._request.top_logprobs or 0
        content = [
            _token(one.token, one.logprob)
            | {"top_logprobs": [_token(token, value) for token, value in one.top[:most]]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}


def as_event(body: dict[str, Any]) -> bytes:
    """JSON as a server-sent event without a name."""
    return b"data: " + _json(body) + b"\n\n"


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


def _calls(said: Completion) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in said.tool_calls
    ]


def _reason(said: Completion) -> str:
    return "tool_calls" if said.tool_calls else said.finish_reason


def _usage(reply: Reply) -> dict[str, int]:
    asked, said = reply.prompt_tokens, reply.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
