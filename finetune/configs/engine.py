"""Which engine runs the models of a run, and where: this process, a vLLM, or any endpoint."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

AGENT = "endpoint:"
"""How a text names a model at an endpoint: `endpoint:MODEL` or `endpoint:MODEL@URL`."""


@dataclass(frozen=True)
class BatchedConfig:
    """Settings of the batched engine."""

    rows: Annotated[int, Field(ge=1)] = 128
    """Maximum requests that are decoded together."""
    context: Annotated[int, Field(ge=2)] = 4096
    """Maximum tokens of a request, prompt and completion; the model may have fewer."""
    models: Annotated[int, Field(ge=1)] = 3
    """Models in memory; the least recently used is dropped first."""
    prefix_cache: bool = True
    """Prefill what the prompts of a system message begin with once, and keep it."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine by its kind, which is all that one in this process needs."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    kind: Literal["batched", "llama.cpp", "vllm", "endpoint"] = "batched"
    """`batched` and `llama.cpp` run in this process; `vllm` is a server that loads students while
    it runs; an `endpoint` is any other server, which loads none."""
    url: str = ""
    """Address of the server, such as http://gpu:8000/v1; OPENAI_BASE_URL for an `endpoint` without
    one."""
    model: str = ""
    """The model's name there; of a vLLM, only where it serves the base under a foreign name."""
    api_key_env: str = ""
    """The environment variable that holds the key; OPENAI_API_KEY where empty."""
    start: bool | str = False
    """Start a vLLM, and stop it at the end and while a student is trained: true for `vllm serve`,
    or another command for it, such as `.venv-vllm/bin/vllm serve --max-model-len 4096`."""
    students: str = ""
    """Where a vLLM on another machine finds the `students` folder of the run."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Maximum concurrent requests to the server."""

    def __post_init__(self) -> None:
        remote = {"url": self.url, "model": self.model, "start": self.start}
        given = [name for name, value in remote.items() if value]
        if self.kind in ("batched", "llama.cpp") and given:
            raise ValueError(f"{self.kind} runs in this process: leave out {', '.join(given)}")
        if self.kind == "vllm" and bool(self.url) == bool(self.start):
            raise ValueError("a vllm has either a `url`, or `start: true`")
        if self.kind == "endpoint" and not self.model:
            raise ValueError("an endpoint needs the `model` to ask there")

    @property
    def name(self) -> str:
        """The name under which the call log holds the model of an endpoint."""
        taken = self.model in ("base", "student") or self.model.startswith("student-")
        return f"{AGENT}{self.model}" if taken else self.model


def engine_spec(value: Any) -> Any:
    """What a config may say in place of a spec: a kind alone, or `endpoint:MODEL@URL`."""
    if not isinstance(value, str):
        return value
    if not value.startswith(AGENT):
        return {"kind": value}
    model, at, url = value.removeprefix(AGENT).partition("@http")
    return {"kind": "endpoint", "model": model, "url": at[1:] + url}
