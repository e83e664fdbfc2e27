"""The engines of a run: what answers for its base, its students, and its first agent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from reflux.agents.clients.endpoints import Endpoint, Endpoints, endpoint_with_key
from reflux.agents.clients.llama_cpp import EngineConfig, LlamaCppClient, ModelFiles
from reflux.agents.types import ChatClient
from reflux.finetune import missing_training_packages
from reflux.finetune.configs.engine import BatchedConfig, EngineSpec
from reflux.finetune.engine.client import BatchedClient


class Engine(ChatClient, Protocol):
    """Completes chats for the base and the students of a run folder, by their names there."""

    async def load(self, model: str) -> None:
        """Make a student answerable.

        Raises:
            RefluxError: it cannot be; the message says why, and what to do.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds; the next request starts it again."""
        ...


class EndpointEngine(Endpoints):
    """The base at an endpoint; students, which it cannot load, in this process."""

    def __init__(self, base: Endpoint, students: Engine) -> None:
        super().__init__({"base": base}, students)
        self._students = students

    async def load(self, model: str) -> None:
        await self._students.load(model)


def open_engine(
    resolve: Callable[[str], ModelFiles],
    settings: EngineConfig | BatchedConfig | EngineSpec | None,
    llama_cpp: EngineConfig | None,
    rank: int,
    log: Path,
) -> Engine:
    """The engine of a config's settings, which starts with its first request.

    Args:
        resolve: maps a model name to its files.
        settings: llama.cpp where None, or where the batched engine's packages are not installed.
        llama_cpp: settings of llama.cpp beside a batched engine.
        rank, log: as `VllmEngine`.

    Raises:
        UsageError, MissingError: an endpoint's address or key is wrong or missing.
    """
    if isinstance(settings, EngineSpec) and settings.kind == "vllm":
        from reflux.finetune.engine.vllm import VllmEngine

        return VllmEngine(resolve, settings, rank, log)
    if isinstance(settings, EngineSpec):
        here = open_engine(resolve, BatchedConfig(), llama_cpp, rank, log)
        return EndpointEngine(endpoint_of(settings, "engine"), here)
    if isinstance(settings, BatchedConfig):
        if not missing_training_packages():
            return BatchedClient(resolve, settings, llama_cpp)
        settings = llama_cpp
    return LlamaCppClient(resolve, settings)


def endpoint_of(spec: EngineSpec, where: str) -> Endpoint:
    """The endpoint of a spec; `where` is its key in the config.

    Raises:
        UsageError, MissingError: as `endpoint_with_key`.
    """
    client = endpoint_with_key(
        os.environ, spec.url, spec.api_key_env, where, concurrency=spec.concurrency
    )
    return Endpoint(client, spec.model)
