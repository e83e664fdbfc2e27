"""A server that answers as a behavior says, over a real socket, in a separate thread."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    number: int
    """From 0, among those that post."""
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class Reply:
    """What the server sends: a status, and a body in one or more writes."""

    body: Any = b""
    """Bytes, text, something to be JSON, or a list of bytes, which are written apart."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    stalls: bool = False
    """The server keeps the connection open and sends nothing more."""
    drops: bool = False
    """The server closes the connection before it has sent all that it announced."""

    def parts(self) -> list[bytes]:
        if isinstance(self.body, list) and isinstance(self.body[0], bytes):
            return self.body
        if isinstance(self.body, bytes):
            return [self.body]
        if isinstance(self.body, str):
            return [self.body.encode()]
        return [json.dumps(self.body).encode()]


@dataclass
class Served:
    """A server under way."""

    url: str = ""
    requests: list[Asked] = field(default_factory=list[Asked])
    """Those that posted, in order."""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [asked.body for asked in self.requests]


Respond = Callable[[Asked], Reply]


@contextmanager
def serving(
    respond: Respond, models: Sequence[str] | None = ("m",), port: int = 0
) -> Iterator[Served]:
    """Serve `/v1/chat/completions`, or any other path that is posted to, until the block ends.

    Where `models` is None, `respond` lists them, too.
    """
    served = Served()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while await _one(reader, writer, served, respond, models):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            with suppress(Exception):
                writer.close()

    async def begin() -> asyncio.Server:
        server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**24)
        served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        return server

    async def end(server: asyncio.Server) -> None:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run() -> None:
        server = loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(end(server))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(30)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


async def _one(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    served: Served,
    respond: Respond,
    models: Sequence[str] | None,
) -> bool:
    """Answer one request; False where the connection ends."""
    first = await reader.readexactly(1)
    if not first.isalpha():  # A TLS handshake.
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        return False
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.strip().split("\r\n")
    method, path, _ = line.split(" ", 2)
    headers = {n.lower(): v.strip() for n, _, v in (each.partition(":") for each in lines)}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    if models is not None and method == "GET" and path.split("?")[0].endswith("/models"):
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": ""} for name in models]
        reply = Reply({"object": "list", "data": listed})
    else:
        asked = Asked(len(served.requests), path, headers, json.loads(raw or b"{}"))
        served.requests.append(asked)
        reply = respond(asked)
    parts = reply.parts()
    kind = {"content-type": "application/json"} | {k.lower(): v for k, v in reply.headers.items()}
    streams = "event-stream" in kind["content-type"]
    if streams:
        kind["connection"] = "close"
    else:
        kind["content-length"] = str(sum(map(len, parts)) + 10 * reply.drops)
    fields = "".join(f"{name}: {value}\r\n" for name, value in kind.items())
    writer.write(f"HTTP/1.1 {reply.status} X\r\n{fields}\r\n".encode())
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0)  # Each part is a write of its own.
    if reply.stalls:
        await reader.read()
    if streams or reply.drops or reply.stalls:
        with suppress(OSError, NotImplementedError):
            writer.write_eof()
        return False
    return True
