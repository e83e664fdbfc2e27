"""`reflux serve`: the agents of a run folder over the OpenAI protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reflux import cli
from reflux.cli import contract

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import os
    import socket
    import tempfile
    from dataclasses import replace

    from reflux.agents.errors import UsageError
    from reflux.file_options import recorded_policy
    from reflux.overseers import recorded_demos
    from reflux.report.terminal import ERR, emit
    from reflux.routing import recorded_route
    from reflux.server.settings import (
        ServeSettings,
        agent_endpoints,
        check_exposure,
        read_serve_config,
    )

KEY = "REFLUX_API_KEY"
STOP_SECONDS = 5
"""How long running answers may take after Ctrl-C."""
BACKLOG = 2048
"""Connections that may wait to be accepted; uvicorn's default."""


def serve(
    run: contract.RunDir = contract.DEFAULT_RUN,
    host: Annotated[
        str, typer.Option(help="A host other than 127.0.0.1 needs REFLUX_API_KEY.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="0 picks a free port.", min=0, max=65535, metavar="PORT")
    ] = 8700,
    model: contract.Model = None,
    base: contract.BaseName = "",
    overseer: contract.Overseer = "model",
    candidates: contract.Candidates = None,
    route: contract.Route = None,
    demos: contract.Demos = None,
    policy: contract.Policy = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML: endpoints, hosts, origins, limits.")
    ] = None,
    record: Annotated[
        str,
        typer.Option(
            help="Also record what programs ask this endpoint by way of /record/v1, as `reflux "
            "record` does.",
            metavar="URL",
        ),
    ] = "",
    depth: contract.Depth = 1,
    calls: contract.Calls = 1000,
    tokens: contract.Tokens = 1_000_000,
    seconds: contract.Seconds = 600,
    max_tokens: contract.MaxTokens = 512,
    as_json: contract.Json = False,
) -> None:
    """Serve the agents over the OpenAI protocol until Ctrl-C."""
    # Slow imports that no other command needs.
    import uvicorn

    from reflux.server.app import create_app, open_more_files, server_config

    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=run):  # It records what it answers.
        open_more_files()
    serve_config = read_serve_config(config)
    folder = contract.folder_of(run, base)
    endpoints, model = agent_endpoints(serve_config, model, folder)
    settings = ServeSettings(
        **{name: value for name, value in vars(serve_config).items() if name != "endpoints"},
        host=host,
        api_key=os.environ.get(KEY, "").strip(),
        overseer=overseer or "model",
        route=recorded_route(route),
        demos=recorded_demos(demos),
        policy=recorded_policy(policy),
        model=model or "",
        endpoints=endpoints,
        upstream=record,
        config=config.absolute() if config else None,
        candidates=candidates,
        limits=contract.limits_of(depth, calls, tokens, seconds, candidates),
        max_tokens=max_tokens or 512,
    )
    app = create_app(folder, settings)
    with listening_socket(host, port) as listening:
        address, chosen_port = listening.getsockname()[:2]
        check_exposure(replace(settings, host=address))  # `host` may be a name.
        url = f"http://[{host}]:{chosen_port}" if ":" in host else f"http://{host}:{chosen_port}"
        if as_json:
            emit({"url": url, "run": str(run)})
        else:
            ERR.print(f"{run}: page {url}, API {url}/v1; press Ctrl-C to stop")
        options = server_config(app, timeout_graceful_shutdown=STOP_SECONDS, date_header=not record)
        cli.SERVES = True
        uvicorn.Server(options).run(sockets=[listening])
        # It returns where the process was started with SIGINT ignored, as a shell's `&` does.
        raise KeyboardInterrupt


def listening_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the address is taken, or does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns Nagle's algorithm off for sockets that are told to be of TCP. Otherwise the
        # first words of a stream wait for the acknowledgement of its headers, 40 ms on Linux.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # Before the address is printed.
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be served: {error}; take another --port") from error
    return listening
