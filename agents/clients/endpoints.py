"""The endpoint that the environment names, several endpoints as one client, and a reply cache."""

import asyncio
import base64
import json
import math
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from reflux.agents.clients.retries import RETRIES, TIMEOUT, TOTAL_TIMEOUT
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.types import ChatClient, ChatRequest, Completion, Pieces, in_one_piece, stream_of

if TYPE_CHECKING:
    from reflux.agents.clients.openai import OpenAIClient


URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
THINKING_VARIABLE, EXTRA_BODY = "REFLUX_THINKING", "REFLUX_EXTRA_BODY"
ENDINGS = re.compile(r"/(?:chat/completions|completions|models|responses)/*$|/+$")
"""What users paste at the end of a base URL."""


_environment: ContextVar[Mapping[str, str]] = ContextVar("environment", default=os.environ)


def environment() -> Mapping[str, str]:
    """The variables that say where models of an endpoint are asked."""
    return _environment.get()


@contextmanager
def fixed_environment(more: Mapping[str, str] | None = None) -> Generator[None]:
    """In this block, no code of the user's that sets variables, as `load_dotenv` does, moves where
    models are asked; `more` replaces variables."""
    token = _environment.set({**environment(), **(more or {})})
    try:
        yield
    finally:
        _environment.reset(token)


def endpoint_from_env(
    env: Mapping[str, str],
    names: tuple[str, str] = (URL, KEY),
    kind: "type[OpenAIClient] | None" = None,
    **options: Any,
) -> "OpenAIClient | None":
    """The endpoint at OPENAI_BASE_URL, with the key OPENAI_API_KEY; None without an address.

    A key alone names no endpoint, because many programs share that variable. REFLUX_TIMEOUT sets
    the seconds of one try without a byte, REFLUX_TOTAL_TIMEOUT those in all, REFLUX_RETRIES the
    maximum tries after the first, REFLUX_THINKING whether models reason, and REFLUX_EXTRA_BODY
    further fields of each request; options of the same meaning take precedence.

    Args:
        names: where the user set the address and the key, for messages.
        kind: the class of the client, where it is not `OpenAIClient`.
        options: further options of `OpenAIClient`.

    Raises:
        UsageError: the base URL is no http address, no header can carry the key, or the time-out
            or the number of retries is no valid number.
    """
    url, key = env.get(URL, "").strip(), env.get(KEY, "").strip()
    if not url:
        return None
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{names[1]} holds characters that no HTTP header can carry")
    for option, variable in (("timeout", TIMEOUT), ("total_timeout", TOTAL_TIMEOUT)):
        if (seconds := env.get(variable, "").strip()) != "":
            options[option] = _number(variable, seconds, float, minimum=0.001)
    if (retries := env.get(RETRIES, "").strip()) != "":
        options["retries"] = _number(RETRIES, retries, int, minimum=0)
    from reflux.agents.clients.adaptation import THINKING
    from reflux.agents.clients.openai import OpenAIClient

    thinking = env.get(THINKING_VARIABLE, "").strip() or "auto"
    if options.setdefault("thinking", thinking) not in THINKING:
        known = ", ".join(THINKING)
        raise UsageError(f"{THINKING_VARIABLE} is {options['thinking']!r}; choose from {known}")
    options.setdefault("extra_body", _json_object(env.get(EXTRA_BODY, "")))
    url, more = _base_url(url, names[0])
    if key and "headers" in more:
        raise UsageError(
            f"{names[0]} holds a user and {names[1]} is set: both would be the Authorization "
            "header; leave one out"
        )
    return (kind or OpenAIClient)(url, key or "none", names=names, **more, **options)


def endpoint_with_key(
    env: Mapping[str, str], url: str, key_env: str, where: str, **options: Any
) -> "OpenAIClient":
    """The endpoint of a config: at `url`, else at OPENAI_BASE_URL, with the key in the variable
    `key_env`, else in OPENAI_API_KEY.

    Args:
        where: the key of the config, for messages.

    Raises:
        UsageError: as `endpoint_from_env`.
        MissingError: there is no address, or no such variable.
    """
    if key_env and not env.get(key_env):
        raise MissingError(f"{key_env}, the key of {where}, is not set")
    values = {URL: url or env.get(URL, ""), KEY: env.get(key_env or KEY, "")}
    names = (f"the url of {where}" if url else URL, key_env or KEY)
    client = endpoint_from_env({**env, **values}, names, **options)
    if client is None:
        raise MissingError(f"{where} names no url, and {URL} is not set: set one of them")
    return client


