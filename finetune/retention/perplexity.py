"""How likely a student finds what its base says: perplexity on replies of the base."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.data.encoding import encode_rows
from reflux.finetune.targets.divergence import divergence
from reflux.finetune.train.forward import Batch, batches


def perplexities(
    base: Base, student: Path, rows: Sequence[dict[str, Any]]
) -> dict[str, float] | None:
    """Perplexity of the rows' completions, by the base and by the student in a folder, and the
    Kullback-Leibler divergence of the student's distributions from the base's, in nats a token;
    None without any. `tokens` is how many it is a mean over."""
    if not rows:
        return None
    whole = base.config.model_copy(update={"quantization": "none"})
    with quiet_libraries():
        model, tokenizer = load_base(base.folder, config=whole)
        sequences = list(encode_rows(rows, tokenizer))
        peft: Any = PeftModel.from_pretrained(model, str(student)).eval()
        sums = [_nats(peft, batch) for batch in batches(sequences, peft.device)]
    by_base, by_student, between, tokens = (sum(column) for column in zip(*sums, strict=True))
    return {
        "base": math.exp(by_base / tokens),
        "student": math.exp(by_student / tokens),
        "divergence": between / tokens,
        "tokens": int(tokens),
    }


def _nats(model: Any, batch: Batch) -> tuple[float, float, float, int]:
    """(summed negative log-likelihood of the counted tokens by the base, by the student, summed
    divergence, their number)."""
    with torch.inference_mode():
        ours = batch.logits(model).log_softmax(-1)
        with model.disable_adapter():
            theirs = batch.logits(model).log_softmax(-1)
        chosen = batch.labels[batch.counted][:, None]
        by_base, by_student = (-float(each.gather(-1, chosen).sum()) for each in (theirs, ours))
        between = float(divergence(ours, theirs, beta=0).sum())
    return by_base, by_student, between, len(chosen)
