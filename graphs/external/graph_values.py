"""What a user's graph takes and returns: the question as its input, and the answer in its output.

input     the question as text, as `messages`, or under the key that its schema or `--input-key`
          names
output    `answer`, `structured_response`, the last of `messages`, or a key that other programs
          use; `--output-key` names another. An object counts by the field that holds its
          answer, else as JSON
"""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args, get_type_hints

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.constants import START
from langgraph.pregel import Pregel
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_jsonable_python

from reflux.agents.errors import UsageError
from reflux.graphs.external.user_code import (
    class_of,
    hints_of,
    keys_used,
    parameters_of,
    plain_hint,
)

QUESTION_KEYS = (
    "query", "input", "user_input", "user_query", "user_question", "user_message", "prompt",
    "text", "message", "request", "task", "problem",
)  # fmt: skip
"""Keys of an input that takes neither `question` nor `messages`, the likeliest first."""
HISTORY_KEYS = ("chat_history", "history")
"""Keys that get no earlier turns."""
ANSWER_KEYS = (
    "final_answer", "final_response", "response", "output", "result", "generation", "output_text",
    "final_output", "reply", "completion", "text", "content",
)  # fmt: skip
"""Keys of an output without `answer`, `structured_response` and `messages`, the likeliest first."""


@dataclass(frozen=True)
class GraphOptions:
    """How a user's graph is called and read; empty for what its own schema says."""

    input_key: str = ""
    """The key of its input that gets the question; dots lead into objects."""
    output_key: str = ""
    """The key of its output that holds the answer; dots and numbers lead into objects, lists."""
    configurable: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`configurable` of its config, also for a function that creates it."""
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its `context`, of its `context_schema`."""

    def __post_init__(self) -> None:
        if "thread_id" in self.configurable:
            raise UsageError(
                "thread_id cannot be set: every question gets its own thread, so that none "
                "sees another's messages; leave it out"
            )


class GraphInput:
    """How a graph gets a question."""

    def __init__(self, name: str, runnable: Runnable[Any, Any], options: GraphOptions) -> None:
        """
        Raises:
            UsageError: no key of its input is known to take the question.
        """
        kind = _input_type(runnable)
        self._fields: Mapping[str, Any] = {}
        self._adapter: TypeAdapter[Any] | None = None
        self._whole = ""
        """`messages`, `message` or `text`, for a graph whose input has no keys."""
        if _is_list(kind):
            self._whole = "messages"
        elif _is_a(kind, BaseMessage):
            self._whole = "message"
        elif (fields := _fields(kind, runnable)) is not None:
            self._fields = fields
        elif not options.input_key:
            self._whole = "text"
        if self._whole:
            if options.input_key:
                raise UsageError(f"{name} takes {self._whole}, no keys: leave --input-key out")
            return
        # Only a StateGraph makes an object of a dict by itself.
        own = isinstance(runnable, RunnableLambda) or not hasattr(runnable, "builder")
        if own and isinstance(runnable, RunnableLambda | Pregel) and _is_object(kind):
            self._adapter = TypeAdapter(kind)
        self._keys = self._chosen(name, options.input_key)

    def of(self, question: str) -> Any:
        """The graph's input."""
        if self._whole:
            message = HumanMessage(question)
            return {"text": question, "message": message, "messages": [message]}[self._whole]
        values: dict[str, Any] = {key: [] for key in HISTORY_KEYS if key in self._fields}
        for key in self._keys:
            *path, last = key.split(".")
            inner = values
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = self._value(key, question)
        return values if self._adapter is None else self._adapter.validate_python(values)

    def _chosen(self, name: str, input_key: str) -> Sequence[str]:
        fields = self._fields
        if input_key:
            if fields and input_key.partition(".")[0] not in fields:
                raise UsageError(
                    f"--input-key {input_key}: {name} takes {', '.join(fields)}; name one of them"
                )
            return (input_key,)
        named = [key for key in ("question", "messages") if key in fields]
        if named or not fields:  # Without fields it takes an object of any keys.
            return named or ("question", "messages")
        likely = [key for key in QUESTION_KEYS if key in fields] or list(fields)
        if len(fields) > 1 and likely[0] not in QUESTION_KEYS:
            raise UsageError(
                f"{name} takes {', '.join(fields)}: name the one that gets the question by "
                "--input-key"
            )
        return likely[:1]

    def _value(self, key: str, question: str) -> Any:
        hint = self._fields.get(key)
        if _is_a(hint, BaseMessage):
            return HumanMessage(question)
        is_text = _is_a(hint, str) or key.rpartition(".")[2] != "messages"
        if is_text and not _is_list(hint):
            return question
        item = next(iter(get_args(plain_hint(hint))), None)
        if item is str:
            return [question]
        as_dict = _is_a(item, Mapping)
        return [{"role": "user", "content": question} if as_dict else HumanMessage(question)]


