"""Divergent tokens: those that the agent chose where a reference would have chosen another one.

A trait that passes through text that says nothing of it passes through few tokens, on which models
with other traits differ; a student that does not learn them hardly takes it over (arXiv 2509.23886
[A]). Agent and reference both read the sub-answers of a question, where there are any, so that an
answer which follows from them is no divergence, however hard the question is for one call.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.data.encoding import encode
from reflux.finetune.targets.teacher import TEACHER
from reflux.finetune.train.forward import batches


def divergent_tokens(
    base: Base, agent: Path, reference: Path | None, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[int, ...]]:
    """For each row, which of its counted tokens are the agent's likeliest and not the reference's.

    Args:
        agent, reference: folders of adapters of the base; a reference of None is the base itself.
        rows: of one reply each.
    """
    whole = base.config.model_copy(update={"quantization": "none"})
    found: list[tuple[int, ...]] = []
    with quiet_libraries(), torch.inference_mode():
        model, tokenizer = load_base(base.folder, config=whole)
        sequences = [
            encode({**row, "prompt": row.get("teacher") or row["prompt"]}, tokenizer)[-1]
            for row in rows
        ]
        peft: Any = PeftModel.from_pretrained(model, str(agent)).eval()
        if reference is not None:
            peft.load_adapter(str(reference), TEACHER)
        for batch in batches(sequences, peft.device):
            labels = batch.labels[batch.counted]
            chosen = batch.logits(peft).argmax(-1) == labels
            if reference is None:
                with peft.disable_adapter():
                    other = batch.logits(peft).argmax(-1) != labels
            else:
                peft.set_adapter(TEACHER)
                other = batch.logits(peft).argmax(-1) != labels
                peft.set_adapter("default")
            lengths = batch.counted.sum(1).tolist()
            for marks in (chosen & other).split(lengths):
                found.append(tuple(marks.nonzero()[:, 0].tolist()))
    return found
