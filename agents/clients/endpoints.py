"""The endpoint that the environment names.

Several endpoints behind one client: the model's name says which one answers.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reflux.agents.errors import UsageError

if TYPE_CHECKING:
    from reflux.agents.clients.openai import OpenAIClient
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from reflux.agents.clients.streaming import Pieces, stream_of
from reflux.agents.types import ChatClient, ChatRequest, Completion

TIMEOUT, RETRIES = "REFLUX_TIMEOUT", "REFLUX_RETRIES"
"""Variables: seconds for one try, and tries after the first."""


def endpoint_from_env(env: dict[str, str], **options: Any) -> "OpenAIClient | None":
    """The endpoint at OPENAI_BASE_URL, with the key OPENAI_API_KEY; None without an address.

    A key alone means nothing: many programs share that variable, and none of them is asked where
    Reflux's model is.

    REFLUX_TIMEOUT and REFLUX_RETRIES say how long one try may take, and how many follow it.

    Raises:
        UsageError: a base URL that is not an http address, a key that no header can carry, or a
            time-out or number of retries that is none.
    """
    url = env.get("OPENAI_BASE_URL", "").strip()
    key = env.get("OPENAI_API_KEY", "").strip()
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"OPENAI_BASE_URL is {url!r}; it must start with http:// or https://")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"OPENAI_BASE_URL is {url!r}; it must name a host, and a port to 65535")
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OPENAI_API_KEY holds characters that no HTTP header can carry")
    if (seconds := env.get(TIMEOUT, "").strip()) != "":
        options["timeout"] = _number(TIMEOUT, seconds, float, 0.001)
    if (retries := env.get(RETRIES, "").strip()) != "":
        options["retries"] = _number(RETRIES, retries, int, 0)
    from reflux.agents.clients.openai import OpenAIClient

    return OpenAIClient(url, key or "none", **options)


def _number(name: str, text: str, kind: Callable[[str], float], least: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise UsageError(f"{name} is {text!r}; it must be a number of at least {least:g}")
    return value


@dataclass(frozen=True)
class Endpoint:
    """Where a model is, and what it is called there."""

    client: ChatClient
    model: str


async def close_clients(clients: Iterable[ChatClient]) -> None:
    """Close each one that can be closed, once."""
    for client in {id(client): client for client in clients}.values():
        close: Any = getattr(client, "close", None)
        if close is not None:
            await close()


class Endpoints:
    """Completes chats at the endpoint of the request's model; all other names are the `rest`'s."""

    def __init__(self, named: Mapping[str, Endpoint], rest: ChatClient) -> None:
        self._named = named
        self._rest = rest

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request."""
        there = self._at(request.model)
        return await there.client.complete(replace(request, model=there.model))

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece."""
        there = self._at(request.model)
        async with aclosing(stream_of(there.client, replace(request, model=there.model))) as pieces:
            async for piece in pieces:
                yield piece

    async def model_digest(self, model: str) -> str:
        """That of the model's endpoint."""
        there = self._at(model)
        return await there.client.model_digest(there.model)

    async def close(self) -> None:
        """Close every client that can be closed."""
        await close_clients([self._rest, *(there.client for there in self._named.values())])

    def _at(self, model: str) -> Endpoint:
        return self._named.get(model) or Endpoint(self._rest, model)
