"""Requests in the form of the Responses API, and the same as chat requests."""

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from reflux.server.chat_request import (
    DROPPED_KEYS,
    EXTENSIONS,
    FUNCTION_NAME,
    ID,
    SHAPES,
    TEXT,
    ChatRequest,
    Content,
    Message,
    OpenModel,
    RequestFields,
    read_tool_choice,
    refuse,
    shape,
)

CHAT_FIELDS = frozenset({"seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"})
"""Fields of chat completions that are taken here, too."""


class InputItem(OpenModel):
    """One item of a conversation."""

    accepted = DROPPED_KEYS | {"encrypted_content", "summary", "logprobs", "namespace", "caller"}

    type: Literal[
        "message", "function_call", "function_call_output", "reasoning", "item_reference"
    ] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = ""
    id: str = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: Content = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_reasoning(cls, body: Any) -> Any:
        is_reasoning = isinstance(body, dict) and body.get("type") == "reasoning"
        return {"type": "reasoning"} if is_reasoning else body

    @model_validator(mode="after")
    def _check_complete(self) -> "InputItem":
        needs = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
            "item_reference": ("id",),
        }
        for name in needs.get(self.type, ()):
            if name not in self.model_fields_set:
                refuse(name, "is missing", "missing_required_parameter")
        for name in ("call_id", "name"):
            if name in needs.get(self.type, ()) and not getattr(self, name):
                refuse(name, "is empty")
        return self


ITEM_SHAPES = [
    SHAPES[0],
    shape(type={"const": "function_call"}, call_id=ID, name=ID, arguments={"type": "string"}),
    shape(type={"const": "function_call_output"}, call_id=ID, output=TEXT),
]
ITEMS = {"type": "array", "minItems": 1, "items": {"anyOf": ITEM_SHAPES}}


class FunctionTool(OpenModel):
    type: Literal["function"]
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(OpenModel):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(OpenModel):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(OpenModel):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


def _read_choice(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(name := value.get("name"), str):
        value = {"type": value.get("type"), "function": {"name": name}}
    return read_tool_choice(value)


class ResponsesRequest(RequestFields):
    accepted = EXTENSIONS | CHAT_FIELDS

    input: Annotated[
        list[InputItem],
        Field(min_length=1),
        BeforeValidator(lambda v: [{"role": "user", "content": v}] if isinstance(v, str) else v),
        WithJsonSchema({"anyOf": [{"type": "string"}, ITEMS]}),
    ]
    instructions: str = ""
    previous_response_id: str | None = None
    store: bool = True
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    tools: tuple[FunctionTool, ...] = Field(default=(), max_length=128)
    tool_choice: Annotated[
        Any, PlainValidator(_read_choice), WithJsonSchema({"enum": ["auto", "none", "required"]})
    ] = "auto"
    include: frozenset[str] = frozenset()
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    max_tool_calls: int | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> "ResponsesRequest":
        if self.text.format and self.text.format.type == "json_schema":
            for name in ("name", "schema"):
                if name not in self.text.format.model_dump(by_alias=True, exclude_none=True):
                    refuse(f"text.format.{name}", "is missing", "missing_required_parameter")
        return self

    @property
    def with_logprobs(self) -> bool:
        return "message.output_text.logprobs" in self.include or bool(self.top_logprobs)

    def chat(self, messages: list[Message]) -> ChatRequest:
        """The same request as a chat request.

        Raises:
            RequestValidationError: its fields contradict each other.
        """
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        shared = self.model_dump(include=set(RequestFields.model_fields), exclude_unset=True)
        fields = {
            **(self.model_extra or {}),
            **shared,
            "messages": [*system, *messages],
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.with_logprobs,
            "tools": [_chat_tool(tool) for tool in self.tools],
            "tool_choice": self.tool_choice,
            "response_format": _chat_format(self.text.format),
            "reasoning_effort": self.reasoning.effort,
            "verbosity": self.text.verbosity,
        }
        try:
            return ChatRequest.model_validate(fields)
        except ValidationError as error:
            raise contradiction(error) from error

    def echo(self) -> dict[str, Any]:
        """What the response repeats of its request."""
        choice = self.tool_choice
        return {
            "background": False,
            "instructions": self.instructions or None,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "model": self.model,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": self.reasoning.effort, "summary": self.reasoning.summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.store,
            "temperature": self.temperature or 0.0,
            "text": {
                "format": self.text.format.model_dump(by_alias=True, exclude_unset=True)
                if self.text.format
                else {"type": "text"},
                "verbosity": self.text.verbosity or "medium",
            },
            "tool_choice": {"type": "function", "name": choice["function"]["name"]}
            if isinstance(choice, dict)
            else choice,
            "tools": [tool.model_dump() for tool in self.tools],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": self.truncation,
            "user": self.user,
        }


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_unset=True)}


def _chat_format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None or form.type != "json_schema":
        return form and {"type": form.type}
    schema = form.model_dump(by_alias=True, exclude_unset=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": schema}


def contradiction(error: ValidationError, *place: str) -> RequestValidationError:
    """An error of what the fields of a request make up, as an error of the request."""
    problems = [{**each, "loc": ("body", *place, *each["loc"])} for each in error.errors()]
    return RequestValidationError(problems)
