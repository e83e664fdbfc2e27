"""Connections to an endpoint: proxies, certificates and streams, and why none came about."""

import os
import re
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openai import AsyncStream

from reflux.agents.clients.refusals import NEVER_CONNECTS, error_reply
from reflux.agents.errors import MissingError, UsageError

if TYPE_CHECKING:
    import ssl

    import httpx2


def is_loopback(url: str) -> bool:
    """Whether an address is this machine, which no proxy reaches."""
    host = (urlsplit(url).hostname or "").lower()
    return host in ("localhost", "::1", "0.0.0.0") or bool(  # noqa: S104 - nothing is bound
        re.fullmatch(r"127\.\d+\.\d+\.\d+|.+\.localhost", host)
    )


def _proxies() -> dict[str, str]:
    """The variables that name a proxy, and their values."""
    names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    variables = [name for upper in names for name in (upper, upper.lower())]
    return {name: os.environ[name] for name in variables if os.environ.get(name)}


def http_client(url: str) -> "httpx2.AsyncClient":
    """Connections to one endpoint: to this machine without proxy and certificates.

    Raises:
        MissingError: a proxy needs a package.
        UsageError: a variable names no proxy, or no file of certificates.
    """
    from openai import DefaultAsyncHttpxClient

    if is_loopback(url) and url.startswith("http:"):
        return DefaultAsyncHttpxClient(trust_env=False, verify=_no_certificates())
    verify = _certificates(*map(os.environ.get, CERTIFICATES))
    try:
        return DefaultAsyncHttpxClient(trust_env=not is_loopback(url), verify=verify)
    except ImportError as error:
        names = ", ".join(name for name, value in _proxies().items() if "socks" in value)
        raise MissingError(
            f"{names or 'a proxy'} names a SOCKS proxy, which needs a package: pip install "
            "'httpx2[socks]', or unset the variable"
        ) from error
    except ValueError as error:
        names = ", ".join(_proxies()) or "the proxy"
        raise UsageError(f"{names} names no proxy ({error}); correct or unset it") from error


@cache
def _no_certificates() -> "ssl.SSLContext":
    """Trusts nobody: for plain http."""
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
"""Environment variables that name certificate authorities; the first that is set counts."""


@cache
def _certificates(*values: str | None) -> "ssl.SSLContext":
    """Read once, because reading blocks the event loop for about 20 ms.

    Raises:
        UsageError: a variable names nothing that holds certificates.
    """
    import ssl

    import httpx2

    for name, value in zip(CERTIFICATES, values, strict=True):
        if not value:
            continue
        path = Path(value)
        try:
            if not path.exists():
                raise FileNotFoundError(f"there is no {value}")
            if path.is_dir():
                return ssl.create_default_context(capath=value)
            return ssl.create_default_context(cafile=value)
        except OSError as error:
            raise UsageError(
                f"{name} names no file of certificates ({error}): correct or unset it"
            ) from error
    return httpx2.create_ssl_context()


def connection_remedy(cause: str, base_url: str, name: str) -> str:
    """What the user can do where no connection came about; `name` is where the URL was set."""
    if "WRONG_VERSION" in cause or "record layer" in cause:
        return f"the server speaks http there, not https: correct {name}"
    if "certificate" in cause.lower():
        return "name the file of its certificate authority in SSL_CERT_FILE"
    if NEVER_CONNECTS.search(cause):
        return f"no host has the name {urlsplit(base_url).hostname}: check {name}"
    proxy = next(iter(_proxies()), None)
    through = f", and the proxy {proxy}" if proxy and not is_loopback(base_url) else ""
    return f"is it running? check {name}{through}"


class Chunks(AsyncStream[object]):
    """The chunks of a stream, and whether `[DONE]` has ended it."""

    done = False

    async def whole(self) -> bytes | None:
        """The body of a server that does not stream, or None; a stream's length is unknown."""
        headers = self.response.headers
        kind = headers.get("content-type", "")
        whole = "json" in kind or "html" in kind or "content-length" in headers
        if not whole or "event-stream" in kind:
            return None
        body = await self.response.aread()
        if b"data:" in body[:200] and not body.lstrip().startswith((b"{", b"<")):
            return None
        return body

    async def _iter_events(self) -> AsyncIterator[Any]:
        async for event in super()._iter_events():
            self.done = self.done or event.data.startswith("[DONE]")
            if event.event == "error" and '"error"' not in event.data:
                raise error_reply(event.data)
            if event.data.strip():  # Some servers keep the connection alive by empty events.
                yield event
