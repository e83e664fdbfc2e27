"""Tools are granted by name: the copies have those that they are granted and no others."""

import sys
from pathlib import Path

import pytest

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.tools.protocol import ToolReply, run_call
from reflux.agents.types import ToolCall
from reflux.ask_context import open_tools


async def test_copies_have_the_tools_that_they_are_granted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The harbour was dredged in 1911.")
    async with open_tools([f"documents:{tmp_path}", "python"]) as grants:
        assert [tool.spec.name for tool in grants["answer"]] == ["documents", "python"]
        call = ToolCall("1", "python", '{"code": "1 + 1"}')
        assert await run_call(grants["answer"], call) == ToolReply("2")
    async with open_tools(["calculator"]) as grants:
        assert not (await run_call(grants["answer"], call)).ok


async def test_without_names_there_are_no_tools() -> None:
    async with open_tools([]) as grants:
        assert grants == {}


@pytest.mark.timeout(120)
async def test_an_mcp_server_is_named_by_its_command(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "from mcp.server.fastmcp import FastMCP\n"
        "server = FastMCP('small')\n"
        "@server.tool()\n"
        "def double(number: int) -> int:\n"
        "    'Twice a number.'\n"
        "    return 2 * number\n"
        "server.run()\n"
    )
    async with open_tools(["calculator", f"mcp:{sys.executable} {script}"]) as grants:
        assert [tool.spec.name for tool in grants["answer"]] == ["calculator", "double"]
        reply = await run_call(grants["answer"], ToolCall("1", "double", '{"number": 21}'))
        assert reply == ToolReply("42")


@pytest.mark.parametrize(
    ("granted", "why"),
    [
        (["shell"], "no tool 'shell'; there are: calculator, python, documents:FOLDER"),
        ([""], "no tool ''"),
        (["documents"], "write documents:FOLDER"),
        (["mcp: "], "write mcp:COMMAND"),
        (["calculator:12"], "write calculator"),
        (["documents:/no/such/folder"], "is not a folder"),
        (["python", "python"], "two tools named 'python'"),
    ],
    ids=str,
)
async def test_what_cannot_be_granted_is_refused(granted: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        async with open_tools(granted):
            raise AssertionError


async def test_a_server_that_is_not_there_is_missing() -> None:
    with pytest.raises(MissingError, match="no-such-program"):
        async with open_tools(["calculator", "mcp:no-such-program"]):
            raise AssertionError
