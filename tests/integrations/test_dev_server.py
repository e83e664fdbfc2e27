"""LangGraph's own dev server loads `langgraph.json` and answers, in a separate environment.

`make dev-server` makes that environment and runs these; they are no part of `make test`, because
`langgraph-cli[inmem]` is under the Elastic licence and nothing here depends on it.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.serving import Scripted, scripted, soon

pytestmark = pytest.mark.dev_server
ROOT = Path(__file__).parents[2]
LANGGRAPH = Path(os.environ.get("DEV_SERVER_VENV", ROOT / ".venv-dev-server"), "bin", "langgraph")


@pytest.fixture(scope="module")
def script() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


@pytest.fixture(scope="module")
def server(script: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of `langgraph dev`, whose X is the scripted endpoint."""
    if not LANGGRAPH.is_file():
        pytest.fail(f"{LANGGRAPH} is not there: run `make dev-server`")
    # It keeps its threads where it is started, and reads the paths of the config from there.
    folder = tmp_path_factory.mktemp("dev-server")
    for name in ("langgraph.json", "agents", "finetune", "graphs", "reflux"):
        (folder / name).symlink_to(ROOT / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(LANGGRAPH), "dev", "--no-browser"]
    command += ["--no-reload", "--allow-blocking", "--port", str(port)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LANG", "OPENAI_", "REFLUX_"))}
    env |= {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k", "PYTHONPATH": str(ROOT)}
    env |= {"REFLUX_MODEL": "far", "REFLUX_OVERSEER": "plain", "REFLUX_RUN": str(folder / "run")}
    env |= {"LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    log = folder / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return client.get("/ok").status_code == 200
            except httpx2.TransportError:
                return False

        try:
            for _ in range(6):  # It may take a minute where it was never started before.
                try:
                    soon(answers)
                    break
                except AssertionError as error:
                    if process.poll() is not None:
                        raise error
            yield client
        finally:
            process.terminate()


def waited(server: httpx2.Client, path: str, **asked: Any) -> dict[str, Any]:
    got = server.post(path, json={"assistant_id": "reflux", **asked})
    assert got.status_code == 200, got.text
    return got.json()


def test_it_answers_a_plain_question_and_a_conversation(
    server: httpx2.Client, script: Scripted
) -> None:
    got = waited(server, "/runs/wait", input={"question": "one two"})
    assert (got["answer"], got["status"], got["error"]) == ("ONE TWO", "unchecked", None)
    assert [message["type"] for message in got["messages"]] == ["human", "ai"]
    assert got["messages"][-1]["response_metadata"]["spent"]["calls"] == 1
    said = [{"role": "user", "content": "three"}]
    got = waited(server, "/runs/wait", input={"messages": said})
    assert got["messages"][-1]["content"] == "THREE"
    assert script.questions()[-1] == "three"


def test_a_person_is_waited_for_and_the_thread_goes_on_with_what_they_say(
    server: httpx2.Client, script: Scripted
) -> None:
    thread = server.post("/threads", json={}).json()["thread_id"]
    before = len(script.asked)
    waits = waited(
        server,
        f"/threads/{thread}/runs/wait",
        input={"question": "who knows?"},
        context={"overseer": "human"},
    )
    ((waiting),) = waits["__interrupt__"]
    assert waiting["value"]["form"]["question"]
    step = {"kind": "answer", "text": "I do."}
    got = waited(
        server,
        f"/threads/{thread}/runs/wait",
        command={"resume": {waiting["id"]: step}},
        context={"overseer": "human"},
    )
    assert (got["answer"], got["status"]) == ("I do.", "unchecked")
    assert len(script.asked) == before


def test_the_tree_is_streamed_as_it_grows(server: httpx2.Client) -> None:
    asked = {"input": {"question": "five six"}, "stream_mode": ["custom"]}
    got = server.post("/runs/stream", json={"assistant_id": "reflux", **asked})
    lines = [line.removeprefix("data: ") for line in got.text.splitlines() if "data: {" in line]
    kinds = [event["event"] for event in map(json.loads, lines) if "event" in event]
    assert "called" in kinds and kinds[-1] == "answered"
