"""The default model on a selectable engine, for benchmarks that do not compare engines."""

from reflux.agents.clients.llama_cpp import EngineConfig, LlamaCppClient, ModelFiles, default_gguf
from reflux.finetune.engine.client import BatchedClient, BatchedConfig

ENGINES = ("batched", "llama.cpp")


def open_default_model(engine: str, context: int) -> BatchedClient | LlamaCppClient:
    """Open a client of the default model; `context` is the maximum tokens of one request.

    Raises:
        ValueError: The engine is unknown.
    """
    files = ModelFiles(default_gguf())
    if engine == "batched":
        return BatchedClient(lambda _: files, BatchedConfig(context=context))
    if engine == "llama.cpp":
        return LlamaCppClient(lambda _: files, EngineConfig(context=context))
    raise ValueError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")
