"""A conversation becomes one question, or one model continues it without a tree.

The overseer sees the whole conversation, a copy of the agent only its sub-question. A single
message is the question as it stands. With earlier turns or instructions the text is

    Instructions:
      ...

    Conversation so far:
    User: ...
    Assistant: ...

    Question:
    ...

The further lines of a turn are indented, so that no turn can imitate another. Under a policy what a
tool or an assistant said is marked as untrusted data: it may be made of what somebody else wrote.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.policy.data import untrusted
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Completion, Delta
from reflux.graphs.amplify.context import silent
from reflux.graphs.amplify.state import Status, accepted_status, is_accepted
from reflux.graphs.ask import Origin, join, recorded
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.traces.events import Event, answered, called
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey

SPEAKERS = {"human": "User", "ai": "Assistant", "tool": "Tool", "function": "Tool"}
CONTENT_TYPES = {"text", "reasoning", "thinking", "tool_call", "tool_use"}
"""Content that is text, or that an answer may hold beside its text."""


def question_of(messages: Sequence[BaseMessage], *, marked: bool = False) -> str:
    """The last message as a question, after the conversation that led to it.

    Args:
        marked: what others than user and system said is marked as data.

    Raises:
        UsageError: the last message is not the user's, or holds more than text.
    """
    if not messages or messages[-1].type != "human":
        last = f"is of type {messages[-1].type!r}" if messages else "is missing"
        raise UsageError(f"the last message {last}; it must be the user's question")
    *earlier, question = messages
    system = [_text(m) for m in earlier if m.type == "system"]
    turns = [f"{_speaker(m)}: {_said(m, marked)}" for m in earlier if m.type != "system"]
    if not any(system) and not turns:
        return _text(question)
    parts: list[str] = []
    if any(system):
        parts.append("Instructions:\n  " + _indented("\n".join(system)))
    if turns:
        parts.append("Conversation so far:\n" + "\n".join(turns))
    parts.append(f"Question:\n{_text(question)}")
    return "\n\n".join(parts)


def _speaker(message: BaseMessage) -> str:
    speaker = SPEAKERS.get(message.type, message.type)
    return f"{speaker} {message.name}" if message.name else speaker


def _said(message: BaseMessage, marked: bool) -> str:
    text = _indented(_text(message))
    speaker = SPEAKERS.get(message.type, message.type).lower()
    return untrusted(text, speaker) if marked and message.type != "human" else text


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = "text" if isinstance(block, str) else str(block.get("type"))
            if kind not in CONTENT_TYPES:
                raise UsageError(f"a message holds {kind!r}; the amplified system reads text alone")
    text = str(message.text)
    if not text and isinstance(message, AIMessage) and message.tool_calls:
        return f"(called {', '.join(call['name'] for call in message.tool_calls)})"
    return text


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop sequences."""
    ends = (end for stop in stops if stop and (end := text.find(stop)) >= 0)
    return text[: min(ends, default=len(text))]


Listener = Callable[[int, Delta], None]
"""Gets each piece of each reply, with the reply's position."""


def reply_status(reply: Completion) -> Status:
    """The status of an agent's own reply: `rejected` if it says nothing, prints a tool call, or a
    content filter cut it."""
    says_something = reply.text.strip() or reply.tool_calls or reply.truncated
    if reply.prints_call or reply.filtered or not says_something:
        return "rejected"
    return accepted_status(has_check=False, truncated=reply.truncated)


async def answer_chat(
    recorded_client: RecordedClient,
    origin: Origin,
    text: str,
    requests: Sequence[ChatRequest],
    *,
    options: AskOptions | None = None,
    hear: Listener | None = None,
    emit: Callable[[Event], None] = silent,
) -> list[Completion]:
    """Reply to each request, in parallel; the first reply is the recorded answer.

    Args:
        text: the conversation as one question, under which it is recorded.
        requests: the same conversation with different seeds; at least one.
        hear: None for whole replies.

    Raises:
        EndpointError: a reply did not come; the others were stopped.
    """
    text = redact(text)
    question_id = origin.question_id(text)

    async def answer(vote: int, request: ChatRequest) -> Completion:
        key = CallKey(question_id, "", "answer", vote=vote)
        reply: Completion | None = None
        # An endpoint that refuses a schema is asked without it for a whole reply, never a stream.
        if hear is None and not request.schema:
            reply = await recorded_client.ask(key, request)
        else:
            async with aclosing(recorded_client.stream(key, request)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Completion):
                        reply = piece
                    elif hear is not None:
                        hear(vote, piece)
        if reply is None:
            raise RefluxError("a stream ended without its reply; please report this")
        emit(called("", "answer", request.model, reply, {}))
        return reply

    async def judge(answer: str | None, status: Status, error: str | None) -> None:
        detail: dict[str, Any] = {"question": text, "answer": answer, "status": status}
        detail |= {"error": error, "votes": len(requests)}
        ok = is_accepted(status)
        await recorded_client.store.add_judgement(question_id, "", "direct", ok, detail, key="0.0")
        emit(answered("", True, detail))

    async with recorded(recorded_client.store, text, origin, options):
        with recorded_client.spans.run(question_id, vars(origin)) as span:
            try:
                replies = await join([answer(vote, each) for vote, each in enumerate(requests)])
            except EndpointError as error:
                await judge(None, "failed", str(error))
                raise
            status = reply_status(replies[0])
            await judge(replies[0].text, status, None)
            span.ended(status)
    return replies
