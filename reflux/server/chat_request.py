"""What a chat completion may ask for, in the form of the OpenAI protocol.

A field that is not here is refused by name: nothing that a client asks for is ignored in silence.
Fields that can only be left as they are (`top_p`, the penalties) take their neutral value alone.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from reflux.agents.types import ToolSpec, Turn

MOST_CHOICES = 16
TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Asked(BaseModel):
    """Part of a request: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Asked):
    """Content in parts: text is the only kind that is taken."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class CalledFunction(Asked):
    """The function that an assistant called."""

    name: str
    arguments: str


class ToolCall(Asked):
    """A call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Asked):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Asked):
    """What a user said."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Asked):
    """What the model said before; clients send it back as they got it."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """Of an earlier answer; a model is never shown it again."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Asked):
    """What a tool replied."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)  # Python's reader takes NaN, which is no JSON.
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]


class Function(Asked):
    """A function that the model may call."""

    name: str = Field(pattern=TOOL_NAME)
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    strict: Literal[False] | None = None


class Tool(Asked):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    def spec(self) -> ToolSpec:
        """The tool as a request holds it."""
        said = self.function
        return ToolSpec(said.name, said.description, json.dumps(said.parameters))


class Schema(Asked):
    """A JSON schema that the reply has to follow."""

    name: str
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class FreeText(Asked):
    """A reply of any form."""

    type: Literal["text"]


class AnyObject(Asked):
    """A reply that is a JSON object."""

    type: Literal["json_object"]


class BySchema(Asked):
    """A reply that follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(Asked):
    """What a stream holds beside the reply."""

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]


class ChatRequest(Asked):
    """A request for a chat completion."""

    model: str = Field(description="One of `/v1/models`.")
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 where it is left out: the likeliest reply."
    )
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Left out, it is drawn where temperature is set."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    response_format: (
        Annotated[FreeText | AnyObject | BySchema, Field(discriminator="type")] | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["auto", "none"] | None = None
    top_p: float | None = Field(default=None, ge=1, le=1)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    user: str | None = Field(default=None, description="Kept on the record; changes no answer.")

    @field_validator("messages")
    @classmethod
    def _whole_text(cls, messages: list[Message]) -> list[Message]:
        for message in messages:
            if any("\ud800" <= char <= "\udfff" for char in text_of(message.content)):
                raise ValueError("a message is no Unicode text: it holds half a surrogate pair")
        return messages

    @model_validator(mode="after")
    def _belonging(self) -> "ChatRequest":
        for name, needed in (
            ("top_logprobs", "logprobs"),
            ("stream_options", "stream"),
            ("tool_choice", "tools"),
        ):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise ValueError(f"{name} says something only beside {needed}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most_tokens(self) -> int | None:
        """The limit of the reply, whichever way it is given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def schema_text(self) -> str:
        """JSON schema of the reply, as text; empty for free text."""
        if isinstance(self.response_format, BySchema):
            return json.dumps(self.response_format.json_schema.schema_)
        return '{"type": "object"}' if isinstance(self.response_format, AnyObject) else ""


def text_of(content: Content | None) -> str:
    """The text of a message's content."""
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def turn_of(message: Message) -> Turn:
    """A message as a model is sent it."""
    text = text_of(message.content)
    role = "system" if message.role == "developer" else message.role
    more: dict[str, Any] = {}
    if isinstance(message, ToolMessage):
        more["tool_call_id"] = message.tool_call_id
    elif message.name:
        more["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls:
        more["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return (role, text, json.dumps(more)) if more else (role, text)
