"""The recording proxy: passes requests on to an endpoint, unchanged to the byte, and records them.

    POST …/v1/chat/completions, …/v1/responses, …/v1/messages    passed on and recorded
    anything else                                                passed on

`/t/NAME/v1/…` is `/v1/…` of the trajectory NAME. The client's key goes to the endpoint with its
other headers, and is stored nowhere.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from reflux.agents.clients.connections import connection_remedy, http_client
from reflux.agents.errors import UsageError
from reflux.graphs.traces.recording.recorder import COMPRESSIONS, Exchange, ExchangeRecorder
from reflux.graphs.traces.recording.requests import Protocol, protocol_of
from reflux.server.errors import ApiError
from reflux.server.guards import name_refusal, same_key
from reflux.server.settings import ServeSettings

KEY_HEADER = "x-reflux-key"
"""Carries REFLUX_API_KEY, as `authorization` is the endpoint's."""
OWN_HEADERS = "x-reflux-"
"""How headers for the recorder begin; they are not passed on."""
HOP_BY_HOP = frozenset(
    (
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1)."""
NAMED = re.compile(r"/t/([^/]+)(/.*)")
ANTHROPIC = "https://api.anthropic.com"
OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 30.0
MOUNT = "/record"
"""Path of the proxy in a server of a run folder."""


class Broken(Exception):
    """The endpoint broke off a reply: the client's connection is broken off, too."""


class _Quiet(logging.Filter):
    """Keeps a broken reply, which is on record, out of the server's log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Broken))


logging.getLogger("uvicorn.error").addFilter(_Quiet())


@dataclass(frozen=True)
class Upstream:
    """The endpoints behind a proxy: they may be one."""

    openai: str = OPENAI
    """With the path that `/v1` stands for."""
    anthropic: str = ANTHROPIC
    """Without `/v1`, as Anthropic's clients have it."""

    def __post_init__(self) -> None:
        for url in (self.openai, self.anthropic):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
                raise UsageError(
                    f"{url[:200]!r} is no address of an endpoint: name one such as "
                    "https://api.openai.com/v1"
                )

    def url(self, path: str, query: str, headers: Headers) -> str:
        """Where a request goes; `path` stands below `/v1`."""
        is_anthropic = re.match(r"/messages(/|\Z)", path) or "anthropic-version" in headers
        base = (self.anthropic if is_anthropic else self.openai).rstrip("/")
        if is_anthropic and not base.endswith("/v1"):
            base += "/v1"
        return f"{base}{path}" + (f"?{query}" if query else "")


class RecordingProxy:
    """An ASGI app in front of an endpoint; `async with` opens its connections."""

    def __init__(
        self, upstream: Upstream, recorder: ExchangeRecorder, settings: ServeSettings
    ) -> None:
        self._upstream, self._recorder, self._settings = upstream, recorder, settings
        self._clients: dict[str, httpx2.AsyncClient] = {}

    async def __aenter__(self) -> "RecordingProxy":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its reply back."""
        headers = Headers(scope=scope)
        if (refusal := self._refusal(headers)) is not None:
            return await refusal.response()(scope, receive, send)
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").removeprefix(scope.get("root_path", ""))
        match = NAMED.fullmatch(path)
        name, path = (unquote(match[1]), match[2]) if match else ("", path)
        path = re.sub(r"\A/v1(?=/|\Z)", "", path)
        url = self._upstream.url(path, scope["query_string"].decode("latin-1"), headers)
        protocol = protocol_of(path) if scope["method"] == "POST" else None
        request = httpx2.Request(
            scope["method"],
            url,
            headers=_asking(_passed_on(scope["headers"], ("host", "expect")), protocol),
            content=await _body(receive) if protocol else _parts(receive, headers),
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        )
        call = _Call(self._client(url), request, send)
        if protocol is None:
            await call.forward(receive)
            return None
        call.began = time.time()
        try:
            await call.forward(receive)
        finally:
            self._recorder.put(_exchange(call, protocol, headers, name))

    def _client(self, url: str) -> httpx2.AsyncClient:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._clients:
            self._clients[origin] = http_client(origin)
        return self._clients[origin]

    def _refusal(self, headers: Headers) -> ApiError | None:
        if (refusal := name_refusal(headers, self._settings, preflight=False)) is not None:
            return refusal
        key = self._settings.api_key
        if key and not same_key(headers.get(KEY_HEADER, ""), key):
            message = f"this proxy needs a key: send REFLUX_API_KEY as the header {KEY_HEADER}"
            return ApiError(401, message, "authentication_error", code="invalid_api_key")
        return None


class _Call:
    """One request under way: what went to the client, and how it ended."""

    def __init__(self, client: httpx2.AsyncClient, request: httpx2.Request, send: Send) -> None:
        self.request = request
        self.status = 0
        self.headers: httpx2.Headers = httpx2.Headers()
        self.chunks: list[bytes] = []
        self.failure = ""
        self.was_left = False
        self.began = 0.0
        self.seconds = 0.0
        self._client, self._send = client, send

    async def forward(self, receive: Receive) -> None:
        """Pass the request on, and the reply back as it comes, while the client is there.

        Raises:
            Broken: the endpoint broke the reply off after its beginning.
        """
        start = time.perf_counter()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        watch = asyncio.create_task(self._watch(receive, task))
        try:
            await self._forward()
        except httpx2.TransportError as error:
            cause = str(error) or type(error).__name__
            if self.status:
                self.failure = f"the endpoint broke off after {self._so_far()}: {cause}"
                raise Broken(self.failure) from None
            await self._refuse(cause)
        except asyncio.CancelledError:
            if not self.was_left:
                self.failure = f"the recorder was stopped after {self._so_far()}"
                raise
            self.failure = f"the client left after {self._so_far()}"
            task.uncancel()
        finally:
            self.seconds = time.perf_counter() - start
            watch.cancel()

    async def _forward(self) -> None:
        send = self._send
        response = await self._client.send(self.request, stream=True, follow_redirects=False)
        try:
            self.headers = response.headers
            headers = _passed_on(response.headers.raw)
            self.status = response.status_code
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            async for chunk in response.aiter_raw():
                self.chunks.append(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            with suppress(httpx2.TransportError):
                await response.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, task: "asyncio.Task[None]") -> None:
        """Cancel the task when the client leaves."""
        if not isinstance(self.request.stream, httpx2.ByteStream):
            return  # The body comes by the same messages.
        while (await receive())["type"] != "http.disconnect":
            pass
        self.was_left = True
        task.cancel()

    def _so_far(self) -> str:
        return f"{sum(map(len, self.chunks))} bytes of the reply"

    async def _refuse(self, cause: str) -> None:
        """Answer for an endpoint that did not."""
        url = str(self.request.url)
        remedy = connection_remedy(cause, url, "--upstream")
        self.failure = f"no reply of {urlsplit(url).netloc}: {cause}; {remedy}"
        self.status = 502
        error = ApiError(502, self.failure, "api_error", code="no_upstream")
        await error.response()({"type": "http"}, _nothing, self._send)


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}


def _exchange(call: _Call, protocol: Protocol, headers: Headers, name: str) -> Exchange:
    return Exchange(
        protocol,
        call.request.content,
        call.status,
        b"".join(call.chunks),
        call.headers.get("content-type", ""),
        call.headers.get("content-encoding", ""),
        call.failure,
        call.was_left,
        {key: value for key, value in headers.items() if _is_kept(key)},
        name,
        call.began,
        call.seconds,
    )


def _is_kept(header: str) -> bool:
    """Whether the recorder needs a header: never the endpoint's key, nor ours."""
    return header == "content-encoding" or (header.startswith(OWN_HEADERS) and header != KEY_HEADER)


def _passed_on(
    headers: list[tuple[bytes, bytes]], without: tuple[str, ...] = ()
) -> list[tuple[bytes, bytes]]:
    """Headers without those of one connection and our own."""
    named = (value for name, value in headers if name.lower() == b"connection")
    dropped = {*HOP_BY_HOP, *without}
    for value in named:
        dropped |= {each.strip().lower() for each in value.decode("latin-1").split(",")}
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.decode("latin-1").lower()
        if lower not in dropped and not lower.startswith(OWN_HEADERS):
            kept.append((name, value))
    return kept


def _asking(
    headers: list[tuple[bytes, bytes]], protocol: Protocol | None
) -> list[tuple[bytes, bytes]]:
    """Headers that accept, of what is recorded, only compressions that the recorder reads."""

    def read(value: bytes) -> bytes:
        given = [each.strip() for each in value.split(b",")]
        names = [each.split(b";")[0].strip().decode("latin-1").lower() for each in given]
        kept = [each for each, name in zip(given, names, strict=True) if name in COMPRESSIONS]
        return value if kept == given else b", ".join(kept) or b"identity"

    return [
        (name, read(value) if protocol and name.lower() == b"accept-encoding" else value)
        for name, value in headers
    ]


async def _body(receive: Receive) -> bytes:
    return b"".join([part async for part in _parts_of(receive)])


def _parts(receive: Receive, headers: Headers) -> AsyncIterator[bytes] | bytes:
    """The body of a request that is not recorded: a file may be too large to be held."""
    if "transfer-encoding" in headers or int(headers.get("content-length") or 0):
        return _parts_of(receive)
    return b""


async def _parts_of(receive: Receive) -> AsyncGenerator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        yield message.get("body", b"")
        more = message.get("more_body", False)


class RecordRoute:
    """Middleware before all guards, which would change a reply: `/record/…` goes to a proxy."""

    def __init__(self, app: ASGIApp, find: Callable[[], RecordingProxy]) -> None:
        self._app, self._find = app, find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the proxy, or on."""
        if scope["type"] == "http" and scope["path"].startswith(f"{MOUNT}/"):
            return await self._find()({**scope, "root_path": MOUNT}, receive, send)
        return await self._app(scope, receive, send)


def create_record_app(
    upstream: Upstream, recorder: ExchangeRecorder, settings: ServeSettings
) -> Starlette:
    """The app of `reflux record`: nothing but the proxy."""
    proxy = RecordingProxy(upstream, recorder, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with proxy:
            yield

    return Starlette(routes=[Mount("/", proxy)], lifespan=lifespan)
