"""The settings of a server and its `--config` file; no request can change them.

`reflux eval` reads its endpoints from the same file.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from reflux.agents.clients.endpoints import Endpoint, endpoint_from_env
from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import MissingError, UsageError
from reflux.finetune.configs.run import problems, read_yaml
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import Limits
from reflux.models import ENDPOINT, endpoint_at, is_own
from reflux.overseers import DEFAULT_OVERSEER

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
ENDPOINT_CONCURRENCY = 256
"""Maximum concurrent requests to one endpoint."""


@dataclass(frozen=True)
class Access:
    """Who may use a server, and how much."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    hosts: tuple[str, ...] = ()
    """Further names of this server, without ports; a server with a key has any name."""
    origins: tuple[str, ...] = ()
    """Other origins whose pages may use the server, such as `http://localhost:3000`."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies, whose X-Forwarded-For names the client."""
    body_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    """Maximum size of a request's body."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Maximum time for a request's body to arrive."""
    per_second: Annotated[float, Field(ge=0)] = 100.0
    """Average requests a second of one client; 0 for no limit."""
    burst: Annotated[int, Field(ge=1)] = 1_000
    """Requests that one client may send at once before `per_second` applies."""
    max_concurrency: Annotated[int, Field(ge=1)] = 1_024
    """Requests under way, over all clients."""
    kept_events: Annotated[int, Field(ge=0)] = 200_000
    """Events of ended answers that are kept for replay; the oldest answers are dropped first."""


@dataclass(frozen=True)
class Fallback:
    """When the model behind an alias does not answer: always where it fails, and by these rules."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    schema: bool = True
    """A reply, or a tool call of it, breaks the schema that the request holds."""
    min_logprob: Annotated[float, Field(le=0)] | None = None
    """The least certain token of a reply is below this natural-log probability."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    """The probability that a reply is right is below this: that of its least certain token, scaled
    as the evaluation of the student found."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """The reply takes longer."""

    @property
    def needs_logprobs(self) -> bool:
        """Whether a rule judges how sure a reply is."""
        return self.min_logprob is not None or self.min_confidence is not None


@dataclass(frozen=True)
class ModelNames(Access):
    """Under which names models are served; see `reflux.server.aliases`."""

    alias: dict[str, str] = field(default_factory=dict[str, str])
    """Models by the further names under which they answer."""
    split: dict[str, Annotated[float, Field(ge=0, le=1)]] = field(default_factory=dict[str, float])
    """Share of the trajectories that a model with an alias answers; 1 where none is given."""
    fallback: Fallback | None = None
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """The models `amplified` divide only questions on which the agent is less sure than this; None
    has them divide every question."""


@dataclass(frozen=True)
class ServeSettings(ModelNames):
    """How a run folder is served."""

    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    """The key that clients must send; required unless `host` is a loopback address."""
    overseer: str = DEFAULT_OVERSEER
    """The overseer of the model `amplified`."""
    candidates: int | None = None
    """Decompositions to weigh against the direct answer; None for the overseer's default."""
    route: Mapping[str, str] = field(default_factory=dict[str, str])
    """The evaluation that decides what is divided, as `AskOptions` record it."""
    demos: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its demonstrations, as `AskOptions` record them."""
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What untrusted text may reach in the models `amplified`, as `AskOptions` record it."""
    model: str = ""
    """The agent; if empty, the promoted student, or `base`."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    """Models of other endpoints by the names under which they are served."""
    config: Path | None = None
    """The config file, for the jobs that the page starts."""
    limits: Limits = field(default_factory=lambda: Limits(seconds=600))
    """Limits of one amplified answer."""
    max_tokens: int = 512
    """Default token limit of a reply, and of each copy's reply."""
    upstream: str = ""
    """An endpoint in front of which `/record/v1` is a recording proxy; none if empty."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(parallel=8, context=8192))
    """The engine of `base` and the students."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServeSettings) -> None:
    """Check that a server that other machines can reach has a key, and names that can be asked for.

    Raises:
        UsageError: the key is missing, or no HTTP header can carry it; a name is malformed.
    """
    _check_names(settings)
    key = settings.api_key
    if not key and not is_loopback(settings.host):
        raise UsageError(
            f"{settings.host} can be reached from other machines: set REFLUX_API_KEY to a secret "
            "that clients must send, or serve on 127.0.0.1"
        )
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise UsageError("REFLUX_API_KEY holds characters that no HTTP header can carry")


