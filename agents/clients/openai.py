"""One client for every endpoint that speaks the OpenAI chat protocol."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient

from reflux.agents.clients.chat_protocol import Pieces, read_reply, read_stream, request_body
from reflux.agents.clients.retries import TIMEOUT, RetryPolicy
from reflux.agents.errors import RETRIED_STATUS, EndpointError, UsageError
from reflux.agents.types import ChatRequest, Completion

POOL = 16
"""Concurrent requests in one connection pool, which looks at all of them for each request."""


class OpenAIClient:
    """Completes chats through the `openai` package, with retries of our own.

    The package's retries are off, so that each retry is recorded and any Retry-After is honored.
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
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            concurrency: maximum concurrent requests to this endpoint.
            timeout: seconds for one try.
            retries: maximum tries after the first.
            backoff: see `RetryPolicy`.
            extra_body: fields that this endpoint takes beyond the protocol.
        """
        self.base_url = base_url
        self._connect = partial(
            _connect, base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout
        )
        self._pools = [_Pool(self._connect())]
        self._timeout = timeout
        self._gate = asyncio.Semaphore(concurrency)
        self._policy = RetryPolicy(retries, backoff, sleep)
        self._extra_body = extra_body or {}
        self._takes_schemas = True

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the last try failed, or the endpoint refused the request.
            UsageError: the request is not valid Unicode.
        """
        failures: list[str] = []
        try:
            return await self._policy.retrying(_worth_retrying)(self._try, request, failures)
        except UnicodeEncodeError as error:
            raise _not_unicode(error) from error
        except openai.APIError as error:
            raise self._failed(error, failures) from error

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; retries stop once the first piece has arrived.

        Raises:
            EndpointError: as `complete`, or the stream broke off, or no schema is taken.
            UsageError: the request is not valid Unicode.
        """
        failures: list[str] = []
        started = False

        def may_retry(error: BaseException) -> bool:
            return not started and _worth_retrying(error)

        try:
            async for attempt in self._policy.retrying(may_retry):
                with attempt:
                    async with self._gate, aclosing(self._pieces(request, failures)) as pieces:
                        async for piece in pieces:
                            started = True
                            yield piece
        except UnicodeEncodeError as error:
            raise _not_unicode(error) from error
        except openai.APIError as error:
            raise self._failed(error, failures) from error

    async def _try(self, request: ChatRequest, failures: list[str]) -> Completion:
        """One try; a schema that the endpoint refuses is left out at once, and from then on."""
        schema = request.schema if self._takes_schemas else ""
        async with self._gate:
            start = time.perf_counter()
            try:
                reply = await self._create(request, schema)
                completion = read_reply(reply, time.perf_counter() - start)
                return replace(completion, retries=tuple(failures))
            except openai.APIError as error:
                failures.append(_one_line(error))
                if not (schema and _refuses_request(error)):
                    raise
                self._takes_schemas = False  # The parser of replies tolerates free text.
        return await self._try(request, failures)

    async def _pieces(self, request: ChatRequest, failures: list[str]) -> Pieces:
        start = time.perf_counter()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = request_body(request, request.schema) | options | self._extra_body
        try:
            with self._pool() as client:
                chunks = await client.post(
                    "/chat/completions",
                    cast_to=object,
                    body=body,
                    stream=True,
                    stream_cls=AsyncStream[object],
                )
                async with chunks, aclosing(read_stream(chunks, start, tuple(failures))) as pieces:
                    async for piece in pieces:
                        yield piece
        except openai.APIError as error:
            failures.append(_one_line(error))
            raise

    async def _create(self, request: ChatRequest, schema: str) -> bytes:
        # `chat.completions.create` would walk the whole body and the reply by their types.
        body = request_body(request, schema) | self._extra_body
        with self._pool() as client:
            return await client.post("/chat/completions", cast_to=bytes, body=body)

    def _pool(self) -> "_Pool":
        """The first pool with room, so that a small load keeps few connections open."""
        for pool in self._pools:
            if pool.requests < POOL:
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
            remedy = (
                f"no reply in {self._timeout:g} s: raise {TIMEOUT}, or send fewer requests at once"
            )
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
        """Endpoint and name, because a remote endpoint does not say what weights it serves."""
        return f"{self.base_url}#{model}"

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves.

        Raises:
            EndpointError: the endpoint does not answer.
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
    """Read once, because reading blocks the event loop for about 20 ms."""
    return httpx2.create_ssl_context()


@dataclass
class _Pool:
    """One client of the package with its own connections; entered for each request."""

    client: AsyncOpenAI
    requests: int = 0
    """Current requests."""

    def __enter__(self) -> AsyncOpenAI:
        self.requests += 1
        return self.client

    def __exit__(self, *_: object) -> None:
        self.requests -= 1


def _refuses_request(error: openai.APIError) -> bool:
    """True for an endpoint that knows no JSON schemas: it refuses the whole request."""
    return isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in RETRIED_STATUS
    # Connection errors, time-outs and garbled replies are often transient.
    return isinstance(error, openai.APIError)


def _not_unicode(error: UnicodeEncodeError) -> UsageError:
    return UsageError(f"a request must be Unicode text: {error}")


def _one_line(error: openai.APIError) -> str:
    status = f"{error.status_code} " if isinstance(error, openai.APIStatusError) else ""
    # "Connection error." alone does not distinguish a refused connection from a dropped one.
    cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) else ""
    text = " ".join(f"{error.message}{cause}".split())
    return f"{status}{type(error).__name__}: {text[:300]}"
