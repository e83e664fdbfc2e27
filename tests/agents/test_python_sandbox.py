"""The sandbox: short programs run, and nothing of this machine is there for them to reach."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from reflux.agents.tools.protocol import REPLY_CHARS, ToolReply
from reflux.agents.tools.python_sandbox import NOTHING, SHOWN_CHARS, Sandbox, SandboxLimits

pytestmark = pytest.mark.process

QUICK = SandboxLimits(seconds=0.5)


async def run(code: str, limits: SandboxLimits = QUICK) -> ToolReply:
    return await Sandbox(limits).call({"code": code})


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 + 1", "2"),
        ("print('a', 1)\nprint('b')", "a 1\nb"),
        ("print('sum:')\nsum(range(10))", "sum:\n45"),
        ("'text as it is'", "text as it is"),
        ("x = 1", NOTHING),
        ("def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nf(15)", "610"),
        (
            "import json, math, re\njson.dumps([math.gcd(4, 6), re.findall('b+', 'abb')])",
            '[2, ["bb"]]',
        ),
        (
            "{'c', 'a', 'b'}, {3: {2, 1}}, [(1,)], set(), ()",
            "({'a', 'b', 'c'}, {3: {1, 2}}, [(1,)], set(), ())",
        ),
        ("import random\nrandom.random()", "0.8444218515250481"),
        ("import time\ntime.sleep(1000)\n'awake'", "awake"),
    ],
)
async def test_a_program_replies_with_what_it_printed_and_its_last_value(
    code: str, text: str
) -> None:
    assert await run(code) == ToolReply(text)


async def test_a_question_may_hold_the_program_in_a_code_block() -> None:
    question = "What does this print?\n```python\nprint(6 * 7)\n```\nThanks."
    assert await Sandbox(QUICK).answer(question) == ToolReply("42")
    assert await Sandbox(QUICK).answer("print(6 * 7)") == ToolReply("42")


async def test_a_program_that_fails_replies_with_its_traceback() -> None:
    reply = await run("print('before')\nx = [1]\nx[3]")
    assert not reply.ok
    assert reply.text.startswith("before\n")
    assert "line 3" in reply.text
    assert "IndexError" in reply.text
    assert "SyntaxError" in (await run("def (")).text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "sum(range(10**12))",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ],
)
async def test_a_program_that_does_not_end_is_stopped(code: str) -> None:
    assert await run(code) == ToolReply("stopped: it ran for more than 0.5 seconds", ok=False)


BOMBS = [
    "'a' * 10**10",
    "[0] * 10**9",
    "x = []\nwhile True: x.append('y' * 1000)",
    "9**9**9",
    "x = 'a'\nwhile True: x += x",
    "[i for i in range(10**9)]",
    "x = {}\nfor i in range(10**8): x[i] = [i]",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("code", BOMBS)
async def test_a_program_that_eats_memory_is_stopped(code: str) -> None:
    reply = await run(code, SandboxLimits(seconds=20))
    assert not reply.ok
    assert "32 MiB" in reply.text


@pytest.mark.timeout(120)
def test_the_process_of_a_memory_bomb_never_grows_beyond_its_cap() -> None:
    program = (
        "import asyncio, resource, sys\n"
        "from reflux.agents.tools.python_sandbox import Sandbox, SandboxLimits\n"
        "async def main():\n"
        "    tool = Sandbox(SandboxLimits(seconds=20))\n"
        "    await tool.call({'code': '1 + 1'})\n"
        "    small = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "    for code in sys.argv[1:]:\n"
        "        await tool.call({'code': code})\n"
        "    print(small, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *BOMBS], capture_output=True, text=True, check=True
    )
    small, largest = map(int, ran.stdout.split())
    assert 0 < small <= largest < small + 2 * 32 * 1024  # kB; the cap, and as much for overhead


async def test_a_program_that_calls_itself_for_ever_is_stopped() -> None:
    reply = await run("def f(n):\n    return f(n + 1)\nf(0)")
    assert not reply.ok
    assert "RecursionError" in reply.text


@pytest.mark.timeout(60)
async def test_a_program_that_prints_for_ever_is_stopped_and_its_reply_is_short() -> None:
    reply = await run("while True: print('x' * 100)")
    assert not reply.ok
    assert "print 64 kB" in reply.text
    assert len(reply.text) <= REPLY_CHARS
    reply = await run("print('x' * 50_000)\n'y' * 50_000")
    assert len(reply.text) == 2 * SHOWN_CHARS + 1


OUTWARD = [
    *("socket", "subprocess", "urllib.request", "http.client", "ctypes", "shutil", "importlib"),
    *("multiprocessing", "threading", "builtins", "gc", "inspect", "pickle", "signal"),
]


@pytest.mark.parametrize("module", OUTWARD)
async def test_there_is_no_module_that_reaches_out(module: str) -> None:
    reply = await run(f"import {module}")
    assert not reply.ok
    assert "No module named" in reply.text


@pytest.mark.parametrize(
    "code",
    [
        "open(PATH).read()",
        "open(PATH, 'rb').read()",
        "from pathlib import Path\nPath(PATH).read_text()",
        "import os\nos.listdir(FOLDER)",
        "import os\nos.stat(PATH)",
        "from pathlib import Path\nlist(Path(FOLDER).iterdir())",
        "open(FOLDER + '/new.txt', 'w').write('x')",
        "from pathlib import Path\nPath(FOLDER + '/new.txt').write_text('x')",
        "import os\nos.remove(PATH)",
        "from pathlib import Path\nPath(PATH).unlink()",
        "import os\nos.rename(PATH, FOLDER + '/new.txt')",
        "import os\nos.mkdir(FOLDER + '/new')",
        "import os\nos.system('touch ' + FOLDER + '/new.txt')",
        "import os\nos.environ['HOME']",
        "import os\nos.getenv('HOME')",
        "import os\nos.urandom(4)",
        "__import__('os').listdir(FOLDER)",
        "eval('open(PATH).read()')",
        "().__class__.__bases__[0].__subclasses__()",
        "input()",
        "import datetime\ndatetime.datetime.now()",
        "import time\ntime.time()",
    ],
)
async def test_a_program_has_no_files_no_environment_and_no_clock(
    code: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    reply = await run(f"PATH = {str(secret)!r}\nFOLDER = {str(tmp_path)!r}\n{code}")
    assert not reply.ok
    assert "hunter2" not in reply.text
    assert names_in(tmp_path) == ["secret.txt"]
    assert secret.read_text() == "hunter2"


@pytest.mark.parametrize(
    "code", ["\0", "\ud800", "(" * 5000, "raise SystemExit(3)", "x=1\n" * 4999]
)
async def test_any_text_gets_a_reply_that_can_be_sent(code: str) -> None:
    assert (await run(code)).text.encode()


async def test_programs_side_by_side_do_not_see_each_other() -> None:
    codes = [f"x = {i}\nx" for i in range(12)] + ["x"] * 4
    replies = await asyncio.gather(*(run(code) for code in codes))
    assert [reply.text for reply in replies[:12]] == [str(i) for i in range(12)]
    assert all("NameError" in reply.text for reply in replies[12:])


@pytest.mark.timeout(120)
def test_a_process_that_ran_programs_ends_cleanly() -> None:
    program = (
        "import asyncio\n"
        "from reflux.agents.tools.python_sandbox import Sandbox\n"
        "async def main():\n"
        "    return await asyncio.gather(*(Sandbox().answer('1 + 1') for _ in range(4)))\n"
        "assert [reply.text for reply in asyncio.run(main())] == ['2'] * 4\n"
    )
    for _ in range(8):
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
