"""A run folder: the config, id, trajectories, checkpoints, students and report of one run.

One process at a time writes it. A file lock, which ends with its process, keeps others out.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, cast

import yaml

from reflux.agents.budget import Price
from reflux.agents.clients.endpoints import CachedClient, Endpoints, close_clients
from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles
from reflux.agents.errors import UsageError
from reflux.agents.files import write_once, write_whole
from reflux.agents.types import ChatClient
from reflux.finetune.bases import Base, find_base
from reflux.finetune.configs.engine import EngineSpec
from reflux.finetune.configs.run import (
    BaseConfig,
    BatchedConfig,
    RoundsConfig,
    config_from,
    read_yaml,
)
from reflux.finetune.engines import Engine, endpoint_of, open_engine
from reflux.finetune.registry import Registry
from reflux.graphs.traces.recorded_client import RecordedClient, completion_of
from reflux.graphs.traces.store import TraceStore

if TYPE_CHECKING:
    from reflux.finetune.engine.vllm import VllmEngine

FORMAT = 2
"""Of config.yaml and of what question ids consist of."""
VLLM_LOG = "vllm.log"
MAY_CHANGE = ("spend_limit", "max_concurrency")
"""Keys of a config that decide no answer, so that a run can go on with other values."""
NO_ENDPOINTS: Mapping[str, EngineSpec] = MappingProxyType({})


class RunFolder:
    """One run on disk, opened by one process."""

    def __init__(self, path: Path, base: BaseConfig | None = None) -> None:
        """
        Args:
            base: the base that a command names; None for that of the run's config.
        """
        self.path = path
        self.base_config = base
        self.traces_path = path / "traces.db"
        self.checkpoints_path = path / "checkpoints.db"
        self.config_path = path / "config.yaml"
        self.id_path = path / "run.json"
        self.report_path = path / "report.json"
        self.chart_path = path / "report.png"
        self.loss_path = path / "loss.png"
        self.registry = Registry(path / "students")
        self._lock: IO[str] | None = None

    @cached_property
    def id(self) -> str:
        """The run's random id (hex, 12), for provenance only: no question id, row or seed depends
        on it. It is written on the first use and stays when the folder is renamed or copied.

        Raises:
            UsageError: run.json is damaged.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n"
        try:
            return str(json.loads(write_once(self.id_path, text))["id"])
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"{self.id_path} holds no run id ({error}): restore or delete it"
            ) from error

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_path.is_file()

    def lock(self) -> IO[str]:
        """Keep other processes out until the lock that this returns is closed, or this one ends.

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
        self._lock = file  # A file without a reference would be closed.
        return file

    def save_config(self, config: dict[str, Any]) -> None:
        """Write the config that the run begins with."""
        self.path.mkdir(parents=True, exist_ok=True)
        body = yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False)
        write_whole(self.config_path, body)

    def load_config(self) -> dict[str, Any]:
        """The config that the run began with, as it was written.

        Raises:
            UsageError: no run, or one of another version.
        """
        if not self.exists:
            raise UsageError(f"{self.path} holds no run; begin one with `reflux run`")
        config = read_yaml(self.config_path)
        if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
            raise UsageError(
                f"{self.config_path} is not of format {FORMAT}: another version of Reflux wrote "
                "it; name another --run"
            )
        if isinstance(gates := config.get("gates"), dict):
            gates.pop("canary", None)  # Of an older version, which compared words.
        return config

    def config(self) -> RoundsConfig:
        """The config that the run began with, validated.

        Raises:
            UsageError: as `load_config`, or the config is damaged.
        """
        return config_from(self.load_config(), str(self.config_path))

    def check_config(self, config: RoundsConfig, source: Path) -> None:
        """Check that a run can go on with the config of a file: only `MAY_CHANGE` differs.

        Raises:
            UsageError: something else does; or as `config`.
        """
        saved, given = (each.model_dump(mode="json") for each in (self.config(), config))
        for key, old, new in _differences(saved, given):
            if key.split(".")[0] not in MAY_CHANGE:
                raise UsageError(
                    f"{self.path} was begun with {key}: {old!r:.120}, and {source} says "
                    f"{new!r:.120}: what is recorded rests on it. Leave --config out, or name "
                    f"another --run; only {' and '.join(MAY_CHANGE)} may change"
                )

    def rounds_config(self) -> RoundsConfig | None:
        """As `config`; None before a run has begun."""
        return self.config() if self.exists else None

    def report(self) -> dict[str, Any]:
        """The report of the rounds so far; empty before the first ends.

        Raises:
            UsageError: it is damaged.
        """
        try:
            path = self.report_path
            return json.loads(path.read_bytes()) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.report_path} cannot be read: {error}; restore it") from error

    def prices(self) -> Mapping[str, Price]:
        """Prices of the models, from the run's config."""
        config = self.rounds_config()
        return config.spend_limit.prices if config else {}

    @property
    def has_default_base(self) -> bool:
        """Whether the base is the small model that comes with Reflux."""
        return not self._base_config.model

    @property
    def _base_config(self) -> BaseConfig:
        """That of the command, else of the run's config, else of the default base."""
        if self.base_config is not None:
            return self.base_config
        config = self.rounds_config()
        return config.base if config else BaseConfig()

    @property
    def base(self) -> Base:
        """The base of the folder: that of the command, else of the run's config.

        Raises:
            UsageError, MissingError: as `find_base`.
        """
        return find_base(self._base_config)

    def store(self) -> TraceStore:
        return TraceStore(self.traces_path)

    def models(self, name: str) -> ModelFiles:
        """The files behind a model name: `base`, or a student of this run, which brings its own
        base.

        Raises:
            UsageError: there is no such student, or its base has other weights now.
            MissingError: the base is not there.
        """
        if name == "base":
            return self.base.files()
        student = self.registry.get(name)
        base = find_base(student.base.config)
        trained = student.base.weights
        if trained != (digest := base.weights_digest):
            raise UsageError(
                f"{student.path} belongs to a base with sha256 {trained[:12]}…, and {base.name} "
                f"has {digest[:12]}…: an adapter fits its own base only; make the student again "
                "with `reflux distill`"
            )
        return replace(base.files(), adapter=student.adapter_gguf, peft=student.path)

    def current_model(self) -> str:
        """The name of the agent: the promoted student, or `base`."""
        student = self.registry.current()
        return student.id if student else "base"


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two values of JSON types differ, as (a.b.0, old value, new value)."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(cast(list[Any], old))), dict(enumerate(cast(list[Any], new)))
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast(dict[Any, Any], old), cast(dict[Any, Any], new)
        for name in olds | news:
            path = f"{key}.{name}" if key else str(name)
            yield from _differences(olds.get(name), news.get(name), path)
    elif old != new:
        yield key, old, new


