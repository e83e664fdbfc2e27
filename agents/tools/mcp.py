"""The tools of any MCP server, through langchain-mcp-adapters (the optional extra `mcp`)."""

import asyncio
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.tools.langchain import SECONDS, LangChainTool

if TYPE_CHECKING:
    from mcp import ClientSession

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
            f"the tools of {server!r} need the extra `mcp`: pip install 'reflux-ida[mcp]'"
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
            late = isinstance(error, TimeoutError)
            reason = f"{type(error).__name__}: {error}"
            reason = f"not within {START_SECONDS:g} seconds" if late else reason
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

    if isinstance(error, McpError):
        return error.error.code == CONNECTION_CLOSED
    return isinstance(
        error, ConnectionError | anyio.ClosedResourceError | anyio.BrokenResourceError
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
