"""Tools of LangChain and of MCP servers as ours: schema, errors as replies, time limit.

MCP servers take the optional extra `mcp` (langchain-mcp-adapters).
"""

import asyncio
import contextvars
import inspect
import json
import re
import shlex
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as SimpleTool
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic_core import to_json

from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.agents.tools.protocol import ToolReply, guarded
from reflux.agents.types import ToolSpec

if TYPE_CHECKING:
    from mcp import ClientSession

SECONDS = 30.0


def as_tool(made: Any) -> Any:
    """A tool of LangChain or a function as our tool; anything else as it is."""
    is_theirs = isinstance(made, BaseTool) or inspect.isroutine(made)
    return LangChainTool(cast(Any, made)) if is_theirs else made


def _structured(made: Any) -> BaseTool:
    if isinstance(made, BaseTool):
        return made
    if not inspect.isroutine(made):
        raise UsageError(
            f"{made!r:.80} is no tool but a {type(made).__name__}; name a function or a tool"
        )
    is_async = inspect.iscoroutinefunction(made)
    func, coroutine = (None, cast(Any, made)) if is_async else (cast(Any, made), None)
    try:
        about = inspect.getdoc(made) or made.__name__
        return StructuredTool.from_function(func, coroutine, description=about)
    except Exception as error:
        raise UsageError(
            f"the function {made.__name__} cannot be shown to a model: {error}; give its arguments "
            "types"
        ) from error


class LangChainTool:
    """A `BaseTool` that replies to any call of a model.

    Invalid arguments, exceptions and calls that take too long become replies with `ok=False`.
    Output that is not text becomes JSON, cut to 8,000 characters. A synchronous tool runs in a new
    thread; one that hangs there cannot be stopped, but delays neither the call nor the end of the
    program. An async tool shares our event loop, and is trusted not to block or exit it.
    """

    def __init__(self, tool: BaseTool | Callable[..., object], seconds: float = SECONDS) -> None:
        """
        Args:
            tool: a tool of LangChain, or a function with types and a docstring.

        Raises:
            UsageError: it is neither, or its arguments have no JSON schema.
        """
        tool = _structured(tool)
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
        return await guarded(lambda: self._call(arguments), self._seconds)

    async def answer(self, question: str) -> ToolReply:
        """Call the tool with a text: a JSON object of its arguments, or the value of its only
        argument, if that is a text."""
        return await guarded(lambda: self._answer(question), self._seconds)

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
        if _is_sync(self._tool):
            output = await self._in_thread(values)
        else:
            output = await self._tool.ainvoke(cast(Any, values))
        failed = isinstance(output, ToolMessage) and output.status == "error"
        return ToolReply(_text_of(output) or "(no output)", ok=not failed)

    async def _in_thread(self, values: dict[str, Any]) -> Any:
        """`invoke` in a daemon thread, because the program waits for asyncio's at its end."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # A stopped call's thread still ends in peace.
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(self._tool.invoke, cast(Any, values)))
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                # A future takes no StopIteration, and SystemExit would end this program.
                if not isinstance(error, Exception) or isinstance(error, StopIteration):
                    error = RuntimeError(f"the tool raised {type(error).__name__} ({error})")
                future.set_exception(error)

        threading.Thread(target=work, name=f"tool {self.spec.name}", daemon=True).start()
        return await asyncio.wrap_future(future)


def _is_sync(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool | SimpleTool):
        return tool.coroutine is None
    return type(tool)._arun is BaseTool._arun  # pyright: ignore[reportPrivateUsage]


def _text_of(output: Any) -> str:
    """A tool's output as text: unchanged, the text of its content blocks, or JSON."""
    content: Any = output.content if isinstance(output, ToolMessage) else output
    if isinstance(content, str):
        return content
    blocks = cast(list[dict[str, Any]], content) if isinstance(content, list) else []
    if blocks and all(type(block) is dict and block.get("type") == "text" for block in blocks):
        return "\n".join(str(block.get("text")) for block in blocks)
    return to_json(content, fallback=str, bytes_mode="base64", inf_nan_mode="constants").decode()


START_SECONDS = 30.0
"""Maximum time for a server to start and list its tools."""
END_SECONDS = 5.0
"""Maximum time for a server to end by itself."""


