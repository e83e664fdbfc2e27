"""A Reflux server in a separate process, with a mock endpoint as the agent."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mock_endpoint import SPLIT
from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step

MODELS = {"x": 1_024, "narrow": 8}
"""Names of the endpoint's model, each with its maximum requests in flight."""


def split(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Overseer: ask N sub-questions for `split into N`, then join the answers."""
    if transcript:
        return Answer(" ".join(str(said.answer) for said in transcript))
    if not (may_ask and question.startswith(SPLIT)):
        return PASS
    parts = int(question.removeprefix(SPLIT).split()[0])
    return Ask.of(*(f"part {part} of {question}" for part in range(parts)))


@contextmanager
def served_app(folder: Path, endpoint_url: str, x: str = "x") -> Iterator[str]:
    """Run a server for the length of the block, with `split` as overseer; yield its base URL."""
    command = [sys.executable, "-m", "benchmarks.served_app"]
    command += ["--run", str(folder), "--endpoint", endpoint_url, "--x", x]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            port = json.loads(process.stdout.readline())
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _serve(run: Path, endpoint_url: str, x: str) -> None:

    import uvicorn

    from reflux.cli.serve import listening_socket
    from reflux.finetune.run_folder import RunFolder
    from reflux.server.app import create_app, server_config
    from reflux.server.settings import ServeSettings

    clients = {
        name: Endpoint(OpenAIClient(endpoint_url, "none", concurrency=max_votes), "mock")
        for name, max_votes in MODELS.items()
    }
    settings = ServeSettings(
        overseer="split", endpoints=clients, model=x, per_second=0, max_concurrency=4_096
    )
    app = create_app(RunFolder(run), settings, {"split": ScriptedOverseer("split", split)})
    with listening_socket("127.0.0.1", 0) as listening:
        print(listening.getsockname()[1], flush=True)
        config = server_config(app, timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--run", "--endpoint", "--x"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    _serve(Path(given.run), given.endpoint, given.x)
