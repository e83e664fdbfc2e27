"""A server of Reflux on a free port, in a thread, and a scripted endpoint behind it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
import uvicorn

from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import HumanOverseer, ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.finetune.run_folder import RunFolder
from reflux.server.app import create_app, server_config
from reflux.server.settings import ServeSettings
from tests.support.commanding import Running

X = "x"
"""The name under which the scripted endpoint is served."""


def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Splits at " and ", leaves the rest to X."""
    if transcript:
        return Answer("+".join(str(said.answer) for said in transcript))
    *_, asked = question.rsplit("Question:\n", 1)
    return Ask.of(*asked.split(" and ")) if may_ask and " and " in asked else PASS


H: Mapping[str, Overseer] = {
    "splits": ScriptedOverseer("splits", act),
    "plain": ScriptedOverseer("plain", lambda question, transcript, may_ask: PASS),
    "human": HumanOverseer(),
}


@dataclass
class Scripted:
    """An endpoint of the chat protocol that says a question's words in capitals, one a chunk."""

    port: int
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests."""
    pause: Callable[[dict[str, Any]], float] = lambda body: 0.0
    """Seconds before each word."""
    refusal: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda body: None
    says: Callable[[str], str] = str.upper
    """What is said to a question."""
    breaks: bool = False
    """Drops the connection after the first word of a stream."""
    thinks: str = ""
    """Reasoning before each reply."""
    arguments: str = '{"city": "Paris"}'
    """Of the calls of the first tool of each request."""
    left: int = 0
    """Streams whose reader went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, **options: Any) -> OpenAIClient:
        return OpenAIClient(self.url, "none", **{"retries": 0, "concurrency": 64, **options})

    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


@contextmanager
def scripted() -> Iterator[Scripted]:
    """The endpoint, for the length of a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server: "Server"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._whole({"object": "list", "data": [{"id": X, "object": "model"}]})

        def do_POST(self) -> None:
            script = self.server.script
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.asked.append(body)
            if (refused := script.refusal(body)) is not None:
                self._whole({"error": {"message": refused[1]}}, refused[0])
                return
            words = script.says(str(body["messages"][-1]["content"])).split()
            limit = body.get("max_tokens") or body["max_completion_tokens"]
            finish = "length" if len(words) > limit else "stop"
            words = words[:limit]
            usage = {"prompt_tokens": 10, "completion_tokens": len(words)}
            logprob = {"top_logprobs": [{"token": "a", "logprob": -0.5}], "logprob": -0.5}
            told = body.get("logprobs")
            calls = bool(body.get("tools")) and body["messages"][-1]["role"] != "tool"
            if not body.get("stream"):
                time.sleep(script.pause(body))
                content = [{"token": word, **logprob} for word in words] if told else None
                message = {"role": "assistant", "content": " ".join(words)}
                if script.thinks:
                    message["reasoning_content"] = script.thinks
                if calls:
                    message |= {"content": None, "tool_calls": [call_of(body, script)]}
                choice = {"message": message, "finish_reason": finish}
                choice["logprobs"] = {"content": content}
                self._whole({"choices": [choice], "usage": usage})
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                if script.thinks:
                    self._chunk({"reasoning_content": script.thinks})
                if calls:
                    self._chunk({"tool_calls": [{"index": 0, **call_of(body, script)}]})
                    words = []
                for at, word in enumerate(words):
                    time.sleep(script.pause(body))
                    content = {"content": [{"token": word, **logprob}]} if told else None
                    self._chunk({"content": f" {word}" if at else word}, logprobs=content)
                    if script.breaks:
                        self.close_connection = True
                        self.connection.shutdown(2)
                        return
                self._chunk({}, finish_reason=finish)
                self._event({"choices": [], "usage": usage})
                self._raw(b"data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                script.left += 1
                self.close_connection = True

        def _chunk(self, delta: dict[str, Any], **more: Any) -> None:
            self._event({"choices": [{"index": 0, "delta": delta, **more}]})

        def _event(self, body: dict[str, Any]) -> None:
            self._raw(b"data: " + json.dumps(body).encode() + b"\n\n")

        def _raw(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

        def _whole(self, body: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256
        script: Scripted

    with Server(("127.0.0.1", 0), Handler) as server:
        server.script = Scripted(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.script
        server.shutdown()


@contextmanager
def scripted_for_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """The endpoint of a server, and of the commands that it starts."""
    with scripted() as script:
        monkeypatch.setenv("OPENAI_BASE_URL", script.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield script


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
}


def call_of(body: dict[str, Any], script: Scripted) -> dict[str, Any]:
    """The call of the first tool of a request."""
    function = {"name": body["tools"][0]["function"]["name"], "arguments": script.arguments}
    return {**CALL, "function": function}


class Server(uvicorn.Server):
    """Asks more often than uvicorn's whether it is to end."""

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await asyncio.sleep(0.02)


@contextmanager
def serving(
    run: Path,
    script: Scripted | None = None,
    overseers: Mapping[str, Overseer] = H,
    **settings: Any,
) -> Iterator[str]:
    """The address of a server that runs for the length of a block; X is the scripted endpoint."""
    told = ServeSettings(overseer="splits" if "splits" in overseers else "model")
    if script is not None:
        told = replace(told, endpoints={X: Endpoint(script.client(), "far")}, model=X)
    app = create_app(RunFolder(run), replace(told, **settings), overseers)
    server = Server(server_config(app, port=0, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    try:
        # A collection of all that the tests have imported takes longer than most of them.
        with patch("reflux.server.app.settled", nullcontext):
            thread.start()
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the server did not start; see its log")
                time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def soon(what: Callable[[], Any], seconds: float = 10) -> Any:
    """What becomes true within some seconds."""
    for _ in range(round(50 * seconds)):
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def served_url(running: Running) -> str:
    """The address that `reflux serve --json` prints, once it answers."""

    def told() -> str:
        assert running.process.is_alive()
        said = running.folder / "out"
        text = said.read_text() if said.is_file() else ""
        return json.loads(text)["url"] if text.endswith("}\n") else ""

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    url: str = soon(told, 60)  # A loaded machine is slow to start it.
    soon(answers, 60)
    return url
