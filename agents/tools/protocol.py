"""Tools that a copy or an overseer calls instead of guessing (AI Safety Atlas 8.4.1, assistants).

Every tool call ends in a reply, whatever the model wrote, and within limits.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from reflux.agents.prompts import object_schema
from reflux.agents.types import ToolCall, ToolSpec


@dataclass(frozen=True)
class ToolReply:
    """A tool's reply. A refusal is a reply as well, so that the model can correct its call."""

    text: str
    ok: bool = True
    """False for a failure; the text tells the model why."""


class Tool(Protocol):
    """An action that models can request."""

    @property
    def spec(self) -> ToolSpec:
        """Name, description and arguments, as a model sees them."""
        ...

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Act on a model's arguments, which may be invalid."""
        ...

    async def answer(self, question: str) -> ToolReply:
        """Act on a sub-question that the overseer sent `to="tool:NAME"`, in plain text."""
        ...


ROLES = ("answer", "overseer")
Grants = Mapping[str, Sequence[Tool]]
"""Tools by role: `answer` (a copy of the agent) or `overseer`."""


REPLY_CHARS = 8_000
"""Maximum length of a reply; a longer one is cut, and says so."""
ARGUMENT_CHARS = 20_000
"""Maximum length of arguments; longer ones are refused unread."""
CALL_SECONDS = 60.0
"""Default time limit of a call; the built-in tools have shorter ones."""
GRACE_SECONDS = 3.0
"""Time for a stopped call to clean up; after that it is abandoned."""


async def run_call(
    tools: Sequence[Tool], call: ToolCall, seconds: float = CALL_SECONDS
) -> ToolReply:
    """Make a model's call to one of the tools that its role was granted.

    Never raises for the model's text: an unknown name, arguments that are not a JSON object and a
    tool that fails or hangs become replies with `ok=False` that name the remedy.
    """
    tool = next((tool for tool in tools if tool.spec.name == call.name), None)
    if tool is None:
        names = ", ".join(tool.spec.name for tool in tools) or "none"
        return _refusal(f"there is no tool {call.name[:80]!r}; there are: {names}")
    size = len(call.arguments)
    if size > ARGUMENT_CHARS:
        return _refusal(f"the arguments have {size} characters; at most {ARGUMENT_CHARS}")
    try:  # Some models write nothing where there are no arguments.
        arguments = json.loads(call.arguments or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return _refusal(f"the arguments are not JSON: {error}")
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        return _refusal(f"the arguments must be a JSON object, not a {kind}")
    return await guarded(lambda: tool.call(cast(Mapping[str, Any], arguments)), seconds)


async def guarded(work: Callable[[], object], seconds: float) -> ToolReply:
    """A tool's reply, cut to `REPLY_CHARS`; the work is stopped after `seconds`.

    A `ValueError` is the tool's refusal, and its text is for the model. Any other exception is a
    failure, and a reply as well. Work that ignores cancellation is abandoned.
    """

    async def run() -> object:
        reply = work()
        return await reply if inspect.isawaitable(reply) else reply

    task = asyncio.create_task(run())
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()
            # Retrieve the exception of abandoned work, so that asyncio does not warn.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.wait({task}, timeout=GRACE_SECONDS)
            return _refusal(f"stopped: it took longer than {seconds:g} seconds; ask for less")
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.cancelled():
        return _refusal("it failed: the tool gave up its own work")
    error = task.exception()
    if error is None:
        reply = task.result()
        if not isinstance(reply, ToolReply):
            return _refusal(f"it failed: {reply!r:.80} is not a reflux.ToolReply; return one")
        return ToolReply(cut(reply.text), reply.ok)
    if isinstance(error, ValueError):
        return _refusal(str(error))
    if not isinstance(error, Exception):
        raise error
    return _refusal(f"it failed: {type(error).__name__}: {error}")


def cut(text: str, limit: int = REPLY_CHARS) -> str:
    """The text as valid Unicode, at most `limit` characters long; a note says if it is cut."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    note = f"\n[cut after {limit} characters]"
    return text[: limit - len(note)] + note


def text_parameter(name: str, description: str) -> str:
    """JSON schema of a tool that takes one text."""
    return json.dumps(object_schema(**{name: {"type": "string", "description": description}}))


class TextTool:
    """A tool that takes one text; a subclass has the `spec`, and replies."""

    argument: str
    seconds = CALL_SECONDS
    max_chars = ARGUMENT_CHARS

    async def reply(self, text: str) -> ToolReply:
        """Act on the text; a `ValueError` is a refusal."""
        raise NotImplementedError

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Act on a model's arguments; a refusal says why."""
        return await guarded(
            lambda: self.reply(text_argument(arguments, self.argument, self.max_chars)),
            self.seconds,
        )

    async def answer(self, question: str) -> ToolReply:
        return await self.call({self.argument: question})


def text_argument(arguments: Mapping[str, Any], name: str, limit: int = ARGUMENT_CHARS) -> str:
    """The argument of a tool that takes one text.

    Raises:
        ValueError: it is missing, no text, empty or too long, or there are other arguments.
    """
    unknown = [repr(key[:40]) for key in arguments if key != name]
    if unknown:
        raise ValueError(f"unknown arguments {', '.join(unknown[:5])}; the only one is {name!r}")
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the argument {name!r} must be a text that is not empty")
    if len(value) > limit:
        raise ValueError(f"{name!r} has {len(value)} characters; at most {limit} are read")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refusal(text: str) -> ToolReply:
    return ToolReply(cut(text), ok=False)
