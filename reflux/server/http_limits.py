"""Limits on HTTP/1.1 connections, below the app: slow or endless request heads, open files.

The app's guards see complete heads only. A client that never completes a head is dropped here.
Limits on bodies are in `reflux.server.guards`.
"""

import asyncio
import resource
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
"""Maximum size of a request's line and headers."""
HEAD_SECONDS = 20.0
"""Maximum time for a head, from the connection's start or the head's first byte."""
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
OPEN_FILES = 16_384
"""Open files that the server asks for: its clients and its connections to endpoints."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a deadline and a size limit for request heads."""

    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _in_body = False

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; refuse a head over the limit."""
        self._head_bytes += len(data)
        super().data_received(data)  # Resets the count at the end of a head or a body.
        if self._in_body:
            self._head_bytes = 0
        elif self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Start the deadline of the next head."""
        super().on_message_begin()
        self._in_body = False
        if self._deadline is None:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        """End the deadline."""
        self._in_body, self._head_bytes = True, 0
        self._cancel_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Count bytes as a head again."""
        super().on_message_complete()
        self._in_body, self._head_bytes = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def server_config(app: FastAPI, **options: Any) -> uvicorn.Config:
    """Return the uvicorn config of an app; `options` go to `uvicorn.Config`."""
    return uvicorn.Config(
        app,
        http=LimitedHttpProtocol,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # With X-Forwarded-For, one client could pose as many.
        **options,
    )


def open_more_files() -> None:
    """Raise this process's limit of open files, often 1,024, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