class OpenRun:
    """A run folder with its store and engine open; `async with` closes them."""

    def __init__(
        self,
        folder: RunFolder,
        engine: EngineConfig | BatchedConfig | EngineSpec | None = None,
        client: ChatClient | None = None,
        wrap: Callable[[ChatClient], ChatClient] | None = None,
        llama_cpp: EngineConfig | None = None,
        warm: bool = True,
        max_replies: int = 200_000,
        endpoints: Mapping[str, EngineSpec] = NO_ENDPOINTS,
    ) -> None:
        """
        Args:
            engine: settings of the engine that runs the models; llama.cpp where None, or where the
                batched engine's packages are not installed.
            client: replaces the engine.
            wrap: wraps the client, below the cache.
            llama_cpp: settings of llama.cpp beside a batched engine.
            warm: fill the cache with all recorded replies.
            endpoints: of models that the engine does not run, by name.
        """
        self._engines: list[Engine] = []
        if client is None:
            if engine is None and folder.base.gguf is None:
                engine = BatchedConfig()  # llama.cpp runs GGUF files alone.
            config = folder.rounds_config() if isinstance(engine, EngineSpec) else None
            rank = config.lora_rank if config else 16
            client = open_engine(folder.models, engine, llama_cpp, rank, folder.path / VLLM_LOG)
            self._engines.append(client)
        named = {name: endpoint_of(spec, f"the model {name}") for name, spec in endpoints.items()}
        self._others = [endpoint.client for endpoint in named.values()]
        client = Endpoints(named, client) if named else client
        self.folder = folder
        self.store = folder.store()
        self.cache = CachedClient(wrap(client) if wrap else client, max_replies)
        self.recorded_client = RecordedClient(self.cache, self.store)
        newest = (
            "SELECT * FROM calls WHERE error IS NULL AND kind='model' AND cached=0"
            " AND request_digest IS NOT NULL"
            " ORDER BY id DESC LIMIT ?"
        )
        for call in self.store.select(newest, (max_replies,)) if warm else ():
            self.cache.put(call["request_digest"], completion_of(call))

    @property
    def serves_students(self) -> bool:
        """False where a client other than our engines answers."""
        return bool(self._engines)

    async def load(self, model: str) -> None:
        """Have the engine make a student answerable.

        Raises:
            RefluxError: it cannot be.
        """
        for engine in self._engines:
            await engine.load(model)

    async def check_engine(self) -> None:
        """Check that the engine can load students.

        Raises:
            RefluxError: it cannot, or its server does not answer.
        """
        for engine in self._vllms():
            await engine.check()

    async def rest(self) -> None:
        """Give back the memory of a server of ours, until its next request."""
        for engine in self._vllms():
            await engine.rest()

    def _vllms(self) -> "list[VllmEngine]":
        from reflux.finetune.engine.vllm import VllmEngine

        return [engine for engine in self._engines if isinstance(engine, VllmEngine)]

    async def __aenter__(self) -> "OpenRun":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.close()
        for engine in self._engines:
            await engine.close()
        await close_clients(self._others)
