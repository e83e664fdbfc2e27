"""A tool of LangChain as one of ours: with its schema, errors as replies, and a time limit."""

import asyncio
import contextvars
import json
import re
import threading
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as SimpleTool
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic_core import to_json

from reflux.agents.errors import UsageError
from reflux.agents.tools.protocol import ToolReply, guarded
from reflux.agents.types import ToolSpec

SECONDS = 30.0
"""Time limit of one call."""


class LangChainTool:
    """A `BaseTool` that replies to any call of a model.

    Invalid arguments, exceptions and calls that take too long become replies with `ok=False`.
    Output that is no text becomes JSON, cut to 8,000 characters. A synchronous tool runs in a new
    thread; one that hangs there cannot be stopped, but delays neither the call nor the end of the
    program. An async tool shares our event loop, and is trusted not to block or exit it.
    """

    def __init__(self, tool: BaseTool, seconds: float = SECONDS) -> None:
        """
        Raises:
            UsageError: the tool's arguments have no JSON schema.
        """
        try:
            function = convert_to_openai_function(tool)
            parameters = json.dumps(function["parameters"])
        except Exception as error:
            raise UsageError(
                f"the tool {tool.name!r} cannot be shown to a model: its arguments have no JSON "
                f"schema ({error})"
            ) from error
        # Model APIs take no other names; MCP allows dots and slashes as well.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64]
        self.spec = ToolSpec(name, str(function.get("description", "")), parameters)
        self._tool = tool
        self._seconds = seconds
        self._fields = cast(Mapping[str, Any], function["parameters"].get("properties", {}))

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Call the tool with arguments, which its schema validates."""
        return await guarded(self._call(arguments), self._seconds)

    async def answer(self, question: str) -> ToolReply:
        """Call the tool with a text: a JSON object of its arguments, or the value of its only
        argument, if that is a text."""
        return await guarded(self._answer(question), self._seconds)

    async def _answer(self, question: str) -> ToolReply:
        try:
            value = json.loads(question)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and value.keys() <= self._fields.keys():
            return await self._call(cast(Mapping[str, Any], value))
        if len(self._fields) == 1:
            ((name, schema),) = self._fields.items()
            if schema.get("type", "string") == "string":
                return await self._call({name: question})
        names = ", ".join(self._fields) or "none"
        raise ValueError(f"write a JSON object of the arguments ({names}), not plain text")

    async def _call(self, arguments: Mapping[str, Any]) -> ToolReply:
        values: dict[str, Any] = dict(arguments)
        if self._tool.handle_tool_error or self._tool.handle_validation_error:
            # Called with a tool call, a tool that handles its own errors marks them.
            values = {"type": "tool_call", "id": "1", "name": self._tool.name, "args": values}
        in_thread = _is_sync(self._tool)
        output = await (self._in_thread(values) if in_thread else self._in_loop(values))
        failed = isinstance(output, ToolMessage) and output.status == "error"
        return ToolReply(_text_of(output) or "(no output)", ok=not failed)

    async def _in_loop(self, values: dict[str, Any]) -> Any:
        return await self._tool.ainvoke(cast(Any, values))

    async def _in_thread(self, values: dict[str, Any]) -> Any:
        """`invoke` in a daemon thread, because the program waits for asyncio's at its end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(output: Any, error: BaseException | None) -> None:
            if future.done():
                return  # The call was stopped.
            if error is None:
                future.set_result(output)
            else:
                future.set_exception(error)

        def work() -> None:
            output, failure = None, None
            try:
                output = context.run(self._tool.invoke, cast(Any, values))
            except BaseException as error:  # noqa: BLE001 - raised by `await future`
                failure = _as_exception(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, output, failure)

        threading.Thread(target=work, name=f"tool {self.spec.name}", daemon=True).start()
        return await future


def _as_exception(error: BaseException) -> Exception:
    """An error that a future can hold: it takes no StopIteration, and SystemExit would end us."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the tool raised {type(error).__name__} ({error})")


def _is_sync(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | SimpleTool):
        return tool.coroutine is None
    return type(tool)._arun is BaseTool._arun  # pyright: ignore[reportPrivateUsage]


def _text_of(output: Any) -> str:
    """A tool's output as text: unchanged, the text of its content blocks, or JSON."""
    content: Any = output.content if isinstance(output, ToolMessage) else output
    if isinstance(content, str):
        return content
    blocks = cast(list[Any], content) if isinstance(content, list) else []
    texts = [block.get("text") for block in blocks if _is_text_block(block)]
    if blocks and len(texts) == len(blocks):
        return "\n".join(map(str, texts))
    return to_json(content, fallback=str, bytes_mode="base64", inf_nan_mode="constants").decode()


def _is_text_block(block: Any) -> bool:
    return isinstance(block, dict) and cast(dict[str, Any], block).get("type") == "text"
