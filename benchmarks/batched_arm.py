"""The batched engine with some settings, as an arm of `benchmarks.engine`.

It imports torch where it uses it, because llama.cpp's processes import this file, too.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measured import WARM_SEED, Clock, Measured, neighbours, peak_mib
from benchmarks.subquestions import messages, subquestions
from reflux.agents.clients.llama_cpp import ModelFiles, default_gguf
from reflux.agents.types import ChatRequest, Sampling
from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.engine import client as batched
from reflux.finetune.engine.client import BatchedClient


@dataclass(frozen=True)
class BatchedArm:
    """`BatchedClient` with some settings changed."""

    name: str
    config: BatchedConfig = field(default_factory=BatchedConfig)
    environ: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that torch's thread pool reads at load time."""
    top_logprobs: int = 1
    max_concurrency: int = 1000
    """Maximum requests in flight."""
    backwards: bool = False
    """Ask the last question first."""
    adapter: Path | None = None
    """A PEFT folder."""
    merge: bool = True
    """False leaves the adapter's products to PEFT's layers."""
    beside: int = 0
    """Busy processes that compete for the CPU during the measurement."""
    max_requests: int | None = None
    """Maximum questions; None asks all."""

    def measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        """Answer all questions on a warm engine."""
        os.environ.update(self.environ)
        return asyncio.run(self._measure(questions, max_tokens))

    async def _measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        computed: list[int] = []
        load, merge = batched.load_weights, self.merge

        def counted(files: ModelFiles) -> tuple[Any, Any]:
            model, tokenizer = load(files) if merge else _unmerged(files)

            def count(_: Any, given: Any) -> None:
                if given[0].shape[1] > 1:  # A prompt; 0 is padding and occurs in no prompt.
                    computed.append(int((given[0] != 0).sum()))

            model.get_input_embeddings().register_forward_pre_hook(count)
            return model, tokenizer

        batched.load_weights = counted
        adapter_gguf = self.adapter / "adapter.gguf" if self.adapter else None
        files = ModelFiles(default_gguf(), adapter_gguf, self.adapter)
        client = BatchedClient(lambda _: files, self.config)
        sampling = Sampling(max_tokens=max_tokens, top_logprobs=self.top_logprobs)
        warm = min(2 * self.config.rows, len(questions))
        await self._ask(client, subquestions(warm, WARM_SEED), sampling)
        computed.clear()
        with neighbours(self.beside):
            clock = Clock()
            replies = await self._ask(client, questions, sampling)
            seconds, *cpu = clock.read()
        await client.close()
        return Measured(
            seconds,
            tuple(reply.text for reply in replies),
            sum(reply.prompt_tokens for reply in replies),
            sum(computed),
            sum(reply.completion_tokens for reply in replies),
            peak_mib(),
            *cpu,
        )

    async def _ask(
        self, client: BatchedClient, questions: Sequence[str], sampling: Sampling
    ) -> list[Any]:
        gate = asyncio.Semaphore(self.max_concurrency)

        async def ask(question: str) -> Any:
            chat = tuple((m["role"], m["content"]) for m in messages(question))
            async with gate:
                return await client.complete(ChatRequest("base", chat, sampling))

        if self.backwards:
            return (await asyncio.gather(*map(ask, reversed(questions))))[::-1]
        return await asyncio.gather(*map(ask, questions))


def _unmerged(files: ModelFiles) -> tuple[Any, Any]:
    from peft import PeftModel

    from reflux.finetune.base_model import dequantised_base, load_base

    model, tokenizer = load_base(dequantised_base(files.for_llama_cpp()[0]))
    if files.peft is not None:
        model = PeftModel.from_pretrained(model, files.peft).base_model.model
    return model, tokenizer
