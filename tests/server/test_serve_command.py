"""`reflux serve`: what it says, what it reads, how it ends."""

import asyncio
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from reflux.cli.serve import listening_socket
from tests.support.commanding import begin
from tests.support.serving import scripted, served_url, soon

pytestmark = pytest.mark.process


def test_it_serves_the_endpoints_of_the_environment_and_the_config_until_interrupted(
    tmp_path: Path,
) -> None:
    config = tmp_path / "serve.yaml"
    run = tmp_path / "run"
    with scripted() as script:
        config.write_text(
            f"endpoints:\n  other: {{base_url: '{script.url}', model: far, api_key_env: FAR_KEY}}\n"
            "body_bytes: 2000\n"
        )
        words = ["serve", "--port", "0", "--json", "--run", str(run), "--model", "near"]
        words += ["--config", str(config), "--overseer", "plain"]
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k", "FAR_KEY": "secret"}
        running = begin(words, env)
        url = served_url(running)
        listed = [model["id"] for model in httpx2.get(f"{url}/v1/models").json()["data"]]
        assert {"other", "near", "base", "amplified:model"} <= set(listed)
        for model in ("other", "near", "amplified"):
            body = {"model": model, "messages": [{"role": "user", "content": f"hello {model}"}]}
            got = httpx2.post(f"{url}/v1/chat/completions", json=body).json()
            assert got["choices"][0]["message"]["content"] == f"HELLO {model.upper()}"
        assert [body["model"] for body in script.asked] == ["far", "near", "near"]
        too_long = httpx2.post(f"{url}/v1/chat/completions", content=b"x" * 2_001)
        assert too_long.status_code == 413
        os.kill(running.process.pid or 0, signal.SIGINT)
        ended = running.wait()
    assert ended.code == 130
    assert ended.stderr.splitlines()[-1] == "reflux: stopped"
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr


def test_the_agent_can_be_a_model_at_an_address_and_the_base_stays_the_runs_own(
    tmp_path: Path,
) -> None:
    with scripted() as script:
        agent = f"endpoint:near@{script.url}"
        words = ["serve", "--port", "0", "--json", "--run", str(tmp_path), "--model", agent]
        running = begin([*words, "--overseer", "plain"], {})
        url = served_url(running)
        for model in ("near", "amplified"):
            body = {"model": model, "messages": [{"role": "user", "content": f"hello {model}"}]}
            got = httpx2.post(f"{url}/v1/chat/completions", json=body).json()
            assert got["choices"][0]["message"]["content"] == f"HELLO {model.upper()}"
        os.kill(running.process.pid or 0, signal.SIGINT)
        running.wait()
        env = {"OPENAI_BASE_URL": script.url}
        running = begin([*words[:-1], "base"], env, before=ignore_interrupts)
        listed = httpx2.get(f"{served_url(running)}/v1/models").json()["data"]
        assert [model["id"] for model in listed].count("base") == 1
        os.kill(running.process.pid or 0, signal.SIGINT)
        assert running.wait().code == 130


def ignore_interrupts() -> None:
    """As a shell does for what it starts with `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("words", "env", "code", "why"),
    [
        (["--host", "0.0.0.0"], {}, 2, "set REFLUX_API_KEY"),  # noqa: S104
        (["--overseer", "nobody"], {}, 2, "no overseer is called 'nobody'"),
        ([], {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, 2, "name its model with --model"),
        (["--config", "colour: red"], {}, 2, "colour"),
        (["--config", "endpoints: {e: {base_url: 'ftp://x', model: m}}"], {}, 2, "http://"),
        (
            ["--config", "endpoints: {e: {base_url: 'http://x', model: m, api_key_env: NO_KEY}}"],
            {}, 3, "NO_KEY, the key of e, is not set",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said_before_it_listens(
    tmp_path: Path, words: list[str], env: dict[str, str], code: int, why: str
) -> None:
    if words[:1] == ["--config"]:
        (tmp_path / "serve.yaml").write_text(words[1])
        words = ["--config", str(tmp_path / "serve.yaml")]
    ended = begin(["serve", "--port", "0", "--run", str(tmp_path / "run"), *words], env).wait()
    assert (ended.code, ended.stdout) == (code, "")
    assert why in ended.stderr


def test_a_port_that_is_taken_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = begin(["serve", "--port", port, "--run", str(tmp_path)]).wait()
    assert ended.code == 2
    assert f"127.0.0.1:{port} cannot be served" in ended.stderr and "--port" in ended.stderr


async def test_the_first_words_of_a_stream_do_not_wait_for_an_acknowledgement() -> None:
    """Nagle's algorithm, with the client's delayed acknowledgements, holds them for 40 ms."""
    undelayed: asyncio.Queue[int] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        undelayed.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listening_socket("127.0.0.1", 0) as listening:
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            assert await undelayed.get()
            writer.close()


def test_a_server_that_is_killed_under_load_loses_no_answer_that_it_gave(tmp_path: Path) -> None:
    """And what waited for a human is answered by the next server; the proxy's calls stay, too."""
    answered: dict[str, str] = {}
    recorded: list[str] = []

    def ask(number: int) -> None:
        model = ("near", "amplified")[number % 2]
        prefix = "record/v1" if number % 3 == 0 else "v1"
        turn = {"role": "user", "content": f"hello {number}"}
        body = {"model": model, "messages": [turn], "max_tokens": 9}
        with suppress(httpx2.TransportError):
            got = httpx2.post(f"{url}/{prefix}/chat/completions", json=body, timeout=60)
            assert got.status_code == 200, got.text
            said = got.json()["choices"][0]["message"]["content"]
            if prefix == "v1":
                answered[got.headers["x-reflux-trajectory"]] = said
            else:
                recorded.append(said)

    with ExitStack() as ended, scripted() as script, ThreadPoolExecutor(16) as pool:
        script.pause = lambda body: 0.01
        env = {"OPENAI_BASE_URL": script.url}
        words = ["serve", "--port", "0", "--json", "--run", str(tmp_path), "--model", "near"]
        words += ["--overseer", "plain", "--record", script.url]
        running = begin(words, env)
        ended.callback(running.process.kill)
        url = served_url(running)
        who = {"model": "amplified:human", "messages": [{"role": "user", "content": "who?"}]}
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json={**who, "stream": True}
        ) as waiting:
            next(waiting.iter_raw())
            load = [pool.submit(ask, number) for number in range(200)]
            soon(lambda: len(answered) >= 10 and recorded, 60)
            running.process.kill()
            assert running.wait().code == -signal.SIGKILL
            for each in load:
                each.result()
        assert len(answered) < 190
        again = begin(words, env)
        ended.callback(again.process.kill)
        url = served_url(again)
        for id, said in answered.items():
            tree = httpx2.get(f"{url}/api/trajectories/{id}").json()["tree"]
            assert (tree["answer"], tree["status"]) == (said, "unchecked")
        (pending,) = httpx2.get(f"{url}/api/pending").json()["pending"]
        to = f"{url}/api/pending/{pending['trajectory']}/{pending['id']}"
        assert httpx2.post(to, json={"words": "answer: me"}).json()["outcome"]["answer"] == "me"
        ask(1)
