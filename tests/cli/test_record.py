"""`reflux record`: what it tells a program, how it ends, what it refuses."""

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory, load
from tests.support.commanding import begin
from tests.support.serving import scripted, soon

pytestmark = pytest.mark.process
PROGRAM = """
import json, os, sys, urllib.request
def ask(url, text):
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": "Bearer sk-0123456789abcdef0123"})
    reply = urllib.request.urlopen(request, timeout=30)
    print(reply.status, len(reply.read()) > 0)
for text in sys.argv[1:]:
    ask(os.environ["OPENAI_BASE_URL"], text)
sys.exit(7 if os.environ["ANTHROPIC_BASE_URL"] + "/v1" == os.environ["OPENAI_BASE_URL"] else 1)
"""


def recorded(run: Path) -> list[Trajectory]:
    with closing(TraceStore(run / "traces.db")) as store:
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        return [found for id in ids if (found := load(store, id)) is not None]


def test_a_program_is_recorded_and_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(PROGRAM)
    run = tmp_path / "run"
    with scripted() as script:
        words = ["record", "--run", str(run), "--upstream", script.url, "--name", "a/b"]
        ended = begin([*words, "--", sys.executable, str(program), "hello", "there"]).wait()
    assert ended.code == 7
    assert ended.stdout.split() == ["200", "True"] * 2
    assert "2 calls recorded" in ended.stderr
    (trajectory,) = recorded(run)
    assert (trajectory.key, trajectory.told_by) == ("a/b", "path")
    assert [call.reply.text for call in trajectory.calls] == ["HELLO", "THERE"]
    assert all(b"sk-0123" not in file.read_bytes() for file in run.iterdir())


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    with scripted() as script:
        words = ["record", "--run", str(tmp_path), "--port", "0", "--json"]
        running = begin(words, {"OPENAI_BASE_URL": script.url})
        out = running.folder / "out"
        url = json.loads(soon(lambda: out.is_file() and out.read_text()))["url"]
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
        assert httpx2.post(f"{url}/chat/completions", json=body).status_code == 200
        os.kill(running.process.pid or 0, signal.SIGINT)
        ended = running.wait()
    assert ended.code == 130 and ended.stderr.splitlines()[-1] == "reflux: stopped"
    assert len(recorded(tmp_path)) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--", "no-such-program"], 3, "no-such-program cannot be run"),
        (["--upstream", "example.com"], 2, "no address of an endpoint"),
        (["--upstream", "http://localhost:8765/v1", "--port", "8765"], 2, "the recorder itself"),
        (["--name", "a"], 2, "/t/NAME/v1"),
        (["--host", "0.0.0.0", "--port", "0"], 2, "REFLUX_API_KEY"),  # noqa: S104
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, words: list[str], code: int, told: str) -> None:
    ended = begin(["record", "--run", str(tmp_path), *words]).wait()
    assert ended.code == code
    assert told in ended.stderr and "Traceback" not in ended.stderr
