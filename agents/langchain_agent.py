"""One chat model of LangChain: how a request reaches it, and how its reply is read."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from pydantic import ValidationError

from agents.errors import EndpointError, UsageError
from agents.replies import Logprobs
from agents.screen import redact
from agents.types import ChatRequest, Completion, ToolCall, ToolSpec

FIELDS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "max_tokens": (
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "num_predict",
    ),
    "seed": ("seed", "random_seed"),
    "logprobs": ("logprobs",),
    "top_logprobs": ("top_logprobs",),
}
"""What the fields of the common integrations are called; the first that a model has is used."""

FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
}
"""Words for the end of a reply that differ from those of the chat protocol."""

SECRET_NAME = re.compile(r"key|secret|password|credential|authori|(access|auth)_token|header", re.I)


class LangChainAgent:
    """One chat model: the fields that settings go to, and what it has been found not to take."""

    def __init__(self, model: BaseChatModel, keep: Collection[str]) -> None:
        # Streams come without usage from some integrations, and a listener of LangGraph's would
        # switch them on.
        self._model = model.model_copy(update={"disable_streaming": True})
        known = type(model).model_fields
        self.fields = {
            setting: next(name for name in names if name in known)
            for setting, names in FIELDS.items()
            if setting not in keep and any(name in known for name in names)
        }
        if not {"logprobs", "top_logprobs"} <= set(self.fields):
            self.fields = {s: f for s, f in self.fields.items() if "logprobs" not in s}
        called = next(
            (v for n in ("model_name", "model", "model_id") if (v := getattr(model, n, None))), ""
        )
        self.name = f"{type(model).__name__}({called if isinstance(called, str) else ''})"
        params = json.dumps(_public(model.asdict()), sort_keys=True)
        self.digest = f"langchain:{self.name}:{sha256(params.encode()).hexdigest()[:16]}"
        self.takes_schemas = True

    def prepared(self, request: ChatRequest) -> tuple[Runnable[Any, Any], bool]:
        """The model with this request's settings and its tools or schema bound, and whether the
        schema was: then the reply is one for `read_structured`.

        Raises:
            UsageError: it takes no tools, or not this schema.
        """
        sampling = request.sampling
        wanted: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }
        if sampling.top_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        update = {self.fields[s]: value for s, value in wanted.items() if s in self.fields}
        model = self._model.model_copy(update=update) if update else self._model
        if request.tools:
            try:
                return model.bind_tools([_function(tool) for tool in request.tools]), False
            except NotImplementedError as error:
                raise UsageError(
                    f"{self.name} takes no tools; name a model that does, or grant none"
                ) from error
        if request.schema and self.takes_schemas:
            schema = {"title": "reply", "description": "The reply."} | json.loads(request.schema)
            try:
                return cast(Any, model).with_structured_output(schema, include_raw=True), True
            except NotImplementedError:
                self.takes_schemas = False  # The reply is read by a tolerant parser.
            except (TypeError, ValueError, KeyError) as error:
                raise UsageError(f"{self.name} cannot take the schema: {error}") from error
        return model, False


def _function(tool: ToolSpec) -> dict[str, Any]:
    body = {"name": tool.name, "description": tool.description}
    return {"type": "function", "function": body | {"parameters": json.loads(tool.parameters)}}


def _public(value: Any) -> Any:
    """Identifying parameters as JSON types, without what may be a secret or changes by run."""
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {str(k): _public(v) for k, v in items if not SECRET_NAME.search(str(k))}
    if isinstance(value, list | tuple):
        return [_public(v) for v in cast(list[Any], value)]
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return type(value).__name__  # Its text may hold an address in memory, or a secret.


def read_message(reply: Any) -> Completion:
    """Take a message apart. Log-probabilities in another form than OpenAI's, or a list of its
    tokens, count as none."""
    if not isinstance(reply, AIMessage):
        raise EndpointError(f"the model returned {type(reply).__name__}, expected an AIMessage")
    told: dict[str, Any] = reply.response_metadata
    usage = reply.usage_metadata
    finish = str(
        told.get("finish_reason") or told.get("stop_reason") or told.get("done_reason") or "stop"
    ).lower()
    given: Any = told.get("logprobs")
    try:
        form = {"content": cast(Any, given)} if isinstance(given, list) else given
        logprobs = Logprobs.model_validate(form).read()
    except ValidationError:
        logprobs = ()
    calls = [ToolCall(c["id"] or "", c["name"], json.dumps(c["args"])) for c in reply.tool_calls]
    for bad in reply.invalid_tool_calls:
        calls.append(ToolCall(bad["id"] or "", bad["name"] or "", bad["args"] or ""))
    return Completion(
        text=str(reply.text),
        prompt_tokens=usage["input_tokens"] if usage else 0,
        completion_tokens=usage["output_tokens"] if usage else 0,
        finish_reason=FINISHED.get(finish, finish),
        logprobs=logprobs,
        tool_calls=tuple(calls),
    )


def read_structured(reply: dict[str, Any]) -> Completion:
    """A reply under a schema, as its JSON text; as it came where that could not be parsed.

    Many integrations have a model call a tool to speak JSON; that call is the reply, no wish.
    """
    read = read_message(reply["raw"])
    text = read.text
    if reply.get("parsed") is not None:
        text = json.dumps(reply["parsed"])
    elif not text and read.tool_calls:
        text = read.tool_calls[0].arguments
    finish = "stop" if read.finish_reason == "tool_calls" else read.finish_reason
    return replace(read, text=text, tool_calls=(), finish_reason=finish)
