"""A request in the form of the OpenAI chat protocol."""

import json
from typing import Any

from agents.types import ChatRequest, ToolSpec


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