def _check_names(access: Access) -> None:
    for host in access.hosts:
        if not (NAME.fullmatch(host) or (_is_network(host) and "/" not in host)):
            raise UsageError(
                f"`hosts` holds {host[:100]!r}; name a host without scheme, port and path, such as "
                "desk.example"
            )
    for origin in access.origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}":
            raise UsageError(
                f"`origins` holds {origin[:100]!r}; name scheme, host and port alone, such as "
                "http://localhost:3000"
            )
    for proxy in access.proxies:
        if not _is_network(proxy):
            raise UsageError(
                f"`proxies` holds {proxy[:100]!r}; name an address or a network, such as 10.0.0.0/8"
            )


def _is_network(text: str) -> bool:
    try:
        return bool(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return False


@dataclass(frozen=True)
class EndpointConfig:
    """A model of another endpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    base_url: str
    model: str
    api_key_env: str = ""
    """The environment variable that holds the key; a config file never holds the key itself."""
    thinking: Literal["auto", "on", "off"] | None = None
    """Whether the model reasons before it answers; None for `--thinking`."""
    extra_body: dict[str, Any] | None = None
    """Further fields of each request; None for `--extra-body`."""


@dataclass(frozen=True)
class ServeConfig(ModelNames):
    """The keys of a `--config` file."""

    endpoints: dict[str, EndpointConfig] = field(default_factory=dict[str, EndpointConfig])


def read_serve_config(path: Path | None) -> ServeConfig:
    """Read a YAML file; without a path, return the defaults.

    Raises:
        UsageError: the file is missing or has unknown keys.
    """
    if path is None:
        return ServeConfig()
    try:
        return TypeAdapter(ServeConfig).validate_python(read_yaml(path) or {})
    except ValidationError as error:
        raise UsageError(f"{path}: {problems(error)}") from error


def config_endpoints(config: ServeConfig) -> dict[str, Endpoint]:
    """The endpoints of a config by name.

    Raises:
        UsageError: a name, an address or a key is invalid.
        MissingError: the environment variable of a key is not set.
    """
    endpoints: dict[str, Endpoint] = {}
    for name, endpoint in config.endpoints.items():
        if "," in name or name != name.strip() or not name:
            raise UsageError(
                f"{name!r} cannot name an endpoint: use a name without commas and outer spaces"
            )
        key = os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else "none"
        if not key:
            raise MissingError(f"{endpoint.api_key_env}, the key of {name}, is not set")
        env = {**os.environ, "OPENAI_BASE_URL": endpoint.base_url, "OPENAI_API_KEY": key}
        names = (f"base_url of the endpoint {name}", endpoint.api_key_env or f"the key of {name}")
        own = {"thinking": endpoint.thinking, "extra_body": endpoint.extra_body}
        given = {option: value for option, value in own.items() if value is not None}
        client = endpoint_from_env(env, names, concurrency=ENDPOINT_CONCURRENCY, **given)
        if client is None:
            raise UsageError(f"the endpoint of {endpoint.model} has no base_url")
        endpoints[name] = Endpoint(client, endpoint.model)
    return endpoints


def agent_endpoints(
    config: ServeConfig, model: str | None, folder: RunFolder
) -> tuple[dict[str, Endpoint], str | None]:
    """The endpoints of a config and the agent's, and the agent's name among them.

    The agent's is that of `endpoint:MODEL@URL`, or OPENAI_BASE_URL.

    Raises:
        UsageError: an address or a key is invalid, or the model has no name.
        MissingError: the environment variable of a key is not set.
    """
    endpoints = config_endpoints(config)
    if model is not None and model.startswith(ENDPOINT) and model not in endpoints:
        model, client = endpoint_at(model, concurrency=ENDPOINT_CONCURRENCY)
        return endpoints | {model: Endpoint(client, model)}, model
    client = endpoint_from_env(dict(os.environ), concurrency=ENDPOINT_CONCURRENCY)
    if client is not None and model not in endpoints and not is_own(folder, model):
        if model is None:
            raise UsageError("OPENAI_BASE_URL is set: name its model with --model")
        endpoints[model] = Endpoint(client, model)
    return endpoints, model
