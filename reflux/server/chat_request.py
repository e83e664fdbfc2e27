"""Chat completion requests in the form of the OpenAI protocol.

Unknown fields are errors, so the server never ignores a field silently. `top_p` and the penalties
accept only their neutral values.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from reflux.agents.types import ToolSpec, Turn

MAX_CHOICES = 16
TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class ApiModel(BaseModel):
    """Base of all request bodies; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(ApiModel):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class CalledFunction(ApiModel):
    name: str
    arguments: str


class ToolCall(ApiModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(ApiModel):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(ApiModel):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(ApiModel):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """Accepted and dropped: models never see earlier reasoning."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(ApiModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def _check_finite(value: dict[str, Any]) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)  # Python's JSON parser accepts NaN.
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_finite)]


class Function(ApiModel):
    name: str = Field(pattern=TOOL_NAME)
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    strict: Literal[False] | None = None


class Tool(ApiModel):
    type: Literal["function"]
    function: Function

    def spec(self) -> ToolSpec:
        """Return the tool as a model request holds it."""
        function = self.function
        return ToolSpec(function.name, function.description, json.dumps(function.parameters))


class Schema(ApiModel):
    name: str
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class FreeText(ApiModel):
    type: Literal["text"]


class AnyObject(ApiModel):
    type: Literal["json_object"]


class BySchema(ApiModel):
    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(ApiModel):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]


class ChatRequest(ApiModel):
    """A request for a chat completion."""

    model: str = Field(description="One of `/v1/models`.")
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Defaults to 0: greedy decoding."
    )
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Random if left out and temperature is over 0."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    response_format: (
        Annotated[FreeText | AnyObject | BySchema, Field(discriminator="type")] | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["auto", "none"] | None = None
    top_p: float | None = Field(default=None, ge=1, le=1)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    user: str | None = Field(default=None, description="Stored; does not affect the answer.")

    @field_validator("messages")
    @classmethod
    def _check_unicode(cls, messages: list[Message]) -> list[Message]:
        for message in messages:
            if any("\ud800" <= char <= "\udfff" for char in text_of(message.content)):
                raise ValueError("the content is not Unicode: it holds half of a surrogate pair")
        return messages

    @model_validator(mode="after")
    def _check_dependencies(self) -> "ChatRequest":
        for name, needed in (
            ("top_logprobs", "logprobs"),
            ("stream_options", "stream"),
            ("tool_choice", "tools"),
        ):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise ValueError(f"{name} needs {needed}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of the reply, under either name of the field."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def schema_text(self) -> str:
        """JSON schema of the reply as text; empty for free text."""
        if isinstance(self.response_format, BySchema):
            return json.dumps(self.response_format.json_schema.schema_)
        return '{"type": "object"}' if isinstance(self.response_format, AnyObject) else ""


def text_of(content: Content | None) -> str:
    """Return the text of a message's content."""
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def turn_of(message: Message) -> Turn:
    """Convert a message to a model request's turn."""
    text = text_of(message.content)
    role = "system" if message.role == "developer" else message.role
    extra: dict[str, Any] = {}
    if isinstance(message, ToolMessage):
        extra["tool_call_id"] = message.tool_call_id
    elif message.name:
        extra["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls:
        extra["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return (role, text, json.dumps(extra)) if extra else (role, text)
