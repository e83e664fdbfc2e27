"""`reflux record`: what any program asks an endpoint, and is told, becomes trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reflux import cli
from reflux.cli import contract

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import asyncio
    import os
    import signal
    import socket
    import sys
    from collections.abc import Sequence
    from contextlib import closing, nullcontext, suppress
    from urllib.parse import quote, urlsplit

    from reflux.agents.clients.connections import is_loopback
    from reflux.agents.errors import MissingError, UsageError
    from reflux.cli.serve import KEY, STOP_SECONDS, listening_socket
    from reflux.finetune.run_folder import RunFolder
    from reflux.report.terminal import ERR, command, counted, emit, say
    from reflux.server.settings import ServeSettings, check_exposure

    TOLD = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL")
    """Variables by which programs find their endpoint."""
    SWITCH_SECONDS = 0.0005
    """How long the recorder may keep the interpreter from the proxy; Python's default is 5 ms."""


def record(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            help="A program and its arguments, after --: it is run with the proxy as its endpoint.",
            metavar="[-- PROGRAM ARGUMENTS…]",
            show_default=False,
        ),
    ] = None,
    run: contract.RunDir = contract.DEFAULT_RUN,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The endpoint of both protocols. Default: OPENAI_BASE_URL and ANTHROPIC_BASE_URL, "
            "or their makers'.",
            metavar="URL",
        ),
    ] = None,
    anthropic_upstream: Annotated[
        str | None,
        typer.Option(help="The endpoint of Anthropic's protocol, without /v1.", metavar="URL"),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Make all calls of the program one trajectory of this name.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            help="The field of a request that names its trajectory, such as user or "
            "metadata.session.",
            metavar="FIELD",
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(help="A host other than 127.0.0.1 needs REFLUX_API_KEY.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            help="0 picks a free port, as for a program. Default: 8701.", min=0, max=65535
        ),
    ] = None,
    as_json: contract.Json = False,
) -> None:
    """Record what a program asks its endpoint: pass all on, unchanged, until it ends or Ctrl-C."""
    # Slow imports that few other commands need.
    from reflux.graphs.traces.recording.placing import Places
    from reflux.graphs.traces.recording.recorder import ExchangeRecorder
    from reflux.server.app import open_more_files
    from reflux.server.recording.proxy import create_record_app

    if name and not program:
        raise UsageError(
            "--name is for a program after --; others name a trajectory in their base URL, "
            "http://HOST:PORT/t/NAME/v1"
        )
    settings = ServeSettings(host=host, api_key=os.environ.get(KEY, "").strip())
    endpoints = upstream_of(upstream, anthropic_upstream)
    open_more_files()
    sys.setswitchinterval(SWITCH_SECONDS)
    default_port = 0 if program else 8701
    with (
        listening_socket(host, default_port if port is None else port) as listening,
        closing(RunFolder(run).store()) as store,
    ):
        address, chosen_port = listening.getsockname()[:2]
        check_exposure(ServeSettings(host=address, api_key=settings.api_key))
        for url in (endpoints.openai, endpoints.anthropic):
            _check_no_loop(url, chosen_port)
        url = f"http://[{host}]:{chosen_port}" if ":" in host else f"http://{host}:{chosen_port}"
        if as_json:
            emit({"url": f"{url}/v1", "run": str(run)})
        elif not program:
            ERR.print(f"{run}: set OPENAI_BASE_URL={url}/v1 or ANTHROPIC_BASE_URL={url}")
            ERR.print(f"passing on to {endpoints.openai}; press Ctrl-C to stop")
        cli.SERVES = not program
        places = Places(store, "url", key)
        recorder = ExchangeRecorder(places, lambda text: say(text, ERR))
        app = create_record_app(endpoints, recorder, settings)
        try:
            code = asyncio.run(_serve(app, listening, program or (), url, name))
        finally:
            recorder.close()
            hint = command("reflux", "traces", "list", "--run", run)
            say(f"{counted(recorder.recorded, 'call')} recorded in {run}; see {hint}", ERR)
    if code is None:
        raise KeyboardInterrupt
    raise typer.Exit(code)


def upstream_of(upstream: str | None, anthropic: str | None) -> Upstream:
    """The endpoints behind the proxy: as named, else those of the environment.

    Raises:
        UsageError: one is no address.
    """
    from reflux.server.recording.proxy import ANTHROPIC, OPENAI, Upstream

    other = os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC
    return Upstream(
        upstream or os.environ.get("OPENAI_BASE_URL") or OPENAI, anthropic or upstream or other
    )


def _check_no_loop(url: str, port: int) -> None:
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    if is_loopback(url) and (parts.port or default) == port:
        raise UsageError(f"{url} is the recorder itself: name the endpoint behind it by --upstream")


async def _serve(
    app: Starlette, listening: socket.socket, program: Sequence[str], url: str, name: str
) -> int | None:
    """Serve until the program ends, whose exit code this returns, or until Ctrl-C."""
    import uvicorn

    from reflux.server.app import server_config

    options = server_config(app, timeout_graceful_shutdown=STOP_SECONDS, date_header=False)
    server = uvicorn.Server(options)
    if not program:
        await server.serve(sockets=[listening])
        return None
    # The program decides what Ctrl-C means.
    setattr(server, "capture_signals", nullcontext)  # noqa: B010 - a method of the class
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        return await _run_program(program, _environment(url, name))
    finally:
        server.should_exit = True
        await serving


async def _run_program(program: Sequence[str], environment: dict[str, str]) -> int:
    """The exit code of a program, as a shell gives it; signals to us are passed on to it.

    Raises:
        MissingError: there is no such program.
    """
    try:
        process = await asyncio.create_subprocess_exec(*program, env=environment)
    except OSError as error:
        raise MissingError(f"{program[0]} cannot be run: {error}") from error
    loop = asyncio.get_running_loop()

    def pass_on() -> None:
        with suppress(ProcessLookupError):
            process.terminate()

    loop.add_signal_handler(signal.SIGINT, lambda: None)  # The terminal sends it to both.
    loop.add_signal_handler(signal.SIGTERM, pass_on)
    code = await process.wait()
    return code if code >= 0 else 128 - code


def _environment(url: str, name: str) -> dict[str, str]:
    """The environment of a program whose endpoint is the proxy."""
    base = f"{url}/t/{quote(name, safe='')}" if name else url
    told = (f"{base}/v1", f"{base}/v1", base)
    direct = {
        variable: ",".join(filter(None, (os.environ.get(variable), "127.0.0.1,localhost")))
        for variable in ("NO_PROXY", "no_proxy")
    }
    return {**os.environ, **direct, **dict(zip(TOLD, told, strict=True))}


if TYPE_CHECKING:
    from starlette.applications import Starlette

    from reflux.server.recording.proxy import Upstream
