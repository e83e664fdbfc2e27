"""A conversation as one question: H sees all of it, a copy of X its sub-question alone.

One message is the question as it stands. With earlier turns or instructions the text is

    Instructions:
      ...

    Conversation so far:
    User: ...
    Assistant: ...

    Question:
    ...

where the further lines of a turn are indented, so that no turn can pass itself off as another.
"""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage

from agents.errors import UsageError

SPEAKERS = {"human": "User", "ai": "Assistant", "tool": "Tool", "function": "Tool"}
SAID = {"text", "reasoning", "thinking", "tool_call", "tool_use"}
"""Kinds of content that are text, or that an answer may carry beside its text."""


def question_of(messages: Sequence[BaseMessage]) -> str:
    """The question that a conversation ends with, and before it what led there.

    Raises:
        UsageError: the last message is not the user's, or holds more than text.
    """
    if not messages or messages[-1].type != "human":
        last = f"is of type {messages[-1].type!r}" if messages else "is missing"
        raise UsageError(f"the last message {last}; it must be the user's question")
    *earlier, asked = messages
    system = [_text(m) for m in earlier if m.type == "system"]
    turns = [f"{_speaker(m)}: {_indented(_text(m))}" for m in earlier if m.type != "system"]
    if not any(system) and not turns:
        return _text(asked)
    parts: list[str] = []
    if any(system):
        parts.append("Instructions:\n  " + _indented("\n".join(system)))
    if turns:
        parts.append("Conversation so far:\n" + "\n".join(turns))
    parts.append(f"Question:\n{_text(asked)}")
    return "\n\n".join(parts)


def last_question(text: str) -> str:
    """What a conversation, as `question_of` wrote it, ends with; any other text as it is."""
    begins = text.startswith(("Instructions:\n  ", "Conversation so far:\n"))
    _, asked, question = text.partition("\n\nQuestion:\n")
    return question if begins and asked else text


def _speaker(message: BaseMessage) -> str:
    speaker = SPEAKERS.get(message.type, message.type)
    return f"{speaker} {message.name}" if message.name else speaker


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = "text" if isinstance(block, str) else str(block.get("type"))
            if kind not in SAID:
                raise UsageError(f"a message holds {kind!r}; the amplified system reads text alone")
    text = str(message.text)
    if not text and isinstance(message, AIMessage) and message.tool_calls:
        return f"(called {', '.join(call['name'] for call in message.tool_calls)})"
    return text


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop sequences."""
    found = (at for stop in stops if stop and (at := text.find(stop)) >= 0)
    return text[: min(found, default=len(text))]
