"""What a server is told before it starts; nothing of it can come from a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.embedded import EngineConfig
from agents.endpoints import Endpoint
from graphs.state import Limits
from reflux.overseers import DEFAULT_OVERSEER


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
    """How `base` and the students run."""
    body_bytes: int = 1_000_000
    """Of a request, at the most."""
    body_seconds: float = 30.0
    """In which a request's body has to come."""
    per_second: float = 100.0
    """Requests of one client, in the long run; 0 for no limit."""
    burst: int = 1_000
    """Requests of one client at once, before that limit counts."""
    together: int = 1_024
    """Requests under way, of all clients."""
    kept_events: int = 200_000
    """Events of answers that are kept to be replayed; the oldest answers' go first."""
