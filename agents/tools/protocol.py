"""Tools: what a copy, or H, has done instead of guessing (seed 8.4.1, assistants).

A model's call of a tool always ends in a reply: read from any text, made within limits.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from reflux.agents.types import ToolCall, ToolSpec


@dataclass(frozen=True)
class ToolReply:
    """What a tool says. A refusal is a reply, too: the model that asked may do better."""

    text: str
    ok: bool = True
    """False where it could not be done; the text says why, for the model to read."""


class Tool(Protocol):
    """One thing that can be done on request."""

    @property
    def spec(self) -> ToolSpec:
        """Name, description and arguments, as a model sees them."""
        ...

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Do it with the arguments that a model gave, which may be anything."""
        ...

    async def answer(self, question: str) -> ToolReply:
        """Do it for a sub-question that H sent `to="tool:NAME"`, in plain text."""
        ...


Grants = Mapping[str, Sequence[Tool]]
"""Tools by role, `answer` (a copy of X) or `overseer`; a role that is not named has none."""


REPLY_CHARS = 8_000
"""A longer reply is cut, and says so."""
ARGUMENT_CHARS = 20_000
"""Longer arguments are refused unread."""
CALL_SECONDS = 60.0
"""The last resort; each tool of ours stops sooner."""
GRACE_SECONDS = 3.0
"""What a stopped call has to clean up in; after that it is left behind."""


async def run_call(
    tools: Sequence[Tool], call: ToolCall, seconds: float = CALL_SECONDS
) -> ToolReply:
    """Make the call that a model asked for, among the tools that its role was granted.

    Never raises for what the model wrote: an unknown name, arguments that are no JSON object and
    a tool that fails or hangs are replies with `ok=False`, which say what would do better.
    """
    tool = next((tool for tool in tools if tool.spec.name == call.name), None)
    if tool is None:
        there = ", ".join(tool.spec.name for tool in tools) or "none"
        return _refusal(f"there is no tool {call.name[:80]!r}; there are: {there}")
    try:
        arguments = _read(call.arguments)
    except ValueError as error:
        return _refusal(str(error))
    return await guarded(tool.call(arguments), seconds)


async def guarded(work: Coroutine[Any, Any, ToolReply], seconds: float) -> ToolReply:
    """A tool's work, stopped after `seconds`; its reply is at most `REPLY_CHARS` long.

    A `ValueError` is the tool's refusal: its text is for the model. Any other exception is a
    failure, and a reply as well. Work that ignores being stopped is left behind.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()
            task.add_done_callback(_hush)
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
        return ToolReply(cut(reply.text), reply.ok)
    if isinstance(error, ValueError):
        return _refusal(str(error))
    if not isinstance(error, Exception):
        raise error
    return _refusal(f"it failed: {type(error).__name__}: {error}")


def cut(text: str, limit: int = REPLY_CHARS) -> str:
    """The text as valid Unicode, at most `limit` characters long; what is cut is said."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    note = f"\n[cut after {limit} characters]"
    return text[: limit - len(note)] + note


def text_argument(arguments: Mapping[str, Any], name: str, limit: int = ARGUMENT_CHARS) -> str:
    """The one argument of a tool that takes a text.

    Raises:
        ValueError: it is missing, no text, empty or too long, or there are others.
    """
    strange = _listed(key for key in arguments if key != name)
    if strange:
        raise ValueError(f"unknown arguments {strange}; the only one is {name!r}")
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the argument {name!r} must be a text that is not empty")
    if len(value) > limit:
        raise ValueError(f"{name!r} has {len(value)} characters; at most {limit} are read")
    return value


def _read(text: str) -> Mapping[str, Any]:
    """Arguments as a mapping; some models write nothing at all where there are none.

    Raises:
        ValueError: they are no JSON object.
    """
    if len(text) > ARGUMENT_CHARS:
        raise ValueError(f"the arguments have {len(text)} characters; at most {ARGUMENT_CHARS}")
    try:
        value = json.loads(text or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments are no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the arguments must be a JSON object, not a {type(value).__name__}")
    return cast(Mapping[str, Any], value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:40]) for name in list(names)[:5])


def _refusal(text: str) -> ToolReply:
    return ToolReply(cut(text), ok=False)


def _hush(task: "asyncio.Future[ToolReply]") -> None:
    """Take note of how work that was left behind ended, so that asyncio does not warn."""
    if not task.cancelled():
        task.exception()