@asynccontextmanager
async def mcp_tools(server: str, seconds: float = SECONDS) -> AsyncGenerator[list[LangChainTool]]:
    """The tools of a server, which runs, or stays connected, as long as the context.

    If a server dies, its pending calls fail, and the next call starts it again. A started server
    gets a few harmless environment variables such as PATH and HOME, and no keys; `env NAME=value
    COMMAND` passes more. It runs with the user's rights and is as trusted as any program of theirs.

    Args:
        server: a command to start (stdio), or the http address of a running server.
        seconds: time limit of one call.

    Raises:
        UsageError: the command is empty or cannot be parsed.
        MissingError: the extra is not installed, or the server does not start or answer.
    """
    connection = _connection(server)
    try:
        from langchain_mcp_adapters.tools import load_mcp_tools
    except ImportError as error:
        raise MissingError(
            f"the tools of {server!r} need the extra `mcp`: {pip_install('mcp')}"
        ) from error
    session = _McpSession(connection)
    try:
        try:
            async with asyncio.timeout(START_SECONDS):
                tools = await load_mcp_tools(
                    await session.current(),
                    tool_interceptors=[session.call],
                    handle_tool_errors=False,
                )
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError):
                reason = f"not within {START_SECONDS:g} seconds"
            raise MissingError(
                f"the MCP server {server!r} did not start and list its tools ({reason}); a command "
                "must start a server that speaks MCP on stdin and stdout: try it in a terminal, "
                "where it waits for input and does not end"
            ) from error
        yield [LangChainTool(tool, seconds) for tool in tools]
    finally:
        await session.close()


class _McpSession:
    """A session in a separate task, so that its failure never cancels the caller."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._opening = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._session: ClientSession | None = None
        self._stop = asyncio.Event()

    async def current(self) -> "ClientSession":
        """The open session; a new one if there is none."""
        async with self._opening:
            if self._session is not None and self._task and not self._task.done():
                return self._session
            await self.close()
            self._stop = asyncio.Event()
            ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(ready, self._stop))
            self._session = await ready
            return self._session

    async def call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Call a tool in the current session, which may not be the one that listed the tool."""
        session = await self.current()
        server = {self._task} if self._task else set[asyncio.Task[None]]()
        call = asyncio.create_task(session.call_tool(request.name, request.args))
        try:
            await asyncio.wait({call, *server}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise ConnectionError("the server ended during the call")
            return call.result()
        except Exception as error:
            if _is_lost(error) and session is self._session:
                self._session = None
            raise
        finally:
            call.cancel()

    async def close(self) -> None:
        """End the session, and the server that was started for it."""
        session, self._session = self._session, None
        self._stop.set()
        if self._task is None:
            return
        if session is not None:
            await asyncio.wait({self._task}, timeout=END_SECONDS)
        self._task.cancel()  # It may still wait for a server that never answers.
        await asyncio.wait({self._task})

    async def _run(self, ready: "asyncio.Future[ClientSession]", done: asyncio.Event) -> None:
        from langchain_mcp_adapters.sessions import create_session

        try:
            async with create_session(self._connection) as session:
                await session.initialize()
                if not ready.done():
                    ready.set_result(session)
                await done.wait()
        except Exception as error:  # noqa: BLE001 - the waiting caller gets it
            if not ready.done():
                ready.set_exception(_innermost(error))
        finally:
            ready.cancel()


def _is_lost(error: Exception) -> bool:
    """True if the session can take no further call after this error."""
    import anyio
    from mcp import McpError
    from mcp.types import CONNECTION_CLOSED

    lost = ConnectionError | anyio.ClosedResourceError | anyio.BrokenResourceError
    return isinstance(error, lost) or (
        isinstance(error, McpError) and error.error.code == CONNECTION_CLOSED
    )


def _innermost(error: Exception) -> Exception:
    """The first error inside the groups that task groups wrap around it."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _connection(server: str) -> Any:
    if server.startswith(("http://", "https://")):
        return {"transport": "http", "url": server}
    try:
        words = shlex.split(server)
    except ValueError as error:
        raise UsageError(f"the command {server!r} cannot be read: {error}") from error
    if not words:
        raise UsageError("name an MCP server by the command that starts it: mcp:COMMAND")
    return {"transport": "stdio", "command": words[0], "args": words[1:]}
