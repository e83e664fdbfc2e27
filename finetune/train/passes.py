"""What bounds the memory of a training step: rows in several passes, and logits in pieces.

Loss and gradients are those of one pass, up to rounding.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

PASS_TOKENS = {"cpu": 2048}
"""Most tokens of a pass by kind of device, unless one row has more: larger products are no quicker,
and their activations fill gigabytes."""
OTHER_PASS_TOKENS = 16_384
LOGITS = 2**26
"""Logits of a piece, at most: 256 MiB in fp32."""


def passes(batch: Mapping[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """The batch in parts of at most `limit` tokens without padding, in the order of its rows.

    Each part is cut to the columns that its rows fill. A batch without `attention_mask`, or with
    anything that is no tensor of one line a row, stays whole.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or not all(
        isinstance(value, torch.Tensor) and value.shape == mask.shape for value in batch.values()
    ):
        yield dict(batch)
        return
    lengths = mask.sum(1).tolist()
    start = total = 0
    for end, length in enumerate(lengths):
        if end > start and total + length > limit:
            yield _rows(batch, start, end)
            start, total = end, 0
        total += length
    yield _rows(batch, start, len(lengths))


def _rows(batch: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    filled = batch["attention_mask"][start:end].any(0).nonzero()
    first, last = int(filled[0]), int(filled[-1]) + 1
    return {key: value[start:end, first:last] for key, value in batch.items()}


def head_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, cap: float | None
) -> torch.Tensor:
    """The summed negative log-likelihood of `labels` (tokens,), a scalar.

    Args:
        hidden: (tokens, size).
        cap: the logits are at most this, softly (Gemma 2, arXiv 2408.00118, section 2).
    """
    pieces = max(1, -(-hidden.shape[0] * head.weight.shape[0] // LOGITS))
    frozen = not any(p.requires_grad for p in head.parameters()) and type(head) is torch.nn.Linear
    if pieces == 1 or not frozen:
        return _loss(head(hidden), labels, cap)
    return _PiecewiseLoss.apply(hidden, head.weight, head.bias, labels, cap, pieces)  # type: ignore[no-any-return]


def _loss(logits: torch.Tensor, labels: torch.Tensor, cap: float | None) -> torch.Tensor:
    if cap is not None:
        logits = (logits / cap).tanh() * cap
    return cross_entropy(logits.float(), labels, reduction="sum")


class _PiecewiseLoss(torch.autograd.Function):
    """The gradient of each piece is computed beside its loss, so that no logits are kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        cap: float | None,
        pieces: int,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients: list[torch.Tensor] = []
        rows = zip(hidden.chunk(pieces), labels.chunk(pieces), strict=True)
        for part, wanted in rows:
            with torch.enable_grad():
                logits = linear(part, weight, bias).detach().requires_grad_()
                loss = _loss(logits, wanted, cap)
                (of_logits,) = torch.autograd.grad(loss, logits)
            total += loss.detach()
            gradients.append(of_logits @ weight)
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (of_hidden,) = ctx.saved_tensors
        return gradients[0].to(of_hidden.dtype) * of_hidden, None, None, None, None, None
