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
"""In which a server must have started and listed its tools."""
END_SECONDS = 5.0
"""In which a server may end by itself."""


@asynccontextmanager
async def mcp_tools(server: str, seconds: float = SECONDS) -> AsyncGenerator[list[LangChainTool]]:
    """The tools of a server, which is started, or connected to, once, and ended at the end.

    A server that dies fails the calls under way, and is started again for the next. One that is
    started gets a few harmless variables of the environment, PATH and HOME among them, and no
    keys; `env NAME=value COMMAND` gives it more. It runs with the rights of the user, and is as
    trusted as any program that the user starts.

    Args:
        server: a command to start (stdio), or the http address of one that runs.
        seconds: of one call.

    Raises:
        UsageError: no command.
        MissingError: the extra is not installed, or the server does not start or answer.
    """
    connection = _connection(server)
    try:
        from langchain_mcp_adapters.tools import load_mcp_tools
    except ImportError as error:
        raise MissingError(
            f"the tools of {server!r} need the extra `mcp`: pip install 'reflux-ida[mcp]'"
        ) from error
    held = _HeldSession(connection)
    try:
        try:
            async with asyncio.timeout(START_SECONDS):
                tools = await load_mcp_tools(
                    await held.session(), tool_interceptors=[held.call], handle_tool_errors=False
                )
        except Exception as error:
            why = (
                f"not within {START_SECONDS:g} seconds"
                if isinstance(error, TimeoutError)
                else (f"{type(error).__name__}: {error}")
            )
            raise MissingError(
                f"the MCP server {server!r} did not start and list its tools ({why}); a command "
                "must start a server that speaks MCP on stdin and stdout: try it in a terminal, "
                "where it waits for input and does not end"
            ) from error
        yield [LangChainTool(tool, seconds) for tool in tools]
    finally:
        await held.close()


class _HeldSession:
    """A session in a task of its own, so that what kills it never cancels who called."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._opening = asyncio.Lock()
        self._holder: asyncio.Task[None] | None = None
        self._session: ClientSession | None = None
        self._done = asyncio.Event()

    async def session(self) -> "ClientSession":
        """The open session; a new one where there is none, or no longer."""
        async with self._opening:
            if self._session is not None and self._holder and not self._holder.done():
                return self._session
            await self.close()
            self._done = asyncio.Event()
            ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(ready, self._done))
            self._session = await ready
            return self._session

    async def call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Make a tool's call in the session of now, not in the one that listed the tool."""
        session = await self.session()
        ended = {self._holder} if self._holder else set[asyncio.Task[None]]()
        made = asyncio.create_task(session.call_tool(request.name, request.args))
        try:
            await asyncio.wait({made, *ended}, return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                raise ConnectionError("the server ended during the call")
            return made.result()
        except Exception as error:
            if _is_lost(error) and session is self._session:
                self._session = None
            raise
        finally:
            made.cancel()

    async def close(self) -> None:
        """End the session, and the server that was started for it."""
        opened, self._session = self._session, None
        self._done.set()
        if self._holder is None:
            return
        if opened is not None:
            await asyncio.wait({self._holder}, timeout=END_SECONDS)
        self._holder.cancel()  # It may still wait for a server that never says hello.
        await asyncio.wait({self._holder})

    async def _hold(self, ready: "asyncio.Future[ClientSession]", done: asyncio.Event) -> None:
        from langchain_mcp_adapters.sessions import create_session

        try:
            async with create_session(self._connection) as session:
                await session.initialize()
                if not ready.done():
                    ready.set_result(session)
                await done.wait()
        except Exception as error:  # noqa: BLE001 - told to who waits; later ones find it closed
            if not ready.done():
                ready.set_exception(_first(error))
        finally:
            ready.cancel()


def _is_lost(error: Exception) -> bool:
    """Whether an error means that the session can take no further call."""
    import anyio
    from mcp import McpError
    from mcp.types import CONNECTION_CLOSED

    if isinstance(error, McpError):
        return error.error.code == CONNECTION_CLOSED
    return isinstance(
        error, ConnectionError | anyio.ClosedResourceError | anyio.BrokenResourceError
    )


def _first(error: Exception) -> Exception:
    """The error inside groups of one, which task groups wrap around it."""
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
        raise UsageError("an MCP server is named by the command that starts it: mcp:COMMAND")
    return {"transport": "stdio", "command": words[0], "args": words[1:]}
