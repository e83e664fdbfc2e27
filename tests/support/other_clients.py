"""Clients that live in environments of their own, and what each must get from a server.

`make clients` installs them.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reflux.agents.clients.endpoints import Endpoint
from tests.support.serving import Scripted, X, scripted, serving

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
LIMA = {"city": "Lima"}
Found = Mapping[str, Any]
"""What a script prints."""
Feature = tuple[Callable[[Found], Any], Any]
"""What is read of it, and what that must be."""


@contextmanager
def served_models(folder: Path) -> Iterator[tuple[str, Scripted]]:
    """The base URL of a server whose model `x` thinks, and whose model `json` answers an object;
    and the endpoint of `x`."""
    with scripted() as script, scripted() as objects:
        script.thinks = "hm"
        objects.says = lambda question: json.dumps(LIMA)
        endpoints: Any = {
            X: Endpoint(script.client(), "far"),
            "json": Endpoint(objects.client(), "o"),
        }
        with serving(folder, script, endpoints=endpoints, per_second=0) as url:
            yield f"{url}/v1", script


def missing(script: str) -> str:
    """What a script lacks to run; empty if nothing."""
    if script.endswith(".py"):
        return "" if PYTHON.is_file() else "the packages are missing: `make clients` installs them"
    if not shutil.which("node"):
        return "there is no node: install Node.js"
    installed = (SCRIPTS / "node_modules").is_dir()
    return "" if installed else "the packages are missing: `make clients` installs them"


def run(script: str, url: str) -> Found:
    """Run a script against a server."""
    # Isolated from our PYTHONPATH: `agents` is theirs.
    command = [str(PYTHON), "-I"] if script.endswith(".py") else ["node"]
    done = subprocess.run(
        [*command, script, url], capture_output=True, text=True, timeout=120, cwd=SCRIPTS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _ai_sdk(name: str) -> dict[str, Feature]:
    def of(key: str) -> Callable[[Found], Any]:
        return lambda found: found[name][key]

    # OpenAI's own chat completions send no reasoning, and this client reads none.
    thought = "" if name == "chat" else "hm"
    streamed = f"X Y Z {name.upper()}"
    return {
        "whole": (of("text"), f"ONE TWO {name.upper()}"),
        "streamed": (lambda f: [f[name]["streamed"], "".join(f[name]["deltas"])], [streamed] * 2),
        "pieces": (lambda f: len(f[name]["deltas"]), 4),
        "tools": (lambda f: [f[name]["stepped"], f[name]["steps"]], ["RAIN IN PARIS", 2]),
        "tool choice": (of("called"), [["weather", {"city": "Paris"}]]),
        "schema": (of("object"), LIMA),
        "reasoning": (
            lambda f: [f[name]["reasoning"], f[name]["streamedReasoning"]],
            [thought] * 2,
        ),
        "finish reason": (
            lambda f: [f[name]["finish"], f[name]["cut"]],
            ["stop", ["ONE", "length"]],
        ),
        "usage": (lambda f: [f[name]["tokens"], f[name]["streamedTokens"]], [13, 14]),
    }


def _agents(name: str) -> dict[str, Feature]:
    return {
        "whole": (lambda f: f[name]["text"], f"ONE TWO {name.upper()}"),
        "streamed": (lambda f: "raw_response_event" in f[name]["events"], True),
        "tools": (lambda f: [f[name]["tools"], f[name]["streamed"]], ["RAIN IN PARIS"] * 2),
        "schema": (lambda f: f[name]["typed"], LIMA),
    }


CLIENTS: dict[str, tuple[str, dict[str, Feature]]] = {
    "npm openai, chat": (
        "openai_sdk.mjs",
        {
            "models": (lambda f: X in f["models"], True),
            "whole": (lambda f: f["chat"], "ONE TWO"),
            "streamed": (lambda f: [f["streamed"], f["deltas"]], ["X Y Z", ["X", " Y", " Z"]]),
            "tools": (lambda f: f["ran"], "RAIN IN PARIS"),
            "schema": (lambda f: f["parsed"], LIMA),
            "tree": (lambda f: f["tree"], "ONE+TWO"),
            "tree refuses a schema": (
                lambda f: f["refused"],
                [400, "unsupported_parameter", "response_format"],
            ),
        },
    ),
    "npm openai, responses": (
        "openai_sdk.mjs",
        {
            "whole": (lambda f: f["response"], "ONE"),
            "streamed": (
                lambda f: [f["final"], f["events"][0], f["events"][-1]],
                ["X Y Z", "response.created", "response.completed"],
            ),
            "schema": (lambda f: f["output_parsed"], LIMA),
            "next turn": (lambda f: [f["next"], f["retrieved"]], ["TWO", "ONE"]),
        },
    ),
    "AI SDK, openai-compatible": (
        "ai_sdk.mjs",
        _ai_sdk("compatible")
        | {
            "tree refuses tools": (
                lambda f: [f["refused"][0], "ask `base`" in f["refused"][1]],
                [400, True],
            )
        },
    ),
    "AI SDK, chat": ("ai_sdk.mjs", _ai_sdk("chat")),
    "AI SDK, responses": (
        "ai_sdk.mjs",
        _ai_sdk("responses")
        | {"tree": (lambda f: [f["tree"], "→ one" in f["treeReasoning"]], ["ONE+TWO", True])},
    ),
    "LiteLLM, chat": (
        "litellm_client.py",
        {
            "whole": (lambda f: f["text"], "ONE TWO"),
            "streamed": (lambda f: f["streamed"], "X Y Z"),
            "tools": (lambda f: [f["called"], f["result"]], ["weather", "RAIN"]),
            "schema": (lambda f: f["object"], LIMA),
            "reasoning": (lambda f: f["reasoning"], "hm"),
            "usage": (lambda f: f["tokens"], 12),
            "tree": (lambda f: f["tree"], "ONE+TWO"),
            "tree refuses tools": (lambda f: "ask `base`" in f["refused"], True),
        },
    ),
    "LiteLLM, responses": ("litellm_client.py", {"whole": (lambda f: f["response"], "THREE")}),
    "openai-agents, chat": ("agents_client.py", _agents("chat")),
    "openai-agents, responses": (
        "agents_client.py",
        _agents("responses")
        | {"next turn": (lambda f: f["next"], "TWO"), "tree": (lambda f: f["tree"], "ONE+TWO")},
    ),
}
"""By client and interface: its script, and its features."""
