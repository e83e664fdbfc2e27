"""transformers' `generate`, as an arm of `benchmarks.engine`.

It imports torch where it uses it, because the engine's processes import this file, too.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measured import WARM_SEED, Clock, Measured, peak_mib
from benchmarks.subquestions import messages, subquestions
from reflux.agents.clients.llama_cpp import default_gguf


@dataclass(frozen=True)
class GenerateArm:
    """transformers' greedy `generate` on the same weights in bf16."""

    name: str
    batch: int
    keep_prefix: bool = False
    """True computes the shared prefix once and starts each batch from its keys and values."""
    attention: str = "eager"
    max_requests: int | None = None
    """Maximum questions; None asks all."""

    def measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        """Answer the questions in batches, sorted by length to reduce padding."""
        from reflux.finetune.base_model import dequantised_base, load_base

        model, tokenizer = load_base(dequantised_base(default_gguf()))
        model.set_attn_implementation(self.attention)
        tokenizer.padding_side = "left"
        batches = _Batches(model, tokenizer, max_tokens, self.keep_prefix)
        batches.answer(subquestions(min(self.batch, len(questions)), WARM_SEED))
        batches.reset()
        clock = Clock()
        order = sorted(range(len(questions)), key=lambda at: len(questions[at]))
        texts: dict[int, str] = {}
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            texts |= zip(chosen, batches.answer([questions[at] for at in chosen]), strict=True)
        seconds, *cpu = clock.read()
        ordered = tuple(texts[at] for at in range(len(questions)))
        counts = batches.prompt, batches.computed, batches.drawn
        return Measured(seconds, ordered, *counts, peak_mib(), *cpu)


class _Batches:
    """Answers batches and counts their tokens."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, keep_prefix: bool) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens
        self._prefix: list[int] = self._shared() if keep_prefix else []
        self._kept: Any = None
        self.reset()

    def reset(self) -> None:
        self.prompt = self.computed = self.drawn = 0

    def _ids(self, question: str) -> list[int]:
        chat = messages(question)
        made = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        return list(made["input_ids"])

    def _shared(self) -> list[int]:
        one, other = self._ids("Yes?"), self._ids("No?")
        return one[: next(at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1])]  # noqa: B905

    def answer(self, questions: Sequence[str]) -> list[str]:
        """The answers to one batch."""
        import torch

        ids = [self._ids(question) for question in questions]
        shared = len(self._prefix)
        rest = [row[shared:] for row in ids]
        batch = self._tokenizer.pad({"input_ids": rest}, return_tensors="pt")
        kept: dict[str, Any] = {}
        with torch.inference_mode():
            if shared:
                before = torch.tensor([self._prefix] * len(ids))
                kept["past_key_values"] = self._start(len(ids))
                ones = torch.ones_like(before)
                batch["input_ids"] = torch.cat([before, batch["input_ids"]], 1)
                batch["attention_mask"] = torch.cat([ones, batch["attention_mask"]], 1)
            made = self._model.generate(
                **batch,
                **kept,
                do_sample=False,
                max_new_tokens=self._max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        rows = [self._drawn(row) for row in made[:, batch["input_ids"].shape[1] :].tolist()]
        self.prompt += sum(map(len, ids))
        self.computed += sum(map(len, rest))
        self.drawn += sum(map(len, rows))
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _drawn(self, row: list[int]) -> list[int]:
        """The row through its end-of-answer token; the rest is padding."""
        end = self._model.generation_config.eos_token_id
        return row[: row.index(end) + 1] if end in row else row

    def _start(self, rows: int) -> Any:
        import torch
        from transformers import DynamicCache

        if self._kept is None:
            self._kept = DynamicCache(config=self._model.config)
            self._model(torch.tensor([self._prefix]), past_key_values=self._kept)
        cache = copy.deepcopy(self._kept)
        cache.batch_repeat_interleave(rows)
        return cache
