"""`reflux serve`: the agents of a run folder, for every client of the OpenAI protocol."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from agents.client import endpoint_from_env
from agents.endpoints import Endpoint
from agents.errors import MissingError, UsageError
from finetune.rounds_config import read_yaml
from finetune.run_folder import RunFolder
from graphs.state import Limits
from reflux.app import ERR, RUNS, Depth, Json, Model, RunDir, emit
from reflux.guards import refuse_open_door
from reflux.serve_settings import ServeSettings

KEY = "REFLUX_API_KEY"
ENDPOINT_REQUESTS = 256
"""Requests under way at once at each endpoint."""
STOP_SECONDS = 5
"""For answers under way when the server is told to end."""
BACKLOG = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointConfig(_Strict):
    """A model of another endpoint."""

    base_url: str
    model: str
    api_key_env: str = ""
    """Name of the variable that holds its key; a key itself has no place in a file."""


class ServeConfig(_Strict):
    """What `--config` may say."""

    endpoints: dict[str, EndpointConfig] = {}
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = Field(default=1_000_000, ge=1)
    body_seconds: float = Field(default=30, gt=0)
    per_second: float = Field(default=100, ge=0)
    burst: int = Field(default=1_000, ge=1)
    together: int = Field(default=1_024, ge=1)
    kept_events: int = Field(default=200_000, ge=0)


def serve(
    run: RunDir = RUNS / "demo",
    host: Annotated[str, typer.Option(help="Others than 127.0.0.1 need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8700,
    model: Model = None,
    overseer: Annotated[str, typer.Option(help="H of `amplified`; model, plain, …")] = "model",
    config: Annotated[
        Path | None, typer.Option(help="YAML: endpoints, hosts, origins, limits.")
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

    from reflux.server import create_app
    from reflux.wire import open_more_files, server_config

    open_more_files()
    said = _read(config)
    settings = ServeSettings(
        host=host,
        port=port,
        api_key=os.environ.get(KEY, "").strip(),
        overseer=overseer,
        model=model or "",
        endpoints=_endpoints(said, model),
        limits=Limits(depth=depth, calls=calls, tokens=tokens, seconds=seconds),
        max_tokens=max_tokens,
        **said.model_dump(exclude={"endpoints"}),
    )
    app = create_app(RunFolder(run), settings)
    with _bound(host, port) as listening:
        refuse_open_door(replace(settings, host=listening.getsockname()[0]))  # A name may lie.
        url = _url(host, listening.getsockname()[1])
        if as_json:
            emit({"url": url, "run": str(run)})
        else:
            ERR.print(f"{run}: page {url}, API {url}/v1; an interrupt ends it", highlight=False)
        how = server_config(app, timeout_graceful_shutdown=STOP_SECONDS)
        uvicorn.Server(how).run(sockets=[listening])


def _read(path: Path | None) -> ServeConfig:
    if path is None:
        return ServeConfig()
    try:
        return ServeConfig.model_validate(read_yaml(path) or {})
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _endpoints(config: ServeConfig, model: str | None) -> dict[str, Endpoint]:
    """Those of the config, and that of OPENAI_BASE_URL under the name of X.

    Raises:
        UsageError: an address or a key that cannot be used, or no name of the model.
        MissingError: a variable that is to hold a key is not set.
    """
    found: dict[str, Endpoint] = {}
    for name, told in config.endpoints.items():
        key = os.environ.get(told.api_key_env, "") if told.api_key_env else "none"
        if not key:
            raise MissingError(f"{told.api_key_env}, the key of {name}, is not set")
        env = {"OPENAI_BASE_URL": told.base_url, "OPENAI_API_KEY": key}
        found[name] = _endpoint(env, told.model)
    if endpoint_from_env(dict(os.environ)) is not None and model not in found:
        if model is None:
            raise UsageError("OPENAI_BASE_URL is set: name its model with --model")
        found[model] = _endpoint(dict(os.environ), model)
    return found


def _endpoint(env: dict[str, str], model: str) -> Endpoint:
    client = endpoint_from_env(env, concurrency=ENDPOINT_REQUESTS)
    if client is None:
        raise UsageError(f"the endpoint of {model} has no base_url")
    return Endpoint(client, model)


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
