"""Chat completion requests in the form of the OpenAI protocol.

No field is ignored silently. A field that asks for nothing (null, false, empty, or its default) is
accepted whatever its name; `PASSED_ON` and `EXTENSIONS` go to the model's endpoint as they are; any
other field is refused by its name, as OpenAI does (vLLM ignores it).
"""

import json
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from reflux.agents.prompts import is_unicode
from reflux.agents.types import Turn

PASSED_ON: dict[str, Any] = {
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "reasoning_effort": None,
    "verbosity": None,
}
"""Fields that a single model's endpoint may honor, each with the value that asks for nothing."""
EXTENSIONS = frozenset({
    "chat_template_kwargs", "enable_thinking", "include_reasoning", "min_p", "min_tokens",
    "reasoning", "repetition_penalty", "think", "thinking", "top_k",
})  # fmt: skip
"""Fields of vLLM, llama.cpp and others beyond the protocol, passed on as well."""
HINTS = ("reasoning_effort", "verbosity")
"""Fields that change no answer's meaning: a tree accepts them."""
INSTEAD = {
    "functions": "use tools",
    "audio": "replies are text",
    "images": "only text can be read",
}
"""What to say about fields that are not supported, beside their name."""
DROPPED_KEYS = frozenset({
    "id", "timestamp", "status", "refusal", "annotations", "phase", "cache_control", "parsed",
    "provider_specific_fields", "reasoning", "reasoning_content", "reasoning_details",
    "reasoning_opaque", "thinking_blocks",
})  # fmt: skip
"""Keys of earlier messages that no model sees: reasoning, and what clients keep for themselves."""
TEXT_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("thinking", "reasoning", "redacted_thinking"), ""),
    "refusal": "refusal",
}
"""Types of content parts, each with the key of its text; empty for parts that no model sees."""
FUNCTION_NAME = r"^[a-zA-Z0-9_.-]{1,128}$"


def refuse(param: str, problem: str, code: str = "invalid_value") -> NoReturn:
    """Refuse a field, by its name relative to the model that is validated."""
    raise PydanticCustomError(cast(Any, code), "{problem}", {"problem": problem, "param": param})


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OpenModel(BaseModel):
    """A body in which null means left out, and further fields may ask for nothing."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": False},
    )
    accepted: ClassVar[frozenset[str]] = frozenset()
    """Names of further fields that may ask for something."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict) or None not in body.values():
            return body
        return {key: value for key, value in body.items() if value is not None}

    @model_validator(mode="after")
    def _check_extra(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value and name not in self.accepted:
                instead = f" ({INSTEAD[name]})" if name in INSTEAD else ""
                problem = f"is not supported{instead}: leave it out"
                refuse(name[:80], problem, "unknown_parameter")
        return self


def read_content(value: Any) -> str:
    """The text of a content: text, or a list of parts."""
    if isinstance(value, list):
        if not value:
            refuse("", "is empty: send text", "empty_array")
        value = "".join(_part_text(index, part) for index, part in enumerate(value))
    if not isinstance(value, str):
        refuse("", "must be text, or a list of text parts", "invalid_type")
    if not is_unicode(value):
        refuse("", "is not Unicode: it holds half of a surrogate pair")
    return value


def _part_text(index: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not (isinstance(kind, str) and kind in TEXT_PARTS):
        shown = "without a type" if kind is None else f"of type {ascii(kind)[:80]}"
        problem = f"is {shown}, and only text can be read here: send text parts"
        refuse(f"[{index}]", problem, "unsupported_content")
    key = TEXT_PARTS[kind]
    text = part.get(key) if key else ""
    if not isinstance(text, str):
        refuse(f"[{index}].{key}", "must be text", "invalid_type")
    return text


PART = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
PARTS = {"type": "array", "minItems": 1, "items": {**PART, "required": ["type", "text"]}}
TEXT = {"anyOf": [{"type": "string"}, PARTS]}
Content = Annotated[str, PlainValidator(read_content), WithJsonSchema(TEXT)]


def shape(**needed: Any) -> dict[str, Any]:
    common = {"type": "object", "additionalProperties": False}
    return {**common, "properties": needed, "required": list(needed)}


class CalledFunction(OpenModel, extra="ignore"):  # Clients keep more, as `parsed_arguments`.
    name: str
    arguments: Annotated[
        str, BeforeValidator(lambda value: json.dumps(value) if isinstance(value, dict) else value)
    ]


class ToolCall(OpenModel, extra="ignore"):  # Such as `index`, of a stream.
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(OpenModel):
    accepted = DROPPED_KEYS
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @model_validator(mode="after")
    def _check_role(self) -> "Message":
        if "content" not in self.model_fields_set and self.role != "assistant":
            refuse("content", "is missing: send text")
        if self.role == "tool" and not self.tool_call_id:
            refuse("tool_call_id", "is missing: name the call that this is the result of")
        if self.tool_calls and self.role != "assistant":
            refuse("tool_calls", "belong to an assistant's message")
        return self

    def turn(self) -> Turn:
        """The message as models are sent it."""
        role = "system" if self.role == "developer" else self.role
        extra = self.model_dump(include={"name", "tool_calls", "tool_call_id"})
        extra = {key: value for key, value in extra.items() if value}
        return (role, self.content, json.dumps(extra)) if extra else (role, self.content)


ID = {"type": "string", "minLength": 1}
SHAPES = [
    shape(role={"enum": ["system", "developer", "user", "assistant"]}, content=TEXT),
    shape(role={"const": "tool"}, content=TEXT, tool_call_id=ID),
]
Messages = Annotated[
    list[Message],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"anyOf": SHAPES}}),
]