def _base_url(text: str, name: str) -> tuple[str, dict[str, Any]]:
    """A base URL as requests need it, and what it holds besides: a query, a user with password.

    Raises:
        UsageError: it is no http address.
    """
    shown = re.sub(r"//[^/@]*@", "//", text)
    if not re.match(r"https?://", text, re.IGNORECASE):
        scheme = "" if "://" in text else f"; did you mean http://{shown}?"
        raise UsageError(f"{name} is {shown!r}; it must start with http:// or https://{scheme}")
    try:
        parts = urlsplit(text)
        usable = parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        usable = None
    if (parts := usable) is None:
        raise UsageError(f"{name} is {shown!r}; it must name a host, and a port to 65535")
    more: dict[str, Any] = {"query": dict(parse_qsl(parts.query))} if parts.query else {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        more["headers"] = {"Authorization": f"Basic {base64.b64encode(user).decode()}"}
    host = parts.netloc.rpartition("@")[2].lower()
    path = ENDINGS.sub("", parts.path.rstrip("/"))
    return f"{parts.scheme.lower()}://{host}{path}", more


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise UsageError(f"--extra-body is no JSON ({error}): {text[:80]!r}") from error
    if not isinstance(value, dict) or {"model", "messages", "stream"} & value.keys():
        raise UsageError(
            f"--extra-body is {text[:80]!r}; write a JSON object of further fields of a request, "
            "such as '{\"top_k\": 20}', without model, messages and stream"
        )
    return cast(dict[str, Any], value)


def _number(name: str, text: str, kind: Callable[[str], float], minimum: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= minimum):
        raise UsageError(f"{name} is {text!r}; it must be a number of at least {minimum:g}")
    return value


@dataclass(frozen=True)
class Endpoint:
    """The client that reaches a model, and the model's name there."""

    client: ChatClient
    model: str


async def close_clients(clients: Iterable[ChatClient]) -> None:
    """Close each client that can be closed, once."""
    for client in {id(client): client for client in clients}.values():
        close: Any = getattr(client, "close", None)
        if close is not None:
            await close()


class Endpoints:
    """Completes chats at the endpoint of the request's model; `rest` serves all other names."""

    def __init__(self, named: Mapping[str, Endpoint], rest: ChatClient) -> None:
        self._named = named
        self._rest = rest

    async def complete(self, request: ChatRequest) -> Completion:
        endpoint = self._endpoint(request.model)
        return await endpoint.client.complete(replace(request, model=endpoint.model))

    async def stream(self, request: ChatRequest) -> Pieces:
        endpoint = self._endpoint(request.model)
        request = replace(request, model=endpoint.model)
        async with aclosing(stream_of(endpoint.client, request)) as pieces:
            async for piece in pieces:
                yield piece

    async def model_digest(self, model: str) -> str:
        endpoint = self._endpoint(model)
        return await endpoint.client.model_digest(endpoint.model)

    async def close(self) -> None:
        await close_clients([self._rest, *(endpoint.client for endpoint in self._named.values())])

    def _endpoint(self, model: str) -> Endpoint:
        return self._named.get(model) or Endpoint(self._rest, model)


class CachedClient:
    """A reply cache with single flight: identical model calls are made once.

    Only calls are joined, never subtrees, because two subtrees that wait for each other would
    deadlock. The key holds seed and vote, so independent votes stay independent.
    """

    def __init__(self, client: ChatClient, limit: int = 200_000) -> None:
        """`limit` is the maximum number of replies; the oldest go first."""
        self._client = client
        self._limit = limit
        self._replies: dict[str, Completion] = {}
        self._flights: dict[str, asyncio.Future[Completion]] = {}

    def put(self, digest: str, completion: Completion) -> None:
        """Remember a reply, for example one from the call log of an earlier run."""
        self._replies[digest] = completion
        if len(self._replies) > self._limit:
            self._replies.pop(next(iter(self._replies)))

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer from the cache, from a pending identical call, or from the client.

        A failed call fails for all who joined it; the next request calls again.
        """
        digest = request.digest(await self.model_digest(request.model))
        if (reply := self._replies.get(digest)) is not None:
            return replace(reply, cached=True, seconds=0.0, retries=())
        if (flight := self._flights.get(digest)) is not None:
            return await self._join(request, flight)
        flight = asyncio.get_running_loop().create_future()
        self._flights[digest] = flight
        try:
            reply = await self._client.complete(request)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                flight.cancel()
            else:
                flight.set_exception(error)
                flight.exception()  # Marks it as retrieved, for a call that nobody joined.
            raise
        else:
            self.put(digest, reply)
            flight.set_result(reply)
            return reply
        finally:
            del self._flights[digest]

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer piece by piece, or from the cache in one.

        Streams take no part in single flight, because their reader may stop at any time.
        """
        digest = request.digest(await self.model_digest(request.model))
        if (reply := self._replies.get(digest)) is not None:
            for piece in in_one_piece(replace(reply, cached=True, seconds=0.0, retries=())):
                yield piece
            return
        async with aclosing(stream_of(self._client, request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    self.put(digest, piece)
                yield piece

    async def _join(self, request: ChatRequest, flight: asyncio.Future[Completion]) -> Completion:
        try:
            reply = await asyncio.shield(flight)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flight.cancelled() or (task is not None and task.cancelling()):
                raise
            # Only the leader was cancelled; send the request ourselves.
            return await self.complete(request)
        except EndpointError as error:
            joined = EndpointError(*error.args)
            joined.cached = True
            raise joined from error
        return replace(reply, cached=True, seconds=0.0, retries=())

    async def model_digest(self, model: str) -> str:
        return await self._client.model_digest(model)
