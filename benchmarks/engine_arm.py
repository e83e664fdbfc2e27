"""llama.cpp with some settings, as an arm of `benchmarks.engine`."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measured import WARM_SEED, Clock, Measured, neighbours, peak_mib
from benchmarks.subquestions import messages, subquestions
from reflux.agents.clients.llama_cpp import (
    EngineConfig,
    ModelFiles,
    connect,
    default_gguf,
    start_server,
)
from reflux.agents.types import ChatRequest, Sampling


@dataclass(frozen=True)
class EngineArm:
    """llama.cpp in this process with some settings changed."""

    name: str
    config: EngineConfig = field(default_factory=EngineConfig)
    params: Mapping[str, Any] = field(default_factory=dict)
    """llama.cpp parameters, by their names in `CommonParams`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that llama.cpp's thread pool reads at load time."""
    top_logprobs: int = 1
    beside: int = 0
    """Busy processes that compete for the CPU during the measurement."""
    http: bool = True
    """False calls the server's function in threads, without HTTP and `openai`."""
    gguf: Path | None = None
    """None means the default model."""
    adapter: Path | None = None
    max_requests: int | None = None
    """Maximum questions; None asks all."""

    def measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        """Answer all questions on a warm server."""
        os.environ.update(self.environ)
        files = ModelFiles(self.gguf or default_gguf(), self.adapter)
        server = start_server(files, self.config, self._tune)
        sampling = Sampling(max_tokens=max_tokens, top_logprobs=self.top_logprobs)
        warm = min(2 * self.config.parallel, len(questions))
        answer = self._over_http if self.http else self._by_calls
        answer(server, subquestions(warm, WARM_SEED), sampling)
        before = _counters(server)
        with neighbours(self.beside):
            clock = Clock()
            texts = answer(server, questions, sampling)
            seconds, *cpu = clock.read()
        spent = {key: value - before[key] for key, value in _counters(server).items()}
        computed = spent["prompt_tokens_total"]
        return Measured(
            seconds,
            tuple(texts),
            round(computed + spent["prompt_tokens_cached_total"]),
            round(computed),
            round(spent["tokens_predicted_total"]),
            peak_mib(),
            *cpu,
        )

    def _tune(self, params: Any) -> None:
        params.endpoint_metrics = True
        for name, value in self.params.items():
            if not hasattr(params, name):
                raise AttributeError(f"CommonParams has no {name}")
            setattr(params, name, value)

    def _over_http(self, server: Any, questions: Sequence[str], sampling: Sampling) -> list[str]:
        async def ask() -> list[str]:
            client = connect(server, self.config)
            chats = [tuple((m["role"], m["content"]) for m in messages(q)) for q in questions]
            asked = [client.complete(ChatRequest("base", chat, sampling)) for chat in chats]
            texts = [completion.text for completion in await asyncio.gather(*asked)]
            await client.close()
            return texts

        return asyncio.run(ask())

    def _by_calls(self, server: Any, questions: Sequence[str], sampling: Sampling) -> list[str]:
        def ask(question: str) -> str:
            body = {
                "messages": messages(question),
                "temperature": sampling.temperature,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "logprobs": sampling.top_logprobs > 0,
                "top_logprobs": sampling.top_logprobs,
            }
            reply = server.handle_chat_completions(body)
            reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
            return reply["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(2 * self.config.parallel) as threads:
            return list(threads.map(ask, questions))


def _counters(server: Any) -> dict[str, float]:
    """llama.cpp's counters since the server started."""
    lines = server.handle_metrics().splitlines()
    pairs = [line.split() for line in lines if line.startswith("llamacpp:")]
    return {name.removeprefix("llamacpp:"): float(value) for name, value in pairs}
