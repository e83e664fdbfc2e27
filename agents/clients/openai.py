"""One client for every endpoint that speaks the OpenAI chat protocol."""

import asyncio
import math
import random
import ssl
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient

from reflux.agents.clients.chat_protocol import read_reply, request_body
from reflux.agents.clients.endpoints import TIMEOUT
from reflux.agents.clients.streaming import Pieces, read_stream
from reflux.agents.errors import RETRIED_STATUS, EndpointError, UsageError
from reflux.agents.types import ChatRequest, Completion

POOL = 16
"""Requests under way in one pool of connections, which looks at all of them for each request."""


class OpenAIClient:
    """Completes chats through the `openai` package, with retries of our own.

    The package's retries are switched off so that each is recorded and a Retry-After of any
    length is honoured.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 0.5,
        extra_body: dict[str, Any] | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        """
        Args:
            concurrency: requests under way at once to this endpoint.
            timeout: seconds for one try.
            retries: tries after the first.
            backoff: seconds before the first retry; doubled each time, with jitter, up to 30.
            extra_body: fields that this endpoint takes beyond the protocol.
        """
        self.base_url = base_url
        self._connect = partial(
            _connect, base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout
        )
        self._pools = [_Pool(self._connect())]
        self._timeout = timeout
        self._gate = asyncio.Semaphore(concurrency)
        self._retries = retries
        self._backoff = backoff
        self._extra_body = extra_body or {}
        self._sleep = sleep
        self._takes_schemas = True

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the last try failed, or the endpoint refused the request.
            UsageError: the request is no Unicode text.
        """
        failures: list[str] = []
        while True:
            async with self._gate:
                begun = time.perf_counter()
                try:
                    reply = await self._create(request)
                    completion = read_reply(reply, time.perf_counter() - begun)
                    return replace(completion, retries=tuple(failures))
                except UnicodeEncodeError as error:
                    raise UsageError(f"a request must be Unicode text: {error}") from error
                except openai.APIError as error:
                    failures.append(_one_line(error))
                    if self._takes_schemas and _refuses_schema(request, error):
                        self._takes_schemas = False  # The reply is read by a tolerant parser.
                        continue
                    if not _worth_retrying(error) or len(failures) > self._retries:
                        raise self._failed(error, failures) from error
                    pause = _pause(error, self._backoff * 2 ** (len(failures) - 1))
            await self._sleep(pause)

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; tries again until the first piece has come.

        Raises:
            EndpointError: as `complete`, or the stream broke off, or no schema is taken.
            UsageError: the request is no Unicode text.
        """
        failures: list[str] = []
        while True:
            came = False
            async with self._gate:
                try:
                    async with aclosing(self._pieces(request, tuple(failures))) as pieces:
                        async for piece in pieces:
                            came = True
                            yield piece
                    return
                except UnicodeEncodeError as error:
                    raise UsageError(f"a request must be Unicode text: {error}") from error
                except openai.APIError as error:
                    failures.append(_one_line(error))
                    if came or not _worth_retrying(error) or len(failures) > self._retries:
                        raise self._failed(error, failures) from error
                    pause = _pause(error, self._backoff * 2 ** (len(failures) - 1))
            await self._sleep(pause)

    async def _pieces(self, request: ChatRequest, retries: tuple[str, ...]) -> Pieces:
        begun = time.perf_counter()
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        body = request_body(request, request.schema) | streamed | self._extra_body
        with self._pool() as connected:
            chunks = await connected.post(
                "/chat/completions",
                cast_to=object,
                body=body,
                stream=True,
                stream_cls=AsyncStream[object],
            )
            async with chunks, aclosing(read_stream(chunks, begun, retries)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _create(self, request: ChatRequest) -> bytes:
        # Not `chat.completions.create`: it walks all of the body by its types, and the reply, too.
        body = request_body(request, request.schema if self._takes_schemas else "")
        with self._pool() as connected:
            return await connected.post(
                "/chat/completions", cast_to=bytes, body=body | self._extra_body
            )

    def _pool(self) -> "_Pool":
        """The first that has room, so that a small load keeps few connections open."""
        for pool in self._pools:
            if pool.under_way < POOL:
                return pool
        self._pools.append(_Pool(self._connect()))
        return self._pools[-1]

    def _failed(self, error: openai.APIError, failures: list[str]) -> EndpointError:
        failed = EndpointError(self._explain(error, failures))
        failed.refused = not _worth_retrying(error)
        failed.status = getattr(error, "status_code", None)
        return failed

    def _explain(self, error: openai.APIError, failures: list[str]) -> str:
        tries = f"after {len(failures)} tries" if len(failures) > 1 else "at once"
        if isinstance(error, openai.APITimeoutError):
            remedy = f"no reply in {self._timeout:g} s: raise {TIMEOUT}, or ask for less at once"
        elif isinstance(error, openai.APIConnectionError):
            remedy = "is it running? check OPENAI_BASE_URL"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            remedy = "check OPENAI_API_KEY"
        elif isinstance(error, openai.NotFoundError):
            remedy = "check the model's name and OPENAI_BASE_URL"
        else:
            remedy = "see the endpoint's own log"
        return f"{self.base_url} failed {tries}: {failures[-1]}; {remedy}"

    async def model_digest(self, model: str) -> str:
        """Endpoint and name: a remote endpoint does not tell what weights it serves."""
        return f"{self.base_url}#{model}"

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves.

        Raises:
            EndpointError: it does not answer.
        """
        try:
            return [model.id async for model in self._pools[0].client.models.list()]
        except openai.APIError as error:
            raise EndpointError(self._explain(error, [_one_line(error)])) from error

    async def close(self) -> None:
        """Close the connections."""
        for pool in self._pools:
            await pool.client.close()


def _connect(**options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(http_client=DefaultAsyncHttpxClient(verify=_certificates()), **options)


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: to read them takes some 20 ms, in which nothing else would go on."""
    return httpx2.create_ssl_context()


@dataclass
class _Pool:
    """One client of the package, with connections of its own; entered for each request."""

    client: AsyncOpenAI
    under_way: int = 0

    def __enter__(self) -> AsyncOpenAI:
        self.under_way += 1
        return self.client

    def __exit__(self, *_: object) -> None:
        self.under_way -= 1


def _refuses_schema(request: ChatRequest, error: openai.APIError) -> bool:
    """An endpoint that knows no JSON schemas refuses the whole request."""
    refused = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
    return bool(request.schema) and refused


def _worth_retrying(error: openai.APIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in RETRIED_STATUS
    return True  # Connections, time-outs and garbled replies pass.


def _pause(error: openai.APIError, backoff: float) -> float:
    """Seconds to wait: what the endpoint asks for, otherwise back-off with jitter."""
    if isinstance(error, openai.APIStatusError):
        asked = _retry_after(error.response.headers.get("retry-after", ""))
        if asked is not None:
            return asked
    return min(30.0, backoff) * random.uniform(0.75, 1.25)


def _retry_after(header: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None if neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _one_line(error: openai.APIError) -> str:
    status = f"{error.status_code} " if isinstance(error, openai.APIStatusError) else ""
    # "Connection error." alone does not tell a refused connection from one that was dropped.
    cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) else ""
    text = " ".join(f"{error.message}{cause}".split())
    return f"{status}{type(error).__name__}: {text[:300]}"
