"""A chat client over any chat model of LangChain.

How each part of a request reaches the model:

    messages       all roles, with tool calls and their results
    stop           the `stop` argument, which every chat model has (not together with a schema)
    temperature, max_tokens, seed, top_logprobs
                   the model's field of that meaning (`FIELDS`), set on a copy of the model; a
                   setting for which the model has no field is not passed
    tools          `bind_tools`
    schema         `with_structured_output`; a model without it, or with tools bound, answers in
                   free text

Settings go to fields, not to call arguments, because integrations differ in the arguments that a
call takes (some refuse a `temperature` there), and all read their own fields.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig

from reflux.agents.clients.chat_protocol import function_spec, sampling_fields
from reflux.agents.clients.chat_replies import finish_word, read_logprobs
from reflux.agents.clients.reasoning import apart, content_of, reasoning_of
from reflux.agents.clients.refusals import Refusal, kind_of, remedy_of, status_of
from reflux.agents.clients.retries import RetryingClient, RetryPolicy, worth_retrying
from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Completion, ToolCall

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
"""Field names of the common integrations; the first that a model has is used."""

TOOL_OPTIONS = ("tool_choice", "parallel_tool_calls")
SECRET_NAME = re.compile(r"key|secret|password|credential|authori|(access|auth)_token|header", re.I)


class LangChainAgent:
    """One chat model: the fields that settings go to, and whether it takes schemas."""

    def __init__(self, model: BaseChatModel, keep: Collection[str]) -> None:
        # Some integrations stream without usage, and a listener of LangGraph's would turn
        # streaming on.
        self._model = model.model_copy(update={"disable_streaming": True})
        known = type(model).model_fields
        self.fields = {
            setting: next(name for name in names if name in known)
            for setting, names in FIELDS.items()
            if setting not in keep and any(name in known for name in names)
        }
        if not {"logprobs", "top_logprobs"} <= set(self.fields):
            self.fields = {s: f for s, f in self.fields.items() if "logprobs" not in s}
        names = (getattr(model, field, None) for field in ("model_name", "model", "model_id"))
        name = next(filter(None, names), "")
        self.name = f"{type(model).__name__}({name if isinstance(name, str) else ''})"
        params = json.dumps(_public(model.asdict()), sort_keys=True)
        self.digest = f"langchain:{self.name}:{sha256(params.encode()).hexdigest()[:16]}"
        self.takes_schemas = True

    def prepared(self, request: ChatRequest) -> tuple[Runnable[Any, Any], bool]:
        """The model with this request's settings and its tools or schema bound, and whether the
        schema is bound, so that `read_structured` must read the reply.

        Raises:
            UsageError: the model takes no tools, or not this schema.
        """
        settings = sampling_fields(request.sampling)
        update = {self.fields[s]: value for s, value in settings.items() if s in self.fields}
        model = self._model.model_copy(update=update) if update else self._model
        extra = request.extra_fields()
        options = {name: extra.pop(name) for name in TOOL_OPTIONS if name in extra}
        if beyond := sorted(extra.keys() - {"tools", "response_format"}):
            raise UsageError(f"{self.name} takes no {', '.join(beyond)}: leave it out")
        if request.tools:
            specs = extra.get("tools") or [function_spec(tool) for tool in request.tools]
            try:
                return model.bind_tools(specs, **options), False
            except NotImplementedError as error:
                raise UsageError(
                    f"{self.name} takes no tools; name a model that does, or grant none"
                ) from error
        if request.schema and self.takes_schemas:
            schema = {"title": "reply", "description": "The reply."} | json.loads(request.schema)
            try:
                return cast(Any, model).with_structured_output(schema, include_raw=True), True
            except NotImplementedError:
                self.takes_schemas = False  # The parser of replies tolerates free text.
            except (TypeError, ValueError, KeyError) as error:
                raise UsageError(f"{self.name} cannot take the schema: {error}") from error
        return model, False


def _public(value: Any) -> Any:
    """Identifying parameters as JSON types, without secrets and what changes between runs."""
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


FINISH_NAMES = ("finish_reason", "stop_reason", "done_reason", "stopReason")


def finish_of(metadata: Mapping[str, Any]) -> str:
    """Why a reply ended, in the words of the chat protocol, by whatever name the metadata tells it;
    `stop` where they do not."""
    # OpenAI's Responses API has only this, of a reply that it cut.
    details = metadata.get("incomplete_details")
    reasons = [details.get("reason") if isinstance(details, Mapping) else None]
    reasons += [metadata.get(name) for name in FINISH_NAMES]
    return finish_word(str(next(filter(None, reasons), "stop")))


def read_message(reply: Any) -> Completion:
    """Read a message. Log-probabilities in any form but OpenAI's, or a list of its tokens, are
    ignored."""
    if not isinstance(reply, AIMessage):
        raise EndpointError(f"the model returned {type(reply).__name__}, expected an AIMessage")
    metadata: dict[str, Any] = reply.response_metadata
    usage = reply.usage_metadata
    tokens: Any = metadata.get("logprobs")
    logprobs = read_logprobs({"content": tokens} if isinstance(tokens, list) else tokens)
    calls = [ToolCall(c["id"] or "", c["name"], json.dumps(c["args"])) for c in reply.tool_calls]
    for bad in reply.invalid_tool_calls:
        calls.append(ToolCall(bad["id"] or "", bad["name"] or "", bad["args"] or ""))
    content = cast(Any, reply.content)
    thoughts = content_of(content)[0] if isinstance(content, list) else ""
    read = Completion(
        text=str(reply.text),
        prompt_tokens=usage["input_tokens"] if usage else 0,
        completion_tokens=usage["output_tokens"] if usage else 0,
        finish_reason=finish_of(metadata),
        logprobs=logprobs,
        tool_calls=tuple(calls),
        reasoning=reasoning_of(cast(dict[str, Any], reply.additional_kwargs)) or thoughts,
    )
    return apart(read)


def read_structured(reply: dict[str, Any]) -> Completion:
    """A reply under a schema, as its JSON text; unchanged if it could not be parsed.

    Many integrations make a model call a tool in order to return JSON. That call is the reply, not
    a tool request.
    """
    read = read_message(reply["raw"])
    text = read.text
    if reply.get("parsed") is not None:
        text = json.dumps(reply["parsed"])
    elif not text and read.tool_calls:
        text = read.tool_calls[0].arguments
    finish = "stop" if read.finish_reason == "tool_calls" else read.finish_reason
    return replace(read, text=text, tool_calls=(), finish_reason=finish)


# Keeps the tokens of this call out of LangGraph's message stream, because a copy's reply is not the
# answer. Callbacks stay, so that tracers see the call.
UNSTREAMED: RunnableConfig = {"tags": ["nostream"]}


class LangChainClient(RetryingClient):
    """Completes chats through a chat model of LangChain, with our own retries.

    The model's own retries (`max_retries` in many integrations) are not recorded; set them to 0.
    """

    def __init__(
        self,
        model: BaseChatModel,
        others: Mapping[str, BaseChatModel] | None = None,
        *,
        keep: Collection[str] = (),
        send_empty_system: bool = True,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 0.5,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            model: answers requests to every model name that `others` does not hold.
            keep: settings that stay as the models have them, for example `temperature` if an
                endpoint refuses it.
            send_empty_system: False for an endpoint that refuses a system message without text.
            concurrency: maximum concurrent requests.
            timeout: seconds for one try.
            retries: maximum tries after the first.
            backoff: see `RetryPolicy`.

        Raises:
            UsageError: `keep` names an unknown setting.
        """
        if unknown := set(keep) - set(FIELDS):
            raise UsageError(f"keep names {sorted(unknown)}; settings are {sorted(FIELDS)}")
        super().__init__(concurrency, timeout, RetryPolicy(retries, backoff, sleep))
        self._agent = LangChainAgent(model, keep)
        self._others = {name: LangChainAgent(other, keep) for name, other in (others or {}).items()}
        self._send_empty_system = send_empty_system

    async def _send(self, request: ChatRequest) -> Completion:
        stops = {"stop": list(request.sampling.stop)} if request.sampling.stop else {}
        model, structured = self._agent_of(request.model).prepared(request)
        async with asyncio.timeout(self._timeout):
            reply: Any = await model.ainvoke(self._messages(request), UNSTREAMED, **stops)
        return read_structured(reply) if structured else read_message(reply)

    def _messages(self, request: ChatRequest) -> list[BaseMessage]:
        payload = request.payload()
        if not self._send_empty_system:
            payload = [m for m in payload if m["role"] != "system" or m["content"]]
        try:
            return convert_to_messages(payload)
        except (ValueError, NotImplementedError, KeyError) as error:
            raise UsageError(f"messages that LangChain cannot express: {error}") from error

    def _agent_of(self, model: str) -> LangChainAgent:
        return self._others.get(model, self._agent)

    def _address(self, model: str) -> str:
        return self._agent_of(model).name

    def _one_line(self, error: Exception) -> str:
        late = type(error) is TimeoutError and not error.args
        return f"no reply in {self._timeout:g} s" if late else super()._one_line(error)

    def _too_long(self, error: Exception) -> bool:
        return kind_of(status_of(error), str(error)) == "too_long"

    def _adapts(self, error: Exception, request: ChatRequest) -> bool:
        agent = self._agent_of(request.model)
        if not (request.schema and agent.takes_schemas and status_of(error) in (400, 422)):
            return False
        agent.takes_schemas = False  # The parser of replies takes free text.
        return True

    def _remedy(self, error: Exception, model: str) -> str:
        status = status_of(error)
        if status in (401, 403):
            return "check the key that the model was made with"
        if status == 404:
            return "check the model's name and address"
        refusal = Refusal.of(error)
        if refusal.kind == "quota" or self._too_long(error):
            kind = "quota" if refusal.kind == "quota" else "too_long"
            return remedy_of(replace(refusal, kind=kind), "the model", "")
        if worth_retrying(error):
            return "is its endpoint up?"
        return "see the integration's documentation"

    async def model_digest(self, model: str) -> str:
        """Hash of the model's class, name and identifying parameters, without secrets, because
        LangChain does not say what weights a model has."""
        return self._agent_of(model).digest
