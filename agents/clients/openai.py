"""One client for every endpoint that speaks the OpenAI chat protocol."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import cache, partial
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient

from reflux.agents.clients.chat_protocol import Pieces, read_reply, read_stream, request_body
from reflux.agents.clients.retries import TIMEOUT, RetryingClient, RetryPolicy, worth_retrying
from reflux.agents.types import ChatRequest, Completion

POOL = 16
"""Concurrent requests in one connection pool, which looks at all of them for each request."""


class OpenAIClient(RetryingClient):
    """Completes chats through the `openai` package, with retries of our own.

    The package's retries are off, so that each retry is recorded and any Retry-After is honored.
    """

    errors = (openai.APIError,)

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
        super().__init__(concurrency, timeout, RetryPolicy(retries, backoff, sleep))
        self.base_url = base_url
        self._connect = partial(
            _connect, base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout
        )
        self._clients: dict[AsyncOpenAI, int] = {}
        """Each with its own connections, and its current requests."""
        self._extra_body = extra_body or {}

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; retries stop once the first piece has arrived.

        Raises:
            EndpointError: as `complete`, or the stream broke off, or no schema is taken.
            UsageError: the request is not valid Unicode.
        """
        failures: list[str] = []
        started = False

        def may_retry(error: BaseException) -> bool:
            return not started and self._worth_retrying(error)

        with self._explained(request.model, failures):
            async for attempt in self._policy.retrying(may_retry):
                with attempt:
                    async with self._gate, aclosing(self._pieces(request, failures)) as pieces:
                        async for piece in pieces:
                            started = True
                            yield piece

    async def _send(self, request: ChatRequest) -> Completion:
        # `chat.completions.create` would walk the whole body and the reply by their types.
        body = request_body(request) | self._extra_body
        with self._client() as client:
            return read_reply(await client.post("/chat/completions", cast_to=bytes, body=body))

    async def _pieces(self, request: ChatRequest, failures: list[str]) -> Pieces:
        start = time.perf_counter()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = request_body(request) | options | self._extra_body
        try:
            with self._client() as client:
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
            failures.append(self._one_line(error))
            raise

    @contextmanager
    def _client(self) -> Iterator[AsyncOpenAI]:
        """The first client with room, so that a small load keeps few connections open."""
        free = (client for client, requests in self._clients.items() if requests < POOL)
        client = next(free, None) or self._connect()
        self._clients[client] = self._clients.get(client, 0) + 1
        try:
            yield client
        finally:
            self._clients[client] -= 1

    def _worth_retrying(self, error: BaseException) -> bool:
        # Without a status: connection errors, time-outs and garbled replies.
        has_status = isinstance(error, openai.APIStatusError)
        return worth_retrying(error) if has_status else isinstance(error, openai.APIError)

    def _address(self, model: str) -> str:
        return self.base_url

    def _text_of(self, error: Exception) -> str:
        # "Connection error." alone does not distinguish a refused connection from a dropped one.
        cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) else ""
        return f"{error}{cause}"

    def _remedy(self, error: Exception) -> str:
        if isinstance(error, openai.APITimeoutError):
            seconds = f"{self._timeout:g} s"
            return f"no reply in {seconds}: raise {TIMEOUT}, or send fewer requests at once"
        if isinstance(error, openai.APIConnectionError):
            return "is it running? check OPENAI_BASE_URL"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return "check OPENAI_API_KEY"
        if isinstance(error, openai.NotFoundError):
            return "check the model's name and OPENAI_BASE_URL"
        return "see the endpoint's own log"

    async def model_digest(self, model: str) -> str:
        """Endpoint and name, because a remote endpoint does not say what weights it serves."""
        return f"{self.base_url}#{model}"

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves.

        Raises:
            EndpointError: the endpoint does not answer.
        """
        failures: list[str] = []
        with self._explained("", failures):
            try:
                with self._client() as client:
                    return [model.id async for model in client.models.list()]
            except openai.APIError as error:
                failures.append(self._one_line(error))
                raise

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def _connect(**options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(http_client=DefaultAsyncHttpxClient(verify=_certificates()), **options)


@cache
def _certificates() -> ssl.SSLContext:
    """Read once, because reading blocks the event loop for about 20 ms."""
    return httpx2.create_ssl_context()
