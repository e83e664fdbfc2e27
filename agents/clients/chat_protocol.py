"""The bodies of requests in the OpenAI chat protocol."""

import json
from typing import Any

from reflux.agents.types import ChatRequest, Sampling, ToolSpec


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
    return body | request.extra_fields()


def may_call(request: ChatRequest) -> bool:
    """True where the model has, or had, tools to call."""
    return bool(request.tools) or any(turn[0] == "tool" for turn in request.messages)


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
