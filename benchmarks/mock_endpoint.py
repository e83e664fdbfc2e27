"""A chat endpoint in a separate process, light enough not to affect the measurement.

It implements the part of HTTP/1.1 and of the OpenAI chat protocol that the `openai` package needs.
`/ms/50/v1/chat/completions` answers after 50 ms; `/count` returns the number of completions. It
answers "split into 3" with three lines, anything else with "ok". A streamed answer repeats the
question's words: the first after 50 ms, and at `/ms/50-20/` each next one 20 ms later.
"""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

SPLIT = "split into "


@dataclass
class Endpoint:
    """A running mock endpoint."""

    port: int
    process: int
    """Its id."""

    def base_url(self, latency_ms: float, between_ms: float = 0) -> str:
        """Its address; each reply takes `latency_ms`, and each further streamed word
        `between_ms`."""
        return f"http://127.0.0.1:{self.port}/ms/{latency_ms:g}-{between_ms:g}/v1"

    def count(self) -> int:
        """Completions requested so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/count") as reply:
            return int(reply.read())


@contextmanager
def mock_endpoint() -> Iterator[Endpoint]:
    """Run the endpoint as a child process for the length of the block."""
    command = [sys.executable, "-m", "benchmarks.mock_endpoint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            yield Endpoint(int(process.stdout.readline()), process.pid)
        finally:
            process.terminate()


class _Served:
    """State that all connections share."""

    completions = 0


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests arrive one after another."""

    def __init__(self, served: _Served) -> None:
        self._served = served
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower().partition(b"content-length:")[2]
        length = int(fields.partition(b"\r\n")[0] or 0)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        path = head.split(b" ", 2)[1].decode()
        if path == "/count":
            self._reply(str(self._served.completions).encode())
            return
        self._served.completions += 1
        first, _, between = path.split("/")[2].partition("-")
        seconds = float(first) / 1e3
        asked = json.loads(rest[:length])
        if asked.get("stream"):
            chunks = _chunks(asked)
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._begin, chunks, float(between or 0) / 1e3)
            return
        body = _completion(asked)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._reply, body)
        else:
            self._reply(body)

    def _begin(self, chunks: list[bytes], between: float) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        self._transport.write(head + b"transfer-encoding: chunked\r\n\r\n")
        self._go_on(chunks, 0, between)

    def _go_on(self, chunks: list[bytes], at: int, between: float) -> None:
        if self._transport.is_closing():
            return
        chunk = chunks[at]
        self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if at == len(chunks) - 1:
            self._transport.write(b"0\r\n\r\n")
        elif between and at < len(chunks) - 2:
            loop = asyncio.get_running_loop()
            loop.call_later(between, self._go_on, chunks, at + 1, between)
        else:
            self._go_on(chunks, at + 1, between)

    def _reply(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


def _chunks(asked: dict[str, Any]) -> list[bytes]:
    """The events of a streamed answer; the last event ends it."""
    words = asked["messages"][-1]["content"].split()
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
    head["model"] = asked["model"]

    def event(**body: Any) -> bytes:
        return b"data: " + json.dumps(head | body).encode() + b"\n\n"

    def choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    told = [
        event(**choice({"content": f" {word}" if at else word})) for at, word in enumerate(words)
    ]
    usage = {"prompt_tokens": len(words), "completion_tokens": len(words)}
    end = event(**choice({}, "stop")) + event(choices=[], usage=usage)
    return [*told, end + b"data: [DONE]\n\n"]


def _completion(asked: dict[str, Any]) -> bytes:
    question: str = asked["messages"][-1]["content"]
    text = "ok"
    if question.startswith(SPLIT):
        parts = int(question.removeprefix(SPLIT).split()[0])
        text = "\n".join(f"part {i} of {question}" for i in range(parts))
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": len(question.split()),
                "completion_tokens": len(text.split()),
                "total_tokens": len(question.split()) + len(text.split()),
            },
        }
    ).encode()


async def _serve() -> None:
    served = _Served()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(served), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
