"""Tools are named in a config, and a role has those that it is granted and no others."""

import sys
from pathlib import Path

import pytest

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.tools.protocol import ToolReply, run_call
from reflux.agents.types import ToolCall
from reflux.ask_context import open_tools


async def test_a_role_has_the_tools_that_it_is_granted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The harbour was dredged in 1911.")
    granted = {"answer": ["calculator"], "overseer": [f"documents:{tmp_path}", "python"]}
    async with open_tools(granted) as grants:
        names = {role: [tool.spec.name for tool in tools] for role, tools in grants.items()}
        assert names == {"answer": ["calculator"], "overseer": ["documents", "python"]}
        asked = ToolCall("1", "python", '{"code": "1 + 1"}')
        assert await run_call(grants["overseer"], asked) == ToolReply("2")
        assert not (await run_call(grants["answer"], asked)).ok


async def test_without_a_word_nobody_has_any() -> None:
    async with open_tools({}) as grants:
        assert grants == {}


async def test_roles_share_a_tool_that_both_are_granted() -> None:
    async with open_tools({"answer": ["python"], "overseer": ["python"]}) as grants:
        assert grants["answer"][0] is grants["overseer"][0]


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
    granted = {"answer": ["calculator", f"mcp:{sys.executable} {script}"]}
    async with open_tools(granted) as grants:
        assert [tool.spec.name for tool in grants["answer"]] == ["calculator", "double"]
        reply = await run_call(grants["answer"], ToolCall("1", "double", '{"number": 21}'))
        assert reply == ToolReply("42")


@pytest.mark.parametrize(
    ("granted", "why"),
    [
        ({"answer": ["shell"]}, "no tool 'shell'; there are: calculator, python, documents:FOLDER"),
        ({"answer": [""]}, "no tool ''"),
        ({"answer": ["documents"]}, "write documents:FOLDER"),
        ({"answer": ["mcp: "]}, "write mcp:COMMAND"),
        ({"answer": ["calculator:12"]}, "write calculator"),
        ({"answer": ["documents:/no/such/folder"]}, "is no folder"),
        ({"answer": ["python", "python"]}, "two tools named 'python'"),
        ({"everyone": ["python"]}, "no role 'everyone'"),
    ],
    ids=str,
)
async def test_what_cannot_be_granted_is_refused(granted: dict[str, list[str]], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        async with open_tools(granted):
            raise AssertionError


async def test_a_server_that_is_not_there_is_missing() -> None:
    with pytest.raises(MissingError, match="no-such-program"):
        async with open_tools({"answer": ["calculator", "mcp:no-such-program"]}):
            raise AssertionError
