"""What stands before every route: who may ask, from where, how often, and how much at once.

A page of another origin can have a browser send requests to this machine, and can have its own
name point here (DNS rebinding). So `Host` must be a name of this server, and `Origin`, where there
is one, the same host and port or one that the settings name.
"""

import asyncio
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reflux.agents.errors import UsageError
from reflux.server.errors import ApiError
from reflux.server.metrics import Metrics
from reflux.server.settings import ServeSettings

HERE = ("localhost", "127.0.0.1", "::1")
OPEN = ("/healthz",)
"""Paths that need no key, and count towards no limit."""
SHELL = "/page/"
"""Files of the page, which hold nothing of any run: like `/` they need no key, so that the page can
ask for it."""
HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
STUCK_SECONDS = 60.0
"""In which a client has to take what it is sent, piece by piece."""
REMEMBERED = 10_000
"""Clients whose rate is known; the longest silent is forgotten first."""
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every response: no page of this server loads from, or sends to, another origin."""


def is_loopback(host: str) -> bool:
    """True where only this machine can reach a server bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_of(address: str) -> str:
    """Who asks, by the address: of IPv6 the network, since one client has all addresses of it."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def check_exposure(settings: ServeSettings) -> None:
    """A server that others can reach needs a key.

    Raises:
        UsageError: it has none, or one that no header can carry.
    """
    key = settings.api_key
    if not key and not is_loopback(settings.host):
        raise UsageError(
            f"{settings.host} can be reached from outside: set REFLUX_API_KEY to a secret that "
            "clients then have to show, or serve on 127.0.0.1"
        )
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise UsageError("REFLUX_API_KEY holds characters that no HTTP header can carry")


class ClientStuck(Exception):
    """The client takes nothing of what it is sent."""


class Guard:
    """The middleware that holds requests to all of this."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._hosts = {*HERE, settings.host.lower(), *map(str.lower, settings.hosts)}
        self._rates = Rates(settings.per_second, settings.burst)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            self._metrics.refused.labels(refusal.detail.code).inc()
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)[:120]})
            else:
                await refusal.response()(scope, receive, _with_headers(send))
            return
        if scope["path"] in OPEN:
            await self._app(scope, receive, _with_headers(send))
            return
        self._under_way += 1
        self._metrics.under_way.inc()
        try:
            limited = _limited(receive, self._settings.body_bytes, self._settings.body_seconds)
            await self._app(scope, limited, _with_headers(_unless_stuck(send)))
        except ClientStuck:
            self._metrics.refused.labels("stuck").inc()
        finally:
            self._under_way -= 1
            self._metrics.under_way.dec()

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if (refusal := self._stranger(headers)) is not None or scope["path"] in OPEN:
            return refusal
        client = client_of(scope["client"][0]) if scope.get("client") else ""
        if (wait := self._rates.wait(client)) > 0:  # Before the key: guesses at it count, too.
            return _later(
                f"more than {self._settings.per_second:g} requests a second: wait {wait:.1f} s",
                "rate_limit_exceeded",
                wait,
            )
        # Browsers ask without a key whether an origin may send one.
        asks_first = (
            scope.get("method") == "OPTIONS" and headers.get("origin") in self._settings.origins
        )
        public = asks_first or scope["path"] == "/" or scope["path"].startswith(SHELL)
        if self._settings.api_key and not public and not self._shows_key(headers):
            return ApiError(
                401,
                "this server needs its key: Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._settings.body_bytes:
            return ApiError(413, _too_long(self._settings.body_bytes), code="body_too_large")
        if self._under_way >= self._settings.max_concurrency:
            return _later(
                f"{self._under_way} requests are under way, the limit is "
                f"{self._settings.max_concurrency}: wait for some to end",
                "too_many_at_once",
                1,
            )
        return None

    def _stranger(self, headers: Headers) -> ApiError | None:
        hosts = headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""  # Of two, others may have read the other.
        if _name_of(host) not in self._hosts:
            return ApiError(
                403,
                f"this server is not called {host[:100]!r}: add the name to `hosts` in its config",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is None or origin in self._settings.origins:
            return None
        if urlsplit(origin).netloc.lower() == host.lower():
            return None
        return ApiError(
            403,
            f"pages of {origin[:100]!r} may not use this server: add it to `origins` in its config",
            code="origin_not_allowed",
        )

    def _shows_key(self, headers: Headers) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        right = self._settings.api_key.encode()
        return kind.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), right)


class Rates:
    """A bucket of tokens for each client: `burst` at first, `per_second` flow back."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = max(1, burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(tokens, when they were counted) of each client, the longest silent first."""

    def wait(self, client: str) -> float:
        """Take a token; seconds until there is one, where there is none."""
        if not self._per_second:
            return 0
        now = time.monotonic()
        tokens, then = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._per_second)
        enough = tokens >= 1
        self._buckets[client] = (tokens - enough, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return 0 if enough else (1 - tokens) / self._per_second


def _later(message: str, code: str, seconds: float) -> ApiError:
    headers = {"retry-after": str(max(1, round(seconds)))}
    return ApiError(429, message, "rate_limit_error", code=code, headers=headers)


def _name_of(host: str) -> str | None:
    """The name of a `Host`, without its port; None where it is none."""
    found = HOST.fullmatch(host)
    return (found["v6"] or found["name"]).lower() if found else None


def _limited(receive: Receive, most: int, seconds: float) -> Receive:
    """Receives a body of no more than so many bytes, in no more than so many seconds, whether or
    not it tells its length; what comes behind the body, that the client leaves, at any time."""
    came, whole = 0, False
    until = asyncio.get_running_loop().time() + seconds

    async def received() -> Message:
        nonlocal came, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            late = f"the body took more than {seconds:g} s: send it faster, or ask for less"
            raise HTTPException(408, late, headers={"connection": "close"}) from None
        whole = not message.get("more_body", False)
        came += len(message.get("body", b""))
        if came > most:
            raise HTTPException(413, _too_long(most))
        return message

    return received


def _unless_stuck(send: Send) -> Send:
    """Sends, and gives up on a client that keeps its connection and takes nothing."""

    async def sent(message: Message) -> None:
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await send(message)
        except TimeoutError:
            raise ClientStuck from None

    return sent


def _too_long(most: int) -> str:
    return (
        f"the body is over the limit of {most} bytes: ask for less, or raise `body_bytes` in the "
        "server's config"
    )


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
