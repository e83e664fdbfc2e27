"""A request in the form of the OpenAI chat protocol.

Reads what an endpoint of the OpenAI chat protocol replies, and holds it to what is promised.
"""

import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, Field, ValidationError

from reflux.agents.types import ChatRequest, Completion, TokenLogprob, ToolCall, ToolSpec

if TYPE_CHECKING:
    import openai


def request_body(request: ChatRequest, schema: str) -> dict[str, Any]:
    """The body to post; `schema` is the request's own, or empty for an endpoint without them."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": request.payload(),
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if request.tools:
        body["tools"] = [_function(tool) for tool in request.tools]
    if schema:
        form = {"name": "reply", "schema": json.loads(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _function(tool: ToolSpec) -> dict[str, Any]:
    body = {"name": tool.name, "description": tool.description}
    return {"type": "function", "function": body | {"parameters": json.loads(tool.parameters)}}


class Alternative(BaseModel):
    """A token that might have stood there."""

    token: str
    logprob: float


class Token(Alternative):
    """A token of the reply, with the runners-up."""

    top_logprobs: list[Alternative] | None = None


class Logprobs(BaseModel):
    """Log-probabilities in OpenAI's form."""

    content: list[Token] | None = None

    def read(self) -> tuple[TokenLogprob, ...]:
        """One a token, in order."""
        return tuple(
            TokenLogprob(
                t.token, t.logprob, tuple((a.token, a.logprob) for a in t.top_logprobs or ())
            )
            for t in self.content or ()
        )


class _Function(BaseModel):
    name: str
    arguments: str = "{}"


class _ToolCall(BaseModel):
    id: str = ""
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(BaseModel):
    """Tokens, as far as the endpoint tells."""

    prompt_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    completion_tokens: int | None = Field(default=None, ge=0, lt=2**31)


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None


def read_reply(body: bytes, seconds: float) -> Completion:
    """Take the body of a reply apart.

    Raises:
        openai.APIError: it lacks what the protocol promises.
    """
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise garbled(
            f"the reply is no chat completion ({where or 'body'}: {first['msg']}); it begins "
            f"{body[:120].decode(errors='replace')!r}"
        ) from error
    choice, usage = reply.choices[0], reply.usage or Usage()
    return Completion(
        text=choice.message.content or "",
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        seconds=seconds,
        finish_reason=choice.finish_reason or "stop",
        logprobs=choice.logprobs.read() if choice.logprobs else (),
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or ()
        ),
    )


def garbled(what: str) -> "openai.APIError":
    """The error of a reply that the protocol does not know; it is worth another try."""
    import openai  # A third of a second, which whoever gets sound replies is spared.

    return openai.APIError(what, cast(Any, None), body=None)
