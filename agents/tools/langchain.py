"""Any langchain-core tool as a tool of ours: its schema, its errors as replies, its time capped."""

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
"""Of one call."""


class LangChainTool:
    """A `BaseTool` that replies to whatever a model wrote.

    Arguments that do not fit its schema, what it raises and a call that takes too long are
    replies with `ok=False`. Output that is no text becomes JSON. A reply is at most 8,000
    characters long. A tool that is not async runs in a thread of its own; one that hangs there
    cannot be ended, but keeps neither the call nor the end of the program waiting. An async tool
    shares our event loop, and is trusted not to block or exit it.
    """

    def __init__(self, tool: BaseTool, seconds: float = SECONDS) -> None:
        """
        Raises:
            UsageError: a tool whose arguments have no JSON schema.
        """
        try:
            function = convert_to_openai_function(tool)
            parameters = json.dumps(function["parameters"])
        except Exception as error:
            raise UsageError(
                f"the tool {tool.name!r} cannot be shown to a model: its arguments have no JSON "
                f"schema ({error})"
            ) from error
        # A model's API takes no other names; MCP knows dots and slashes as well.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64]
        self.spec = ToolSpec(name, str(function.get("description", "")), parameters)
        self._tool = tool
        self._seconds = seconds
        self._fields = cast(Mapping[str, Any], function["parameters"].get("properties", {}))

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Call the tool with a mapping of arguments, which its schema judges."""
        return await guarded(self._call(arguments), self._seconds)

    async def answer(self, question: str) -> ToolReply:
        """Call the tool with a text: a JSON object of its arguments, or the value of its only one,
        where that is a text."""
        return await guarded(self._answer(question), self._seconds)

    async def _answer(self, question: str) -> ToolReply:
        try:
            given = json.loads(question)
        except (ValueError, RecursionError):
            given = None
        if isinstance(given, dict) and given.keys() <= self._fields.keys():
            return await self._call(cast(Mapping[str, Any], given))
        if len(self._fields) == 1:
            ((name, schema),) = self._fields.items()
            if schema.get("type", "string") == "string":
                return await self._call({name: question})
        names = ", ".join(self._fields) or "none"
        raise ValueError(f"write a JSON object of the arguments ({names}), not plain text")

    async def _call(self, arguments: Mapping[str, Any]) -> ToolReply:
        given: dict[str, Any] = dict(arguments)
        if self._tool.handle_tool_error or self._tool.handle_validation_error:
            # Asked so, a tool that words its own errors marks them.
            given = {"type": "tool_call", "id": "1", "name": self._tool.name, "args": given}
        in_thread = _is_sync(self._tool)
        output = await (self._in_thread(given) if in_thread else self._in_loop(given))
        failed = isinstance(output, ToolMessage) and output.status == "error"
        return ToolReply(_text_of(output) or "(no output)", ok=not failed)

    async def _in_loop(self, given: dict[str, Any]) -> Any:
        return await self._tool.ainvoke(cast(Any, given))

    async def _in_thread(self, given: dict[str, Any]) -> Any:
        """`invoke` in a daemon thread: those of asyncio's own pool are waited for at the end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(output: Any, error: BaseException | None) -> None:
            if ended.done():
                return  # The call was stopped meanwhile.
            if error is None:
                ended.set_result(output)
            else:
                ended.set_exception(error)

        def work() -> None:
            output, failure = None, None
            try:
                output = context.run(self._tool.invoke, cast(Any, given))
            except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
                failure = _as_exception(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, output, failure)

        threading.Thread(target=work, name=f"tool {self.spec.name}", daemon=True).start()
        return await ended


def _as_exception(error: BaseException) -> Exception:
    """What a future can carry: neither a StopIteration nor the end of a program."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the tool raised {type(error).__name__} ({error})")


def _is_sync(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | SimpleTool):
        return tool.coroutine is None
    return type(tool)._arun is BaseTool._arun  # pyright: ignore[reportPrivateUsage]


def _text_of(output: Any) -> str:
    """A tool's output as text: as it is, the text of its content blocks, or JSON."""
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
