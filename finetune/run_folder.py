"""A run folder: config, trajectories, checkpoints, students and report of one run.

One process at a time writes it; a lock that dies with its process keeps others out.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from reflux.agents.budget import Price
from reflux.agents.clients.cached import CachedClient
from reflux.agents.clients.llama_cpp import (
    EngineConfig,
    LlamaCppClient,
    ModelFiles,
    default_gguf,
    file_sha256,
)
from reflux.agents.errors import UsageError
from reflux.agents.types import ChatClient
from reflux.finetune.config import RoundsConfig, config_from, read_yaml
from reflux.finetune.engine.client import BatchedClient, BatchedConfig
from reflux.finetune.registry import Registry
from reflux.graphs.traces.recorded_client import RecordedClient, completion_of
from reflux.graphs.traces.store import TraceStore

FORMAT = 1


class RunFolder:
    """One run on disk, opened by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.traces_path = path / "traces.db"
        self.checkpoints_path = path / "checkpoints.db"
        self.config_path = path / "config.yaml"
        self.report_path = path / "report.json"
        self.chart_path = path / "report.png"
        self.registry = Registry(path / "students")
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """The folder's name, recorded with every question."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """True where a run was begun here."""
        return self.config_path.is_file()

    def lock(self) -> None:
        """Keep other processes out until this one ends.

        Raises:
            UsageError: another process works here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise UsageError(
                f"another process (id {owner}) works in {self.path}; wait for it, or name "
                "another --run"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for the length of a block; see `lock`."""
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save_config(self, config: dict[str, Any]) -> None:
        """Write the config that the run was begun with."""
        self.path.mkdir(parents=True, exist_ok=True)
        body = yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False)
        write_whole(self.config_path, body)

    def load_config(self) -> dict[str, Any]:
        """The config that the run was begun with; one that names no engine is of llama.cpp, since
        runs had no other.

        Raises:
            UsageError: no run, or one of another version.
        """
        if not self.exists:
            raise UsageError(f"{self.path} holds no run; begin one with `reflux run`")
        found = read_yaml(self.config_path)
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise UsageError(
                f"{self.config_path} is not of format {FORMAT}: another version of Reflux wrote "
                "it; name another --run"
            )
        return {"engine": "llama.cpp", **found}

    def rounds_config(self) -> RoundsConfig | None:
        """The validated config of the run; None before one has begun."""
        return config_from(self.load_config(), str(self.config_path)) if self.exists else None

    def prices(self) -> Mapping[str, Price]:
        """Prices of each model per million tokens, from the run's config."""
        config = self.rounds_config()
        return config.spend_limit.prices if config else {}

    def store(self) -> TraceStore:
        """The trajectories, opened."""
        return TraceStore(self.traces_path)

    def models(self, name: str) -> ModelFiles:
        """The files behind a model name: `base`, or a student of this run.

        Raises:
            UsageError: there is no such student, or it belongs to another base.
        """
        gguf = default_gguf()
        if name == "base":
            return ModelFiles(gguf)
        student = self.registry.get(name)
        if student.base.gguf_sha256 != (digest := file_sha256(gguf)):
            raise UsageError(
                f"{student.path} was made for a base with sha256 "
                f"{student.base.gguf_sha256[:12]}…, and {gguf.name} has {digest[:12]}…: an adapter "
                "acts on its own base only, make the student again with `reflux distill`"
            )
        return ModelFiles(gguf, student.adapter_gguf, student.path)

    def current_model(self) -> str:
        """The name of X: the promoted student, or `base` where there is none."""
        student = self.registry.current()
        return student.id if student else "base"


class OpenRun:
    """A run folder with its store and engine open; `async with` closes them."""

    def __init__(
        self,
        folder: RunFolder,
        engine: EngineConfig | BatchedConfig | None = None,
        client: ChatClient | None = None,
        wrap: Callable[[ChatClient], ChatClient] | None = None,
        llama_cpp: EngineConfig | None = None,
        warm: bool = True,
    ) -> None:
        """
        Args:
            engine: what runs the models, llama.cpp where None.
            client: replaces the engine.
            wrap: is put around it, below the cache.
            llama_cpp: how llama.cpp runs beside a batched engine.
            warm: False leaves the cache without the replies of earlier sessions, and opening takes
                the same time however many there are.
        """
        self.folder = folder
        self.store = folder.store()
        self._engine = None
        if client is None:
            if isinstance(engine, BatchedConfig):
                self._engine = client = BatchedClient(folder.models, engine, llama_cpp)
            else:
                self._engine = client = LlamaCppClient(folder.models, engine)
        self.cache = CachedClient(wrap(client) if wrap else client)
        self.recorded_client = RecordedClient(self.cache, self.store)
        if warm:
            self._warm()

    @property
    def llama_cpp(self) -> RecordedClient:
        """Calls to llama.cpp where a batched engine is the run's; else those of the run."""
        if not isinstance(self._engine, BatchedClient):
            return self.recorded_client
        return RecordedClient(CachedClient(self._engine.llama_cpp), self.store)

    def _warm(self) -> None:
        """Replies of earlier sessions on this folder are known to the cache."""
        recorded = "SELECT * FROM calls WHERE error IS NULL AND kind='model' AND cached=0"
        for row in self.store.select(recorded):
            self.cache.put(row["request_digest"], completion_of(row))

    async def __aenter__(self) -> "OpenRun":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.close()
        if self._engine is not None:
            await self._engine.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers, and a kill, see the old or the new one whole; into a device or
    a pipe, which nothing may replace, what there is to write goes as it is."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if temporary != path:
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place when the block ends well.

    A device or a pipe is written itself. Of a link, what it leads to is replaced.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    # With the process's number: another one may write the same file at this moment.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, body: Any) -> None:
    """Write JSON whole; see `write_whole`."""
    write_whole(path, json.dumps(body, indent=2) + "\n")
