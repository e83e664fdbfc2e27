"""An endpoint that answers with given bytes, and a recording proxy in front of it."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from reflux.graphs.traces.recording.placing import Places
from reflux.graphs.traces.recording.recorder import ExchangeRecorder
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory, load
from reflux.server.app import server_config
from reflux.server.recording.proxy import Upstream, create_record_app
from reflux.server.settings import ServeSettings
from tests.support.serving import Server

Part = bytes | Callable[[], Any]
"""Bytes that are written, or something to wait for before the next are."""


@dataclass
class Got:
    """A request that arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Raw:
    """The endpoint: what it has got, and what it answers, as whole HTTP messages in parts."""

    port: int
    respond: Callable[[Got], Sequence[Part]] = lambda got: ()
    got: list[Got] = field(default_factory=list[Got])
    left: int = 0
    """Replies whose reader went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        line = self.rfile.readline().decode("latin-1").strip()
        headers: list[tuple[str, str]] = []
        while head := self.rfile.readline().decode("latin-1").strip():
            name, _, value = head.partition(":")
            headers.append((name, value.strip()))
        if not line:
            return
        got = Got(line, headers, self._body({name.lower(): value for name, value in headers}))
        raw = cast(_Endpoint, self.server).raw
        raw.got.append(got)
        try:
            for part in raw.respond(got):
                if callable(part):
                    part()
                else:
                    self.wfile.write(part)
                    self.wfile.flush()
        except OSError:
            raw.left += 1

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


class _Endpoint(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 256
    raw: Raw


@contextmanager
def raw_upstream() -> Iterator[Raw]:
    """The endpoint, for the length of a block; each of its connections carries one request."""
    with _Endpoint(("127.0.0.1", 0), _Handler) as server:
        server.raw = Raw(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.raw
        server.shutdown()


def message(body: Any, status: str = "200 OK", *headers: str) -> bytes:
    """A whole HTTP message."""
    data = body if isinstance(body, bytes) else json.dumps(body, indent=1).encode()
    kind = () if any(h.lower().startswith("content-type") for h in headers) else (
        "content-type: application/json",
    )  # fmt: skip
    head = [f"HTTP/1.1 {status}", f"content-length: {len(data)}", "connection: close"]
    return "\r\n".join((*head, *kind, *headers, "", "")).encode() + data


STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\nconnection: close\r\nX-Request-ID: Abc\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*data: Any, done: bool = False) -> list[Part]:
    """A stream of server-sent events, each in a chunk of its own."""
    texts = [
        (f"event: {each['type']}\n" if "type" in each else "") + f"data: {json.dumps(each)}\n\n"
        for each in data
    ]
    parts = [text.encode() for text in texts] + [b"data: [DONE]\n\n"] * done
    return [STREAM, *map(chunk, parts), b"0\r\n\r\n"]


@dataclass
class Recording:
    """A proxy under way, and its record."""

    url: str
    """Without /v1."""
    path: Path
    recorder: ExchangeRecorder

    def trajectories(self, calls: int) -> list[Trajectory]:
        """All, in the order in which they began, once so many exchanges are on record."""
        for _ in range(1_000):
            if self.recorder.recorded >= calls:
                break
            time.sleep(0.01)
        assert self.recorder.recorded == calls, (self.recorder.recorded, self.recorder.failed)
        with closing(TraceStore(self.path)) as store:
            ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
            return [found for id in ids if (found := load(store, id)) is not None]


@contextmanager
def recording(
    folder: Path, upstream: str, anthropic: str = "", key: str = "", **settings: Any
) -> Iterator[Recording]:
    """A proxy in front of an endpoint, in a separate thread; `key` is a field of requests."""
    path = folder / "traces.db"
    said: list[str] = []
    with (
        closing(TraceStore(path)) as store,
        closing(ExchangeRecorder(Places(store, "url", key), said.append)) as r,
    ):
        endpoints = Upstream(upstream, anthropic or upstream)
        app = create_record_app(endpoints, r, ServeSettings(**settings))
        options = server_config(app, port=0, timeout_graceful_shutdown=1, date_header=False)
        server = Server(options)
        thread = threading.Thread(target=server.run, daemon=True)
        try:
            thread.start()
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Recording(f"http://127.0.0.1:{port}", path, r)
        finally:
            server.should_exit = True
            with suppress(RuntimeError):
                thread.join(timeout=20)
    assert said == []
