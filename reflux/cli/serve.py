"""`reflux serve`: the agents of a run folder, for every client of the OpenAI protocol."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from reflux.agents.errors import UsageError
from reflux.cli.contract import ERR, RUNS, Depth, Json, Model, RunDir, emit
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import Limits
from reflux.server.settings import (
    ServeSettings,
    all_endpoints,
    check_exposure,
    read_serve_config,
)

KEY = "REFLUX_API_KEY"
STOP_SECONDS = 5
"""For answers under way when the server is told to end."""
BACKLOG = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


def serve(
    run: RunDir = RUNS / "demo",
    host: Annotated[str, typer.Option(help="Others than 127.0.0.1 need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8700,
    model: Model = None,
    overseer: Annotated[str, typer.Option(help="H of `amplified`; model, plain, …")] = "model",
    config: Annotated[
        Path | None, typer.Option(help="YAML: endpoints, hosts, origins, limits.", metavar="FILE")
    ] = None,
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Of one answer, at the most.", min=0)] = 1000,
    tokens: Annotated[int, typer.Option(help="Of one answer, at the most.", min=0)] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="Of one answer, at the most.", min=0)] = 600,
    max_tokens: Annotated[int, typer.Option(help="Of one reply.", min=1)] = 512,
    as_json: Json = False,
) -> None:
    """Serve the agents over HTTP, in the OpenAI protocol, until interrupted."""
    # Only this command needs them, and they take a while to import.
    import uvicorn

    from reflux.server.app import create_app
    from reflux.server.http_limits import open_more_files, server_config

    open_more_files()
    said = read_serve_config(config)
    settings = ServeSettings(
        host=host,
        port=port,
        api_key=os.environ.get(KEY, "").strip(),
        overseer=overseer,
        model=model or "",
        endpoints=all_endpoints(said, model),
        config=config.absolute() if config else None,
        limits=Limits(depth=depth, calls=calls, tokens=tokens, seconds=seconds),
        max_tokens=max_tokens,
        **said.model_dump(exclude={"endpoints"}),
    )
    app = create_app(RunFolder(run), settings)
    with _bound(host, port) as listening:
        check_exposure(replace(settings, host=listening.getsockname()[0]))  # A name may lie.
        url = _url(host, listening.getsockname()[1])
        if as_json:
            emit({"url": url, "run": str(run)})
        else:
            ERR.print(f"{run}: page {url}, API {url}/v1; an interrupt ends it", highlight=False)
        options = server_config(app, timeout_graceful_shutdown=STOP_SECONDS)
        uvicorn.Server(options).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: the address is taken, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # Whoever reads the address is let in, however soon.
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be served: {error}; take another --port") from error
    return listening


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