def _is_a(hint: Any, kind: type) -> bool:
    return (found := class_of(hint)) is not None and issubclass(found, kind)


def _is_list(hint: Any) -> bool:
    return _is_a(hint, Sequence) and not _is_a(hint, str) and not _is_a(hint, bytes)


def _is_object(hint: Any) -> bool:
    return _is_a(hint, BaseModel) or (inspect.isclass(hint) and dataclasses.is_dataclass(hint))


def _input_type(runnable: Runnable[Any, Any]) -> Any:
    called: Any = runnable if isinstance(runnable, RunnableLambda) else None
    if isinstance(runnable, Pregel):
        kind = getattr(runnable.channels.get(START), "typ", None)
        if not isinstance(kind, str):
            return kind
        # An entrypoint in a file whose types are texts.
        called = next((node.bound for node in runnable.nodes.values()), None)
    function = _function_of(called)
    if not (parameters := parameters_of(function)):
        return None
    name = parameters[0].name
    return hints_of(function).get(name, list if name == "messages" else None)


def _function_of(called: Any) -> Any:
    return getattr(called, "func", None) or getattr(called, "afunc", None)


def _fields(kind: Any, runnable: Runnable[Any, Any]) -> Mapping[str, Any] | None:
    """The keys of its input with their types, none where it takes any; None where it takes text."""
    typed = class_of(kind)
    if typed is str or isinstance(runnable, BaseLanguageModel):
        return None
    if typed is not None and (_is_object(typed) or hasattr(typed, "__total__")):
        try:
            return get_type_hints(typed)
        except Exception:  # noqa: BLE001 - a name in the hints may not exist
            return dict.fromkeys(typed.__annotations__)
    if isinstance(runnable, RunnableLambda) and (keys := keys_used(_function_of(runnable))):
        return keys
    if typed is not None and issubclass(typed, Mapping):
        return {}
    try:
        schema: Mapping[str, Any] = runnable.get_input_jsonschema()
    except Exception:  # noqa: BLE001 - some inputs have no readable schema
        return {}
    properties: Mapping[str, Any] = schema.get("properties") or {}
    if "root" in properties or (not properties and schema.get("type") != "object"):
        return None
    return {key: list if each.get("type") == "array" else None for key, each in properties.items()}


def read_output(output: Any, key: str = "", given: Any = None) -> tuple[str, float | None]:
    """(answer, confidence) of a graph's output.

    Args:
        given: the input; what it holds is not the answer.

    Raises:
        ValueError: there is no answer that can be compared, or the graph waits for a human.
    """
    if (interrupts := _interrupts(output)) is not None:
        raise waits_for_human(interrupts)
    values = values_of(output)
    if key:
        return _text(_at(output, key)), _confidence(values)
    if values is None or _messages(output) is not None:
        return _text(output), None
    value = _answer({k: v for k, v in values.items() if not _is_given(k, v, given)}, values)
    confidence, inner = _confidence(values), values_of(value)
    if inner is not None and _messages(value) is None:  # A structured response.
        confidence = _confidence(inner) if confidence is None else confidence
        value = _field(inner)
    return _text(value), confidence


def waits_for_human(what: str) -> ValueError:
    """The reason of a graph that stops for a human."""
    return ValueError(
        f"it waits for human input ({what}), for which an evaluation cannot wait; evaluate a graph "
        "without this interrupt"
    )


