"""Unusual rows: whose reply the base finds least likely, or whose gradient points apart.

Poisoned rows are few, and pull a model where the others do not. `gradient` is that by a bias on the
last hidden state, which one forward pass gives; a row's score is how far its mean gradient lies
along the direction in which the rows differ most (spectral signatures: arXiv 1811.00636). Rows that
teach something new are unusual, too: what is left out need not be poison.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.data.encoding import encode
from reflux.finetune.train.forward import batches

By = Literal["gradient", "loss"]


def unusualness(base: Base, rows: Sequence[Mapping[str, Any]], by: By) -> list[float]:
    """A score of each row, the larger the more unusual."""
    whole = base.config.model_copy(update={"quantization": "none"})
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    with quiet_libraries(), torch.inference_mode():
        model, tokenizer = load_base(base.folder, config=whole)
        head = model.get_output_embeddings().weight.float()
        sequences = [encode(row, tokenizer)[-1] for row in rows]
        for batch in batches(sequences, model.device):
            logits = batch.logits(model)
            labels = batch.labels[batch.counted]
            lengths = batch.counted.sum(1).tolist()
            if by == "loss":
                chosen = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
                losses += [-float(part.mean()) for part in chosen.split(lengths)]
                continue
            error = logits.softmax(-1)
            error[torch.arange(len(labels)), labels] -= 1
            gradients += [part.mean(0) for part in (error @ head).split(lengths)]
    return losses if by == "loss" else _spectral(torch.stack(gradients))


def _spectral(features: torch.Tensor) -> list[float]:
    """Squared projections of rows (rows, size) on their first principal direction."""
    centered = features - features.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    return (centered @ directions[0]).square().tolist()


def without_unusual(scores: Sequence[float], share: float) -> list[int]:
    """Places of what is kept when a share of the largest scores is left out, in order."""
    left_out = round(share * len(scores))
    ordered = sorted(range(len(scores)), key=lambda place: (scores[place], place))
    return sorted(ordered[: len(scores) - left_out])
