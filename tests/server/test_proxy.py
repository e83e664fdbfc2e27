"""Behind a real nginx, with the config of the documentation."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from tests.support.serving import Scripted, X, scripted, serving, soon

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "proxy.md"
KEY = "choose-one"
SHOWN = {"authorization": f"Bearer {KEY}"}
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not shutil.which("nginx"), reason="there is no nginx"),
]


@pytest.fixture(scope="module")
def script() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, script: Scripted) -> Iterator[str]:
    """The address of nginx, below whose path the server is."""
    folder = tmp_path_factory.mktemp("nginx")
    with serving(folder / "run", script, api_key=KEY, proxies=("127.0.0.1",), per_second=5,
                 burst=100) as server:  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (text,) = re.findall(r"```nginx[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
        config = text.replace("127.0.0.1:8700", server.removeprefix("http://"))
        config = config.replace("listen 8080", f"listen 127.0.0.1:{port}")
        temporary = "".join(
            f"    {kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = config.replace("http {\n", f"http {{\n    access_log off;\n{temporary}", 1)
        (folder / "nginx.conf").write_text(config)
        user = "user root; " if os.geteuid() == 0 else ""  # Its workers would have no access.
        options = f"{user}daemon off; pid {folder}/pid; error_log stderr;"
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as nginx:
            try:
                address = f"http://127.0.0.1:{port}/reflux"
                soon(lambda: nginx.poll() is not None or is_up(address))
                assert nginx.poll() is None, nginx.stderr and nginx.stderr.read()
                yield address
            finally:
                nginx.terminate()


def is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def test_clients_are_answered_below_a_path_by_any_name(url: str) -> None:
    headers = {**SHOWN, "host": "llm.example", "origin": "https://llm.example"}
    body = {"model": X, "messages": [{"role": "user", "content": "one two"}]}
    got = httpx2.post(f"{url}/v1/chat/completions/", json=body, headers=headers)
    assert got.json()["choices"][0]["message"]["content"] == "ONE TWO"
    assert httpx2.get(f"{url}/v1/models", headers={"host": "llm.example"}).status_code == 401
    assert httpx2.get(f"{url}/healthz", headers={"host": "10.1.2.3:9"}).status_code == 200
    with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.responses.create(model="amplified", input="a and b").output_text == "A+B"


def test_a_stream_passes_word_by_word(url: str, script: Scripted) -> None:
    """The second word is written only once the first has arrived through nginx."""
    arrived = threading.Event()
    waits: list[bool] = []

    def pause(body: dict[str, object]) -> float:
        if body.get("stream") and len(waits) < 2:
            waits.append(not waits or arrived.wait(20))
        return 0.0

    script.pause = pause
    try:
        with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            said = [{"role": "user", "content": "word by word"}]
            for chunk in client.chat.completions.create(model=X, messages=said, stream=True):  # type: ignore[arg-type,call-overload]
                if chunk.choices[0].delta.content:
                    arrived.set()
    finally:
        script.pause = lambda body: 0.0
    assert waits == [True, True]


def test_a_long_answer_and_a_long_question_pass(url: str) -> None:
    text = "word " * 40_000
    with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        said = [{"role": "user", "content": text}]
        reply = client.chat.completions.create(model=X, messages=said, max_tokens=50_000)  # type: ignore[arg-type]
    assert reply.choices[0].message.content == text.upper().strip()


def test_a_client_that_leaves_through_nginx_stops_its_tree(url: str, script: Scripted) -> None:
    left = script.left
    script.pause = lambda body: 0.02
    body = {"model": X, "stream": True, "max_tokens": 2_000,
            "messages": [{"role": "user", "content": "leave " * 1_000}]}  # fmt: skip
    try:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, headers=SHOWN) as got:
            next(got.iter_bytes())
        assert soon(lambda: script.left > left)
    finally:
        script.pause = lambda body: 0.0


def test_the_page_and_its_parts_are_below_the_path(url: str) -> None:
    page = httpx2.get(f"{url}/")
    parts = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert len(parts) > 5
    for part in parts:
        assert not part.startswith("/")
        assert httpx2.get(f"{url}/{part}").status_code == 200
    assert "fetch(`.${path}`" in httpx2.get(f"{url}/page/api.js").text


def test_a_proxy_names_the_clients_to_the_rate_limit_and_no_client_can(url: str) -> None:
    """nginx replaces what the client claims; all requests here are one client's."""
    claims = [{**SHOWN, "x-forwarded-for": f"10.9.8.{number}"} for number in range(200)]
    statuses = [httpx2.get(f"{url}/v1/models", headers=claim).status_code for claim in claims]
    assert 429 in statuses
