"""How likely a student finds what its base says: perplexity on replies of the base."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.data.encoding import IGNORED, encode_rows

BATCH = 8
"""Replies at once."""


def perplexities(
    base: Base, student: Path, rows: Sequence[dict[str, Any]]
) -> dict[str, float] | None:
    """Perplexity of the rows' completions, by the base and by the student in a folder; None without
    any. `tokens` is how many it is a mean over."""
    if not rows:
        return None
    whole = base.config.model_copy(update={"quantization": "none"})
    with quiet_libraries():
        model, tokenizer = load_base(base.folder, config=whole)
        sequences = list(encode_rows(rows, tokenizer))
        peft: Any = PeftModel.from_pretrained(model, str(student)).eval()
        by_student, tokens = _nats(peft, sequences)
        with peft.disable_adapter():
            by_base, _ = _nats(peft, sequences)
    return {
        "base": math.exp(by_base / tokens),
        "student": math.exp(by_student / tokens),
        "tokens": tokens,
    }


def _nats(model: Any, sequences: Sequence[Any]) -> tuple[float, int]:
    """(summed negative log-likelihood of the counted tokens, their number)."""
    total, n = 0.0, 0
    for begin in range(0, len(sequences), BATCH):
        batch = sequences[begin : begin + BATCH]
        width = max(len(each["input_ids"]) for each in batch)

        def padded(key: str, value: int, width: int = width, batch: Any = batch) -> torch.Tensor:
            rows = [[*each[key], *[value] * (width - len(each[key]))] for each in batch]
            return torch.tensor(rows, device=model.device)

        ids, labels = padded("input_ids", 0), padded("labels", IGNORED)[:, 1:]
        mask = padded("labels", IGNORED - 1) != IGNORED - 1  # (rows, tokens), without the padding.
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
        counted = labels != IGNORED
        chosen = logits[counted].log_softmax(-1).gather(-1, labels[counted][:, None])
        total -= float(chosen.sum())
        n += int(counted.sum())
    return total, n
