"""`--config` of `reflux serve`, and of `reflux eval` for its endpoints: what a file may say."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.endpoint_env import endpoint_from_env
from agents.endpoints import Endpoint
from agents.errors import MissingError, UsageError
from finetune.rounds_config import problems, read_yaml

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
    together: int = Field(default=1_024, ge=1)
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
