"""Chat completion requests in the form of the OpenAI protocol.

Unknown fields are errors, so the server never ignores a field silently. `top_p` and the penalties
accept only their neutral values.
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from reflux.agents.prompts import is_unicode
from reflux.agents.types import ToolSpec, Turn


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(ApiModel):
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


class TextMessage(ApiModel):
    role: Literal["system", "developer", "user"]
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


Message = Annotated[TextMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def _check_finite(value: dict[str, Any]) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)  # Python's JSON parser accepts NaN.
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_finite)]


class Function(ApiModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    strict: Literal[False] | None = None


class Tool(ApiModel):
    type: Literal["function"]
    function: Function

    def spec(self) -> ToolSpec:
        function = self.function
        return ToolSpec(function.name, function.description, json.dumps(function.parameters))


class Schema(ApiModel):
    name: str
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class AnyFormat(ApiModel):
    type: Literal["text", "json_object"]


class BySchema(ApiModel):
    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(ApiModel):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]


class ChatRequest(ApiModel):
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
    response_format: Annotated[AnyFormat | BySchema, Field(discriminator="type")] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=16)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["auto", "none"] | None = None
    top_p: float | None = Field(default=None, ge=1, le=1)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    user: str | None = Field(default=None, description="Stored; does not affect the answer.")

    @field_validator("messages")
    @classmethod
    def _check_unicode(cls, messages: list[Message]) -> list[Message]:
        if not all(is_unicode(text_of(message.content)) for message in messages):
            raise ValueError("the content is not Unicode: it holds half of a surrogate pair")
        return messages

    @model_validator(mode="after")
    def _check_dependencies(self) -> "ChatRequest":
        needs = {"top_logprobs": "logprobs", "stream_options": "stream", "tool_choice": "tools"}
        for name, needed in needs.items():
            if getattr(self, name) is not None and not getattr(self, needed):
                raise ValueError(f"{name} needs {needed}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of the reply, under either name of the field."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def schema_text(self) -> str:
        """JSON schema of the reply as text; empty for free text."""
        match self.response_format:
            case BySchema(json_schema=schema):
                return json.dumps(schema.schema_)
            case AnyFormat(type="json_object"):
                return '{"type": "object"}'
            case _:
                return ""

    def draw_seed(self) -> int:
        """The seed; random if none is given and the temperature is over 0."""
        if self.seed is not None:
            return self.seed
        return secrets.randbelow(2**31) if self.temperature else 0


def text_of(content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def turn_of(message: Message) -> Turn:
    text = text_of(message.content)
    role = "system" if message.role == "developer" else message.role
    dumped = message.model_dump(include={"tool_call_id", "name", "tool_calls"})
    extra = {key: value for key, value in dumped.items() if value or key == "tool_call_id"}
    return (role, text, json.dumps(extra)) if extra else (role, text)
