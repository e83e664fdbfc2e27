"""Sends chat completions at scheduled times, at little CPU cost.

It implements the part of HTTP/1.1 that complete and streamed replies need. Requests start at their
scheduled time, whether or not earlier ones have been answered; their latency counts from then.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class TimedReply:
    """One answer."""

    text: str
    first: float
    """Seconds from the scheduled time to the first word."""
    last: float
    """Seconds from the scheduled time to the end."""


class LoadClient:
    """Reusable connections to one server."""

    def __init__(self, base_url: str) -> None:
        self._url = urlsplit(base_url)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(
        self, model: str, question: str, stream: bool = False, due: float | None = None
    ) -> TimedReply:
        """Ask one question.

        Raises:
            RuntimeError: The server's reply is not a completion.
        """
        begun = time.perf_counter() if due is None else due
        reader, writer = await self._connection()
        try:
            writer.write(self._request(model, question, stream))
            text, first = await (_read_stream if stream else _read_whole)(reader)
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return TimedReply(text, first - begun, time.perf_counter() - begun)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # Servers close idle connections.
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._url.hostname, self._url.port)

    def _request(self, model: str, question: str, stream: bool) -> bytes:
        messages = [{"role": "user", "content": question}]
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 64}
        if stream:
            body["stream"] = True
        data = json.dumps(body).encode()
        return (
            f"POST {self._url.path}/chat/completions HTTP/1.1\r\nhost: {self._url.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        ).encode() + data

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._free:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head.splitlines()[0]!r}: {await reader.read(400)!r}")
    return head.lower()


async def _read_whole(reader: asyncio.StreamReader) -> tuple[str, float]:
    head = await _head(reader)
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    return body["choices"][0]["message"]["content"], time.perf_counter()


async def _read_stream(reader: asyncio.StreamReader) -> tuple[str, float]:
    await _head(reader)
    text, first = "", 0.0
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        if not line:
            raise RuntimeError(f"a stream ended before its time, after {text!r}")
        if line.startswith(b"data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            said = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            if said:
                first = first or time.perf_counter()
                text += said
    while (await reader.readline()).rstrip() != b"0":
        pass
    await reader.readline()
    return text, first


async def at_rate(
    ask: Callable[[int, float], Awaitable[TimedReply]], count: int, per_second: float
) -> list[TimedReply]:
    """Ask `count` times, evenly spaced; `ask` receives the number and the scheduled time."""
    start = time.perf_counter() + 0.05
    tasks: list[asyncio.Task[TimedReply]] = []
    for number in range(count):
        due = start + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(number, due)))
    return await asyncio.gather(*tasks)


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which a given share of the samples lies."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
