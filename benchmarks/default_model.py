"""The default model on the engine of choice, for benchmarks that are not about engines."""

from reflux.agents.clients.llama_cpp import EngineConfig, LlamaCppClient, ModelFiles, default_gguf
from reflux.finetune.engine.client import BatchedClient, BatchedConfig

ENGINES = ("batched", "llama.cpp")


def open_default_model(engine: str, context: int) -> BatchedClient | LlamaCppClient:
    """A client of the default model; `context` is the tokens of one request.

    Raises:
        ValueError: there is no such engine.
    """
    files = ModelFiles(default_gguf())
    if engine == "batched":
        return BatchedClient(lambda _: files, BatchedConfig(context=context))
    if engine == "llama.cpp":
        return LlamaCppClient(lambda _: files, EngineConfig(context=context))
    raise ValueError(f"there is no engine {engine!r}; take one of {', '.join(ENGINES)}")
