"""The tools of a real MCP server, by stdio and HTTP, also where it hangs, dies or never starts."""

import asyncio
import json
import socket
import sys

import pytest

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.tools.langchain import LangChainTool, mcp_tools
from reflux.agents.tools.protocol import REPLY_CHARS, ToolReply

pytestmark = pytest.mark.process

SERVER = '''
import os, sys, time
from mcp.server.fastmcp import FastMCP

if "--mute" in sys.argv:
    time.sleep(3600)
server = FastMCP("small", port=int(os.environ.get("PORT", "0")))
calls = 0

@server.tool()
def add(a: int, b: int) -> int:
    """The sum of two whole numbers."""
    return a + b

@server.tool()
def count() -> int:
    """How often it was called."""
    global calls
    calls += 1
    return calls

@server.tool()
def fail() -> str:
    """Fails."""
    raise RuntimeError("out of paper")

@server.tool()
async def hang() -> str:
    """Hangs."""
    import asyncio
    await asyncio.sleep(3600)

@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)

@server.tool(name="env.of")
def env(name: str) -> dict[str, str | None]:
    """A variable of the environment."""
    return {name: os.environ.get(name)}

@server.tool()
def long() -> str:
    """A long text."""
    return "x" * 1_000_000

server.run("streamable-http" if "PORT" in os.environ else "stdio")
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command that starts a small MCP server."""
    path = tmp_path_factory.mktemp("mcp") / "a server.py"
    path.write_text(SERVER)
    return f"{sys.executable} '{path}'"


@pytest.mark.timeout(120)
async def test_the_tools_of_an_mcp_server_are_tools(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    async with mcp_tools(server) as tools:
        named = {tool.spec.name: tool for tool in tools}
        assert named["add"].spec.description == "The sum of two whole numbers."
        assert json.loads(named["add"].spec.parameters)["required"] == ["a", "b"]
        assert await named["add"].call({"a": 2, "b": 40}) == ToolReply("42")
        assert await named["add"].answer('{"a": 2, "b": 3}') == ToolReply("5")

        wrong = await named["add"].call({"a": "two"})
        assert not wrong.ok
        failed = await named["fail"].call({})
        assert (failed.ok, "out of paper" in failed.text) == (False, True)
        assert len((await named["long"].call({})).text) == REPLY_CHARS

        # One server for all calls, side by side too, and none of our keys in it.
        counted = await asyncio.gather(*(named["count"].call({}) for _ in range(5)))
        assert sorted(reply.text for reply in counted) == ["1", "2", "3", "4", "5"]
        seen = await named["env_of"].answer("OPENAI_API_KEY")
        assert json.loads(seen.text) == {"OPENAI_API_KEY": None}


@pytest.mark.timeout(120)
async def test_a_server_that_hangs_or_dies_fails_its_call_and_no_other(server: str) -> None:
    async with mcp_tools(server, seconds=20) as tools:
        named = {tool.spec.name: tool for tool in tools}
        slow = {tool.spec.name: LangChainTool(tool._tool, 0.2) for tool in tools}
        assert "0.2 seconds" in (await slow["hang"].call({})).text
        assert await named["count"].call({}) == ToolReply("1")

        died = await named["die"].call({})
        assert not died.ok
        # It is started again, and knows nothing of the calls before.
        again = [await named["count"].call({}) for _ in range(3)]
        assert [reply.text for reply in again] == ["1", "2", "3"]


@pytest.mark.timeout(120)
async def test_a_server_that_runs_elsewhere_is_named_by_its_address(server: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = server.split("'")[1]
    process = await asyncio.create_subprocess_exec(
        "env", f"PORT={port}", sys.executable, script, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        async with mcp_tools(f"http://127.0.0.1:{port}/mcp") as tools:
            named = {tool.spec.name: tool for tool in tools}
            assert await named["add"].call({"a": 2, "b": 40}) == ToolReply("42")
    finally:
        process.kill()
        await process.wait()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "command", ["no-such-program --x", "false", "true", "echo hello", "http://127.0.0.1:9/mcp"]
)
async def test_a_server_that_does_not_start_is_missing(command: str) -> None:
    with pytest.raises(MissingError, match=r"did not start.*(speaks MCP|:9)"):
        async with mcp_tools(command):
            raise AssertionError


@pytest.mark.timeout(120)
async def test_a_server_that_never_answers_is_missing(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reflux.agents.tools.langchain.START_SECONDS", 0.5)
    with pytest.raises(MissingError, match=r"not within 0\.5 seconds"):
        async with mcp_tools(f"{server} --mute"):
            raise AssertionError


@pytest.mark.parametrize("command", ["", "  ", "'open"])
async def test_a_command_that_is_none_is_wrong_usage(command: str) -> None:
    with pytest.raises(UsageError):
        async with mcp_tools(command):
            raise AssertionError


async def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_mcp_adapters.tools", None)
    with pytest.raises(MissingError, match=r"pip install .*\[mcp\]'"):
        async with mcp_tools("some-server"):
            raise AssertionError
