"""Clients that live in environments of their own: npm's, LiteLLM, openai-agents.

`make clients` installs them and runs these tests.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.endpoints import Endpoint
from tests.support.serving import X, scripted, serving

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
LIMA = {"city": "Lima"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model `x` thinks, and whose model `json` answers an object."""
    with scripted() as script, scripted() as objects:
        script.thinks = "hm"
        objects.says = lambda question: json.dumps(LIMA)
        endpoints: Any = {
            X: Endpoint(script.client(), "far"),
            "json": Endpoint(objects.client(), "o"),
        }
        run = tmp_path_factory.mktemp("run")
        with serving(run, script, endpoints=endpoints, per_second=0) as url:
            yield f"{url}/v1"


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=SCRIPTS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def in_node(script: str, url: str) -> dict[str, Any]:
    if not shutil.which("node"):
        pytest.skip("there is no node: install Node.js")
    if not (SCRIPTS / "node_modules").is_dir():
        pytest.skip("the packages are missing: `make clients` installs them")
    return run("node", script, url)


def in_python(script: str, url: str) -> dict[str, Any]:
    if not PYTHON.is_file():
        pytest.skip("the packages are missing: `make clients` installs them")
    return run(str(PYTHON), "-I", script, url)  # Without our PYTHONPATH: `agents` is theirs.


@pytest.mark.npm
def test_the_openai_sdk_of_npm(url: str) -> None:
    found = in_node("openai_sdk.mjs", url)
    assert X in found["models"]
    assert (found["chat"], found["streamed"], found["tree"]) == ("ONE TWO", "X Y Z", "ONE+TWO")
    assert found["deltas"] == ["X", " Y", " Z"]
    assert found["parsed"] == found["output_parsed"] == LIMA
    assert found["ran"] == "RAIN IN PARIS"
    assert (found["response"], found["next"], found["retrieved"]) == ("ONE", "TWO", "ONE")
    assert found["final"] == "X Y Z"
    assert found["events"][0] == "response.created"
    assert found["events"][-1] == "response.completed"
    assert found["refused"] == [400, "unsupported_parameter", "response_format"]


@pytest.mark.npm
def test_the_ai_sdk(url: str) -> None:
    found = in_node("ai_sdk.mjs", url)
    for name in ("compatible", "chat", "responses"):
        got = found[name]
        assert (got["text"], got["finish"]) == (f"ONE TWO {name.upper()}", "stop"), name
        assert "".join(got["deltas"]) == got["streamed"] == f"X Y Z {name.upper()}"
        assert len(got["deltas"]) == 4
        assert (got["tokens"], got["streamedTokens"]) == (13, 14)
        assert (got["stepped"], got["steps"]) == ("RAIN IN PARIS", 2)
        assert got["called"] == [["weather", {"city": "Paris"}]]
        assert got["object"] == LIMA
        assert got["cut"] == ["ONE", "length"]
        thought = "" if name == "chat" else "hm"  # OpenAI's own chat completions send none.
        assert (got["reasoning"], got["streamedReasoning"]) == (thought, thought), name
    assert found["tree"] == "ONE+TWO"
    assert "→ one" in found["treeReasoning"]
    assert found["refused"][0] == 400 and "ask `base`" in found["refused"][1]


@pytest.mark.clients
def test_litellm(url: str) -> None:
    found = in_python("litellm_client.py", url)
    assert (found["text"], found["streamed"], found["tree"]) == ("ONE TWO", "X Y Z", "ONE+TWO")
    assert (found["reasoning"], found["tokens"]) == ("hm", 12)
    assert (found["called"], found["result"]) == ("weather", "RAIN")
    assert (found["object"], found["response"]) == (LIMA, "THREE")
    assert "ask `base`" in found["refused"]


@pytest.mark.clients
def test_openai_agents(url: str) -> None:
    found = in_python("agents_client.py", url)
    for name in ("responses", "chat"):
        got = found[name]
        assert got["text"] == f"ONE TWO {name.upper()}"
        assert got["tools"] == got["streamed"] == "RAIN IN PARIS"
        assert got["typed"] == LIMA
        assert "raw_response_event" in got["events"]
    assert (found["next"], found["tree"]) == ("TWO", "ONE+TWO")
