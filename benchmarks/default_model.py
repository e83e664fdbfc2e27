"""The default model on a selectable engine, for benchmarks that do not compare engines."""

import argparse
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import gguf

from reflux.agents.clients.llama_cpp import EngineConfig, LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.clients.scripted import ScriptedClient
from reflux.finetune.bases import Base, find_base
from reflux.finetune.configs.run import BaseConfig, BatchedConfig
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.run_folder import RunFolder

ENGINES = ("batched", "llama.cpp")
SCRIPTED = "scripted"
"""No model: every answer is the same word. For smoke runs."""


class Scripted(ScriptedClient):
    """A script in the place of a model."""

    async def close(self) -> None:
        """Nothing is open."""


def open_default_model(engine: str, context: int) -> BatchedClient | LlamaCppClient | Scripted:
    """Open a client of the default model; `context` is the maximum tokens of one request.

    Raises:
        ValueError: The engine is unknown.
    """
    if engine == SCRIPTED:
        return Scripted(lambda request: "Paris")
    files = ModelFiles(default_gguf())
    if engine == "batched":
        return BatchedClient(lambda _: files, BatchedConfig(context=context))
    if engine == "llama.cpp":
        return LlamaCppClient(lambda _: files, EngineConfig(context=context))
    raise ValueError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")


def open_model(name: str, context: int) -> BatchedClient | LlamaCppClient | Scripted:
    """Open the default model, a GGUF by its path, or none, on the batched engine.

    Raises:
        ValueError: there is no such file.
    """
    if name in ("default", SCRIPTED):
        return open_default_model("batched" if name == "default" else SCRIPTED, context)
    if not Path(name).is_file():
        raise ValueError(f"{name} is no file; give a GGUF")
    files = find_base(BaseConfig(model=name)).files()
    return BatchedClient(lambda _: files, BatchedConfig(context=context))


@asynccontextmanager
async def scratch_run(name: str, context: int) -> AsyncGenerator[tuple[RunFolder, BatchedClient]]:
    """A run folder of the default model, or of a GGUF by its path, and a client of the model and
    of the students that are trained there; both last as long as the block."""
    with tempfile.TemporaryDirectory() as scratch:
        base = BaseConfig(model="" if name in ("default", SCRIPTED) else name)
        folder = RunFolder(Path(scratch), base)
        client = BatchedClient(folder.models, BatchedConfig(context=context))
        try:
            yield folder, client
        finally:
            await client.close()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The command of a benchmark of one model: `--quick` and `--model`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="default", help="a GGUF; the default model without it")
    return parser


def model_name(base: Base) -> str:
    """The id of the default model; of another the name that a GGUF gives it, else that of its
    folder or its id at the Hub."""
    if not base.config.model:
        return base.name
    if base.gguf is None:
        return Path(base.name).name
    named = gguf.GGUFReader(base.gguf).get_field("general.name")
    return f"{named.contents() if named is not None else base.gguf.stem} (GGUF)"
