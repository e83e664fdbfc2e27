"""HTTP/1.1 as uvicorn speaks it, with limits on what comes before a request is one.

The app's guards see whole requests. A client that sends a head without end, or none at all, never
gets that far: it is cut off here. What is said of bodies is in `reflux/server/guards.py`.
"""

import asyncio
import resource
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
"""Of a request's line and headers."""
HEAD_SECONDS = 20.0
"""In which they have to come, from the connection's beginning or their first byte."""
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
OPEN_FILES = 16_384
"""Connections of clients, and those to endpoints for them."""


class Wire(HttpToolsProtocol):
    """A connection whose requests begin in time and within bounds."""

    _head = 0
    """Bytes since the last head was whole."""
    _late: asyncio.TimerHandle | None = None
    _within = False
    """Whether a head has come, of which the body has not."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first head, as long as one may take."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; a head over the limit is refused."""
        self._head += len(data)
        super().data_received(data)  # What ends a head or a body begins to count anew.
        if self._within:
            self._head = 0
        elif self._head > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._within = False
        if self._late is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """It has come."""
        self._within, self._head = True, 0
        self._rest()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body has come, too."""
        super().on_message_complete()
        self._within, self._head = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._rest()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def server_config(app: FastAPI, **options: Any) -> uvicorn.Config:
    """How uvicorn is to serve an app of Reflux; `options` are further ones of its config."""
    return uvicorn.Config(
        app,
        http=Wire,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # Whoever sends X-Forwarded-For would be whoever they say they are.
        **options,
    )


def open_more_files() -> None:
    """Raise this process's own limit of open files as far as it may: often it is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
