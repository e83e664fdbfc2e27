"""What LangChain's callbacks hand over, as texts and replies of the record."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
from langgraph.errors import GraphInterrupt
from langgraph.types import Command

from reflux.agents.clients.langchain import finish_of, read_message
from reflux.agents.clients.reasoning import text_of
from reflux.agents.types import Completion
from reflux.graphs.traces.protocols.replies import text_of_output


def reply_of(generation: Generation) -> Completion:
    """A generation of LangChain as a reply."""
    message = generation.message if isinstance(generation, ChatGeneration) else None
    if isinstance(message, AIMessage):
        return read_message(message)
    return Completion(generation.text, finish_reason=finish_of(generation.generation_info or {}))


def shown(value: Any) -> str:
    """A tool's output as text."""
    content = getattr(value, "content", value)
    if isinstance(content, str):
        return content
    if isinstance(content, list) and (text := text_of(content)):
        return text
    return json.dumps(content, default=str)


def asked(inputs: Any) -> str:
    """The text that an invocation begins with, as far as its input shows one."""
    if isinstance(inputs, str):
        return inputs
    values = cast(Mapping[str, Any], inputs) if isinstance(inputs, Mapping) else {}
    messages = values.get("messages", inputs)
    last = cast(Sequence[Any], messages)[-1] if isinstance(messages, list) and messages else None
    if last is not None:
        content = getattr(last, "content", None)
        if content is None and isinstance(last, Mapping):
            content = cast(Mapping[str, Any], last).get("content")
        if content is None and isinstance(last, tuple | list):
            content = cast(Sequence[Any], last)[-1]
        return text_of(content) if content is not None else str(cast(object, last))
    texts = [value for value in values.values() if isinstance(value, str)]
    return texts[0] if texts else ""


def answer_of(outputs: Any) -> str | None:
    """What an invocation ended with, as far as its output shows it."""
    values = cast(Mapping[str, Any], outputs) if isinstance(outputs, Mapping) else {}
    messages = values.get("messages")
    last = cast(list[Any], messages)[-1] if isinstance(messages, list) and messages else outputs
    if isinstance(last, BaseMessage) and values.get("answer") is None:
        return shown(last)
    return text_of_output(outputs)


def waits_for(error: GraphInterrupt) -> str:
    """What a graph asks a human, in one line."""
    asked_for = [getattr(each, "value", each) for each in (error.args[0] if error.args else ())]
    return f"waits for a human: {json.dumps(asked_for, default=str)}"


def resumes(inputs: Any) -> bool:
    """Whether an invocation goes on where an earlier one of its thread waited for a human."""
    return inputs is None or (isinstance(inputs, Command) and inputs.resume is not None)
