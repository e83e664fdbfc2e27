"""The scheduler of a model: ours where our cache fits its attention, else transformers' `generate`.

`KVCache` serves models whose layers attend causally to keys and values, all of one size, within an
optional window. Others (attention sinks, latent attention, state spaces, models that no test holds)
go through `generate`, with the same requests, seeds, log-probabilities and stop strings. There a
batch is whole: requests that come while it is decoded wait for its last row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.engine.scheduler import Row, Scheduler

SLOT_MODELS = (
    "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe",
)  # fmt: skip
"""Model types that `KVCache` serves; a test compares each with transformers."""


def scheduler_for(model: Any, tokenizer: Any, config: BatchedConfig) -> Scheduler:
    """The scheduler that fits a model's attention."""
    fits = model.config.model_type in SLOT_MODELS
    return (Scheduler if fits else GenerateScheduler)(model, tokenizer, config)


class GenerateScheduler(Scheduler):
    """Answers whole batches with transformers' `generate` and the model's own cache."""

    attention = None

    def __init__(self, model: Any, tokenizer: Any, config: BatchedConfig) -> None:
        super().__init__(model, tokenizer, config)
        # Without the penalties and filters that a model card recommends: requests decide.
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self._padding
        )

    def step(self) -> list[Row]:
        """Answer the next batch; returns its rows."""
        new = [row for row in self._new if not row.dropped]
        rows, self._new = new[: self._config.rows], new[self._config.rows :]
        if not rows:
            return []
        width = max(len(row.ids) for row in rows)
        device = self._model.device
        padded = [[self._padding] * (width - len(row.ids)) + row.ids for row in rows]
        mask = [[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]
        self._model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            do_sample=False,
            max_new_tokens=max(row.max_tokens for row in rows),
            logits_processor=LogitsProcessorList([_Draw(self._draw, rows)]),
            stopping_criteria=StoppingCriteriaList([_Finished(rows)]),
        )
        return [row for row in rows if row.finish]

    def release(self) -> None:
        """Nothing is kept between batches."""

    @property
    def _padding(self) -> int:
        own = self._tokenizer.pad_token_id
        return own if own is not None else self._tokenizer.eos_token_id


class _Draw(LogitsProcessor):
    """Draws each row's token as `Scheduler` does, and leaves `generate` no other."""

    def __init__(
        self, draw: Callable[[Sequence[Row], torch.Tensor], None], rows: list[Row]
    ) -> None:
        self._draw, self._rows = draw, rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary), all but the drawn token hidden."""
        going = [index for index, row in enumerate(self._rows) if not row.finish]
        self._draw([self._rows[index] for index in going], scores[going].float())
        forced = torch.full_like(scores, -torch.inf)
        tokens = [row.sampled[-1].token for row in self._rows]
        forced[range(len(tokens)), tokens] = 0
        return forced


class _Finished(StoppingCriteria):
    """The rows that `Scheduler` has found to be done, or that nobody waits for."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        done = [bool(row.finish) or row.dropped for row in self._rows]
        return torch.tensor(done, device=input_ids.device)