class Function(OpenModel):
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(OpenModel):
    accepted = frozenset({"cache_control"})
    type: Literal["function"]
    function: Function


class Schema(OpenModel):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ReplyForm(OpenModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ReplyForm":
        if self.type == "json_schema" and self.json_schema is None:
            refuse("json_schema", "is missing", "missing_required_parameter")
        return self


class StreamOptions(OpenModel, extra="ignore"):  # Others shape the stream, not the answer.
    include_usage: bool = False
    include_obfuscation: bool = False


def read_tool_choice(value: Any) -> Any:
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if isinstance(name, str) and value.get("type") == "function":
        return {"type": "function", "function": {"name": name}}
    if value not in ("auto", "none", "required"):
        refuse("", "must be auto, none, required, or name one function")
    return value


ToolChoice = Annotated[
    Any,
    PlainValidator(read_tool_choice),
    WithJsonSchema({"enum": ["auto", "none", "required"]}),
]
Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=8),
]


class RequestFields(OpenModel):
    """Fields that chat completions and responses share."""

    model: str = Field(description="One of `/v1/models`.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Defaults to 0: greedy decoding."
    )
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = Field(default=None, description="Recorded; does not affect the answer.")
    metadata: dict[str, Any] | None = Field(default=None, description="Recorded, like `user`.")
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(RequestFields):
    accepted = EXTENSIONS

    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**63,
        description="Random if left out and temperature is over 0.",
    )
    stop: Stops = ()
    response_format: ReplyForm | None = None
    logprobs: bool = False
    n: int = Field(default=1, ge=1, le=16)
    tools: tuple[Tool, ...] = Field(default=(), max_length=128)
    tool_choice: ToolChoice = "auto"
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: tuple[Literal["text"], ...] = ()
    store: bool = True
    prediction: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_dependencies(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "needs logprobs: true")
        names = [tool.function.name for tool in self.tools]
        if not names and self.tool_choice not in ("auto", "none"):
            refuse("tool_choice", "needs tools to choose from")
        if isinstance(self.tool_choice, dict):
            chosen = self.tool_choice["function"]["name"]
            if chosen not in names:
                refuse("tool_choice", f"names {chosen[:80]!r}; tools holds {', '.join(names)}")
        try:
            if (fields := self.extra()) or self.tools:
                json.dumps([fields, *(tool.model_dump() for tool in self.tools)], allow_nan=False)
        except ValueError:  # Python's JSON parser accepts NaN.
            refuse("", "NaN and Infinity are no JSON: send numbers")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(filter(None, self.stop))

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of the reply, under either name of the field."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        return () if self.tool_choice == "none" else self.tools

    @property
    def schema_text(self) -> str:
        """JSON schema of the reply as text; empty for free text."""
        form = self.response_format
        if form is None or form.type == "text":
            return ""
        return json.dumps(form.json_schema.schema_ if form.json_schema else {"type": "object"})

    def passed_on(self) -> dict[str, Any]:
        """The fields that are passed on only because they ask for something."""
        fields = {name: getattr(self, name) for name in PASSED_ON}
        fields = {k: v for k, v in fields.items() if v not in (None, PASSED_ON[k])}
        return fields | (self.model_extra or {})

    def extra(self) -> dict[str, Any]:
        """Fields of the body for the model's endpoint, beyond those of a model request."""
        extra = {k: v for k, v in self.passed_on().items() if v or k in EXTENSIONS}
        if tools := self.callable_tools:
            extra["tools"] = [tool.model_dump(exclude_unset=True) for tool in tools]
            if self.tool_choice != "auto":
                extra["tool_choice"] = self.tool_choice
            if not self.parallel_tool_calls:
                extra["parallel_tool_calls"] = False
        if self.schema_text and self.response_format is not None:
            form = self.response_format
            extra["response_format"] = form.model_dump(by_alias=True, exclude_unset=True)
        return extra
