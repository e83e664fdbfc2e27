"""The default model on a selectable engine, for benchmarks that do not compare engines."""

from reflux.agents.clients.llama_cpp import EngineConfig, LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.clients.scripted import ScriptedClient
from reflux.finetune.config import BatchedConfig
from reflux.finetune.engine.client import BatchedClient

ENGINES = ("batched", "llama.cpp")
SCRIPTED = "scripted"
"""No model: every answer is the same word. For smoke runs."""


class _Script(ScriptedClient):
    async def close(self) -> None:
        """Nothing is open."""


def open_default_model(engine: str, context: int) -> BatchedClient | LlamaCppClient | _Script:
    """Open a client of the default model; `context` is the maximum tokens of one request.

    Raises:
        ValueError: The engine is unknown.
    """
    if engine == SCRIPTED:
        return _Script(lambda request: "Paris")
    files = ModelFiles(default_gguf())
    if engine == "batched":
        return BatchedClient(lambda _: files, BatchedConfig(context=context))
    if engine == "llama.cpp":
        return LlamaCppClient(lambda _: files, EngineConfig(context=context))
    raise ValueError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")
