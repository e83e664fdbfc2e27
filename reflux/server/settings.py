"""What a server is told before it starts; nothing of it can come from a request.

`--config` of `reflux serve`, and of `reflux eval` for its endpoints: what a file may say.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reflux.agents.clients.endpoints import Endpoint, endpoint_from_env
from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import MissingError, UsageError
from reflux.ask_context import DEFAULT_OVERSEER
from reflux.finetune.config import problems, read_yaml
from reflux.graphs.amplify.context import Limits


@dataclass(frozen=True)
class ServeSettings:
    """How a run folder is served."""

    host: str = "127.0.0.1"
    port: int = 8700
    api_key: str = field(default="", repr=False)
    """What clients have to show; needed where `host` is not this machine alone."""
    hosts: tuple[str, ...] = ()
    """Names, without ports, under which the server is reached beside its own."""
    origins: tuple[str, ...] = ()
    """Pages of other origins that may use it, as `http://localhost:3000`."""
    overseer: str = DEFAULT_OVERSEER
    """H of the model `amplified`."""
    model: str = ""
    """X; where empty, the promoted student, or `base`."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    """Models of other endpoints, by the names under which they are served."""
    config: Path | None = None
    """The file that told of them, for the commands that the page starts."""
    limits: Limits = field(default_factory=lambda: Limits(seconds=600))
    """The caps of one amplified answer."""
    max_tokens: int = 512
    """Of a reply, and of each copy's, where a request says nothing."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(parallel=8, context=2048))
    """AskOptions `base` and the students run."""
    body_bytes: int = 1_000_000
    """Of a request, at the most."""
    body_seconds: float = 30.0
    """In which a request's body has to come."""
    per_second: float = 100.0
    """Requests of one client, in the long run; 0 for no limit."""
    burst: int = 1_000
    """Requests of one client at once, before that limit counts."""
    max_concurrency: int = 1_024
    """Requests under way, of all clients."""
    kept_events: int = 200_000
    """Events of answers that are kept to be replayed; the oldest answers' go first."""


REQUESTS = 256
"""Under way at once at each endpoint."""


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
    max_concurrency: int = Field(default=1_024, ge=1)
    kept_events: int = Field(default=200_000, ge=0)


def read_serve_config(path: Path | None) -> ServeConfig:
    """From a YAML file, or the defaults.

    Raises:
        UsageError: no such file, or unknown keys.
    """
    if path is None:
        return ServeConfig()
    try:
        return ServeConfig.model_validate(read_yaml(path) or {})
    except ValidationError as error:
        raise UsageError(f"{path}: {problems(error)}") from error


def configured(config: ServeConfig) -> dict[str, Endpoint]:
    """The endpoints of the config by name.

    Raises:
        UsageError: a name, an address or a key that cannot be used.
        MissingError: a variable that is to hold a key is not set.
    """
    found: dict[str, Endpoint] = {}
    for name, told in config.endpoints.items():
        if "," in name or name != name.strip() or not name:
            raise UsageError(
                f"an endpoint is called {name!r}: take a name without commas and outer blanks"
            )
        key = os.environ.get(told.api_key_env, "") if told.api_key_env else "none"
        if not key:
            raise MissingError(f"{told.api_key_env}, the key of {name}, is not set")
        env = {"OPENAI_BASE_URL": told.base_url, "OPENAI_API_KEY": key}
        found[name] = _endpoint(env, told.model)
    return found


def with_environment(config: ServeConfig, model: str | None) -> dict[str, Endpoint]:
    """Those of the config, and that of OPENAI_BASE_URL under the name of X.

    Raises:
        UsageError: an address or a key that cannot be used, or no name of the model.
        MissingError: a variable that is to hold a key is not set.
    """
    found = configured(config)
    if endpoint_from_env(dict(os.environ)) is not None and model not in found:
        if model is None:
            raise UsageError("OPENAI_BASE_URL is set: name its model with --model")
        found[model] = _endpoint(dict(os.environ), model)
    return found


def _endpoint(env: dict[str, str], model: str) -> Endpoint:
    client = endpoint_from_env(env, concurrency=REQUESTS)
    if client is None:
        raise UsageError(f"the endpoint of {model} has no base_url")
    return Endpoint(client, model)
