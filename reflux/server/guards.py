"""Middleware before every route: which hosts, origins and clients may ask, how often, how much.

A page of another origin can make a browser send requests to this machine, and its name can resolve
to this machine (DNS rebinding). So `Host` must be a name of this server, and `Origin`, if sent,
must be the same host and port or listed in the settings. A key does the same, since no page of
another origin knows it: a server with a key may be called by any name. Starlette's
`TrustedHostMiddleware` and body limit are not enough: the first trusts the first of two `Host`
headers, and neither refuses in the form of the API's errors, with the limit and the remedy.
"""

import asyncio
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reflux.server.errors import ApiError
from reflux.server.settings import ServeSettings
from reflux.server.state import Metrics

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
UNGUARDED_PATHS = ("/healthz",)
"""Paths that need no key and no known host, and count towards no limit: for health probes."""
HEADS = ("/healthz", "/metrics", "/", "/v1/models")
"""Paths whose HEAD is that of GET."""
PAGE_FILES = "/page/"
"""Files of the page. They hold nothing of any run and need no key, as the page asks for the key."""
HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
STUCK_SECONDS = 60.0
"""A client that does not accept one message within this time is dropped."""
MAX_CLIENTS = 10_000
"""Clients whose rate is remembered; the one idle longest is forgotten first."""
HEADERS = {
    "cache-control": "no-cache",  # A new version of Reflux never meets an old page.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response that does not set them itself: no page of this server loads from, or
sends to, another origin."""


def client_of(address: str) -> str:
    """The client behind an address: for IPv6 the /64 network, which one client controls."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _tidied(scope: Scope) -> Scope:
    """The request without slashes at the end of an API path, and HEAD as GET, whose body the server
    leaves out."""
    path, method = scope["path"], scope["method"]
    tidy = path.rstrip("/") if path.startswith(("/v1/", *UNGUARDED_PATHS)) else path
    if method == "HEAD" and (tidy in HEADS or tidy.startswith("/v1/models/")):
        method = "GET"
    return (
        scope
        if (tidy, method) == (path, scope["method"])
        else {**scope, "path": tidy, "method": method}
    )


class ClientStuck(Exception):
    """The client does not accept what it is sent."""


class Guard:
    """The middleware that applies the guards to every request; no route takes a WebSocket."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._limiter = RateLimiter(settings.per_second, settings.burst)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            await self._guard(_tidied(scope), receive, _guarded(send))
        except ClientStuck:
            self._metrics.refused.labels("stuck").inc()

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (refusal := self._refusal(scope)) is not None:
            self._metrics.refused.labels(refusal.detail.code).inc()
            return await refusal.response()(scope, receive, send)
        if scope["path"] in UNGUARDED_PATHS:
            return await self._app(scope, receive, send)
        self._under_way += 1
        self._metrics.under_way.inc()
        try:
            body = _limited(receive, self._settings.body_bytes, self._settings.body_seconds)
            await self._app(scope, body, send)
        finally:
            self._under_way -= 1
            self._metrics.under_way.dec()

    def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] in UNGUARDED_PATHS:
            return None
        headers = Headers(scope=scope)
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        settings = self._settings
        if (refusal := name_refusal(headers, settings, preflight)) is not None:
            return refusal
        client = client_of(scope["client"][0]) if scope.get("client") else ""
        # Before the key check, so that guesses at the key count.
        if (wait := self._limiter.wait(client)) > 0:
            message = f"more than {settings.per_second:g} requests a second: wait {wait:.1f} s"
            return _retry_later(message, "rate_limit_exceeded", wait)
        # Browsers send preflight requests without the key.
        public = preflight or scope["path"] == "/" or scope["path"].startswith(PAGE_FILES)
        if settings.api_key and not public and not self._has_key(headers):
            return ApiError(
                401,
                "this server needs a key: send Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > settings.body_bytes:
            return ApiError(413, _too_large(settings.body_bytes), code="body_too_large")
        if self._under_way >= settings.max_concurrency:
            message = f"{self._under_way} requests are under way, the limit is "
            message += f"{settings.max_concurrency}: retry when some have ended"
            return _retry_later(message, "too_many_at_once", 1)
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and same_key(key.strip(), self._settings.api_key)


def same_key(key: str, expected: str) -> bool:
    """Whether two keys are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(key.encode(), expected.encode())


def name_refusal(headers: Headers, settings: ServeSettings, preflight: bool) -> ApiError | None:
    """The refusal of a request that names another server, or comes from another's page."""
    hosts = headers.getlist("host")
    # A proxy may have read the other of two Host headers.
    host = hosts[0] if len(hosts) == 1 else ""
    match = HOST.fullmatch(host)
    names = {*LOOPBACK_NAMES, settings.host.lower(), *map(str.lower, settings.hosts)}
    known = match is not None and (match["v6"] or match["name"]).lower() in names
    if match is None or not (known or settings.api_key):
        return ApiError(
            403,
            f"this server is not called {host[:100]!r}: add the name to `hosts` in its config, "
            "or set REFLUX_API_KEY, with which it may be called by any name",
            code="host_not_allowed",
        )
    origin = headers.get("origin")
    if origin is None or origin in settings.origins:
        return None
    if urlsplit(origin).netloc.lower() == host.lower():
        return None
    if settings.api_key and not preflight:
        return None
    return ApiError(
        403,
        f"pages of {origin[:100]!r} may not use this server: add it to `origins` in its config",
        code="origin_not_allowed",
    )


class RateLimiter:
    """A token bucket for each client: it starts with `burst` and refills at `per_second`."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = max(1, burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(tokens, time of the count) by client; the client idle longest comes first."""

    def wait(self, client: str) -> float:
        """Take a token; the seconds until one is free, 0 if one was."""
        if not self._per_second:
            return 0
        now = time.monotonic()
        tokens, counted = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - counted) * self._per_second)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if allowed else (1 - tokens) / self._per_second


def _retry_later(message: str, code: str, seconds: float) -> ApiError:
    headers = {"retry-after": str(max(1, round(seconds)))}
    return ApiError(429, message, "rate_limit_error", code=code, headers=headers)


def _limited(receive: Receive, max_bytes: int, seconds: float) -> Receive:
    """Limit a body to `max_bytes` and `seconds`, with or without a content-length.

    After the body, only the client's disconnect is received, at any time.
    """
    received, complete = 0, False
    deadline = asyncio.get_running_loop().time() + seconds

    async def receive_limited() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            detail = f"the body took more than {seconds:g} s: send it faster, or send less"
            raise HTTPException(408, detail, headers={"connection": "close"}) from None
        complete = not message.get("more_body", False)
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise HTTPException(413, _too_large(max_bytes))
        return message

    return receive_limited


def _too_large(max_bytes: int) -> str:
    return (
        f"the body is over the limit of {max_bytes} bytes: send less, or raise `body_bytes` in the "
        "server's config"
    )


def _guarded(send: Send) -> Send:
    """Add the headers, and give up on a client that keeps its connection open and reads nothing."""

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await send(message)
        except TimeoutError:
            raise ClientStuck from None

    return send_guarded
