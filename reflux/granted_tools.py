"""The tools that a config or a command line can name, and grant to a role."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from reflux.agents.errors import UsageError
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.documents import Documents
from reflux.agents.tools.mcp import mcp_tools
from reflux.agents.tools.protocol import Grants, Tool
from reflux.agents.tools.python_sandbox import Sandbox

ROLES = ("answer", "overseer")
"""Who may be granted tools: a copy of X, or H."""


@asynccontextmanager
async def _calculator(rest: str) -> AsyncGenerator[Sequence[Tool]]:
    yield [Calculator()]


@asynccontextmanager
async def _python(rest: str) -> AsyncGenerator[Sequence[Tool]]:
    yield [Sandbox()]


@asynccontextmanager
async def _documents(rest: str) -> AsyncGenerator[Sequence[Tool]]:
    yield [await asyncio.to_thread(Documents, Path(rest))]


TOOLS: dict[str, Callable[[str], AbstractAsyncContextManager[Sequence[Tool]]]] = {
    "calculator": _calculator,
    "python": _python,
    "documents:FOLDER": _documents,
    "mcp:COMMAND": mcp_tools,
}
"""How a tool is named; what follows a colon is given to what opens it."""


@asynccontextmanager
async def open_tools(granted: Mapping[str, Sequence[str]]) -> AsyncGenerator[Grants]:
    """The tools that each role is granted by name, open until the end; a role without has none.

    `{"answer": ["calculator"], "overseer": ["documents:notes", "mcp:npx some-server"]}`. A tool
    that two roles share is opened once.

    Raises:
        UsageError: an unknown role or tool, or two tools of one role that models cannot tell
            apart.
        MissingError: an MCP server does not start.
    """
    for role in granted:
        if role not in ROLES:
            raise UsageError(f"no role {role!r} is granted tools; there are: {', '.join(ROLES)}")
    names = dict.fromkeys(name for each in granted.values() for name in each)
    openers = {name: _opener(name) for name in names}
    async with AsyncExitStack() as stack:
        opened = {name: await stack.enter_async_context(at) for name, at in openers.items()}
        yield {
            role: _distinct(role, [tool for name in each for tool in opened[name]])
            for role, each in granted.items()
        }


def _opener(name: str) -> AbstractAsyncContextManager[Sequence[Tool]]:
    kind, colon, rest = name.partition(":")
    for form, opens in TOOLS.items():
        known, takes, what = form.partition(":")
        if kind != known:
            continue
        if takes and not rest.strip():
            raise UsageError(f"the tool {name!r} lacks its {what.lower()}; write {form}")
        if colon and not takes:
            raise UsageError(f"the tool {name!r} takes nothing after its name; write {form}")
        return opens(rest)
    raise UsageError(f"there is no tool {name!r}; there are: {', '.join(TOOLS)}")


def _distinct(role: str, tools: list[Tool]) -> list[Tool]:
    seen: set[str] = set()
    for tool in tools:
        if tool.spec.name in seen:
            raise UsageError(
                f"the role {role!r} is granted two tools named {tool.spec.name!r}, which a model "
                "cannot tell apart; grant one"
            )
        seen.add(tool.spec.name)
    return tools