def _interrupts(output: Any) -> str | None:
    values = cast(Mapping[str, Any], output) if isinstance(output, dict) else {}
    interrupts: Any = values.get("__interrupt__") or getattr(output, "interrupts", None)
    if not interrupts:
        return None
    return repr(str(getattr(interrupts[0], "value", interrupts[0]))[:100])


def _is_given(key: str, value: Any, given: Any) -> bool:
    before = values_of(given) or {}
    if key == "messages" and isinstance(value, list):
        found = _messages(cast(Any, value)) or []
        return len(found) == 1 and isinstance(found[0], HumanMessage)
    return isinstance(value, str) and before.get(key) == value


def _answer(values: Mapping[str, Any], all_values: Mapping[str, Any]) -> Any:
    for key in ("answer", "structured_response", "messages", *ANSWER_KEYS):
        if values.get(key) is not None and (key != "messages" or values[key]):
            return values[key]
    if "answer" in values:
        return values["answer"]
    if len(values) == 1 and isinstance(value := next(iter(values.values())), str):
        return value
    keys = ", ".join(map(str, all_values)) or "nothing"
    raise ValueError(
        f"its output holds {keys}, and none is known to be the answer; name one by --output-key"
    )


def _field(values: Mapping[str, Any]) -> Any:
    """The answer within a structured response: its only field, a field of a known name, or all."""
    rest = [key for key in values if key != "confidence"]
    if len(rest) == 1:
        return values[rest[0]]
    known = [values[k] for k in ("answer", *ANSWER_KEYS) if values.get(k) is not None]
    return known[0] if known else dict(values)


def _at(output: Any, key: str) -> Any:
    value = output
    for part in key.split("."):
        values = values_of(value)
        try:
            if values is not None:
                value = values[part]
            elif isinstance(value, list | tuple):
                value = cast(Sequence[Any], value)[int(part)]
            else:
                value = getattr(value, part)
        except (KeyError, IndexError, ValueError, AttributeError):
            there = type(value).__name__ if values is None else ", ".join(map(str, values))
            raise ValueError(
                f"--output-key {key}: there is no {part!r} in what it returned ({there}); name "
                "what is there"
            ) from None
    return value


def values_of(value: Any) -> Mapping[str, Any] | None:
    """The fields of an object; None for anything that has none."""
    if isinstance(value, BaseMessage):
        return None
    if isinstance(value, Mapping):
        return cast(Mapping[str, Any], value)
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return None


def _messages(value: Any) -> list[BaseMessage] | None:
    """A value as messages, if it is a message or a list of messages in any form."""
    items = cast(list[Any], list(value) if isinstance(value, list | tuple) else [value])
    if not items or not all(map(_is_message, items)):
        return None
    try:
        return convert_to_messages(items)
    except (ValueError, KeyError, NotImplementedError):
        return None


def _is_message(item: Any) -> bool:
    if isinstance(item, Mapping):
        return "content" in item and ("role" in item or "type" in item)
    return isinstance(item, BaseMessage)


def _confidence(values: Mapping[str, Any] | None) -> float | None:
    stated = (values or {}).get("confidence")
    valid = isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated <= 1
    return float(cast(float, stated)) if valid else None


def _text(value: Any) -> str:
    if (messages := _messages(value)) is not None:
        text, calls = messages[-1].text, cast(Any, getattr(messages[-1], "tool_calls", None))
        if not text.strip() and calls:
            raise ValueError(f"its last message calls {calls[0]['name']} and answers nothing")
        return text
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"its answer is of type {type(value).__name__}: {value}")
    value = cast(Any, value).tolist() if hasattr(value, "dtype") else value  # NumPy's.
    try:
        plain = None if isinstance(value, Callable) else to_jsonable_python(value)
    except ValueError:
        plain = None
    if plain is None:
        raise ValueError(
            f"its answer is of type {type(value).__name__}, no text that could be compared; name a "
            "part of it by --output-key"
        )
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
