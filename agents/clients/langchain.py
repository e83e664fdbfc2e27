"""One chat model of LangChain: how a request reaches it, and how its reply is read.

Any chat model of LangChain as X: a chat client over a `BaseChatModel`.

What of a request reaches the model, and how:

    messages       all roles, with tool calls and their results
    stop           the `stop` argument, which every chat model has (not together with a schema)
    temperature, max_tokens, seed, top_logprobs
                   the model's field of that meaning (`FIELDS`), set on a copy of it; a setting
                   for which it has no field cannot be passed: `not_passed` names those
    tools          `bind_tools`
    schema         `with_structured_output`; a model without it, or with tools bound, answers in
                   free text

Fields and not call arguments, because integrations differ in the arguments that a call takes (some
refuse a `temperature` there) and all read their own fields.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ValidationError

from reflux.agents.clients.chat_protocol import Logprobs
from reflux.agents.errors import RETRIED_STATUS, EndpointError, MissingError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Completion, ToolCall, ToolSpec

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


PASSING = re.compile(r"Timeout|Connect|Transport|RateLimit|Overloaded|Unavailable")
"""Names of exceptions that are worth another try; packages share no class for them."""

# LangGraph's sign that tokens of this call do not belong in its stream of messages: what a copy
# says is not the answer. The callbacks stay, so that tracers see the call.
UNSTREAMED: RunnableConfig = {"tags": ["nostream"]}


class LangChainClient:
    """Completes chats through a chat model of LangChain, with retries of our own.

    What the model's own retries hide (`max_retries` in many integrations) is not on the record;
    set them to 0.
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
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        """
        Args:
            model: answers requests to every model name that `others` does not hold.
            keep: settings that stay as the models have them, for example `temperature` where an
                endpoint refuses it.
            send_empty_system: False where an endpoint refuses a system message without text.
            concurrency: requests under way at once.
            timeout: seconds for one try.
            retries: tries after the first.
            backoff: seconds before the first retry; doubled each time, with jitter, up to 30.

        Raises:
            UsageError: `keep` names something that is no setting.
        """
        if unknown := set(keep) - set(FIELDS):
            raise UsageError(f"keep names {sorted(unknown)}; settings are {sorted(FIELDS)}")
        self._agent = LangChainAgent(model, keep)
        self._others = {name: LangChainAgent(other, keep) for name, other in (others or {}).items()}
        self._send_empty_system = send_empty_system
        self._gate = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._sleep = sleep

    @property
    def not_passed(self) -> tuple[str, ...]:
        """Settings of a request that do not reach the model: it has no field for them."""
        return tuple(name for name in FIELDS if name not in self._agent.fields)

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the last try failed, or the request was refused.
            UsageError: the model takes no tools or not this schema, or the request is no Unicode
                text.
        """
        agent = self._others.get(request.model, self._agent)
        messages = self._messages(request)
        stops = {"stop": list(request.sampling.stop)} if request.sampling.stop else {}
        failures: list[str] = []
        while True:
            async with self._gate:
                prepared, structured = agent.prepared(request)
                begun = time.perf_counter()
                try:
                    async with asyncio.timeout(self._timeout):
                        reply: Any = await prepared.ainvoke(messages, UNSTREAMED, **stops)
                    seconds = time.perf_counter() - begun
                    read = read_structured(reply) if structured else read_message(reply)
                    return replace(read, seconds=seconds, retries=tuple(failures))
                except (UsageError, MissingError):
                    raise
                except UnicodeEncodeError as error:
                    raise UsageError(f"a request must be Unicode text: {error}") from error
                except Exception as error:  # Each integration has errors of its own.
                    failures.append(self._one_line(error))
                    if structured and _status(error) in (400, 422):
                        agent.takes_schemas = False  # The reply is read by a tolerant parser.
                        continue
                    if not worth_retrying(error) or len(failures) > self._retries:
                        raise EndpointError(_explain(agent.name, error, failures)) from error
                    pause = _pause(error, self._backoff * 2 ** (len(failures) - 1))
            await self._sleep(pause)

    def _messages(self, request: ChatRequest) -> list[BaseMessage]:
        payload = request.payload()
        if not self._send_empty_system:
            payload = [m for m in payload if m["role"] != "system" or m["content"]]
        try:
            return convert_to_messages(payload)
        except (ValueError, NotImplementedError, KeyError) as error:
            raise UsageError(f"messages that LangChain cannot express: {error}") from error

    def _one_line(self, error: Exception) -> str:
        if type(error) is TimeoutError and not error.args:
            return f"no reply in {self._timeout:g} s"
        status = _status(error)
        text = " ".join(redact(str(error)).split())
        return f"{f'{status} ' if status else ''}{type(error).__name__}: {text[:300]}"

    async def model_digest(self, model: str) -> str:
        """The model's class, name and identifying parameters, hashed, without secrets: LangChain
        does not tell what weights there are."""
        return self._others.get(model, self._agent).digest


def _status(error: Exception) -> int | None:
    """The HTTP status that an exception carries, itself or on its response."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "http_status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


def worth_retrying(error: Exception) -> bool:
    """True for an error of any package that may pass: busy, down, or too slow."""
    if (status := _status(error)) is not None:
        return status >= 500 or status in RETRIED_STATUS
    return isinstance(error, TimeoutError | ConnectionError) or any(
        PASSING.search(kind.__name__) for kind in type(error).__mro__
    )


def _pause(error: Exception, backoff: float) -> float:
    """Seconds to wait: what the endpoint asks for, otherwise back-off with jitter."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if isinstance(headers, Mapping):
        asked = str(cast(Mapping[str, object], headers).get("retry-after", ""))
        if re.fullmatch(r"\d{1,9}(\.\d+)?", asked, re.ASCII):
            return float(asked)
    return min(30.0, backoff) * random.uniform(0.75, 1.25)


def _explain(name: str, error: Exception, failures: list[str]) -> str:
    tries = f"after {len(failures)} tries" if len(failures) > 1 else "at once"
    status = _status(error)
    if status in (401, 403):
        remedy = "check the key that the model was made with"
    elif status == 404:
        remedy = "check the model's name and address"
    elif worth_retrying(error):
        remedy = "is its endpoint up?"
    else:
        remedy = "see the integration's documentation"
    return f"{name} failed {tries}: {failures[-1]}; {remedy}"
