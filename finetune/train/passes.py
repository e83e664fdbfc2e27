"""What bounds the memory of a training step: rows in several passes, and logits in pieces.

Loss and gradients are those of one pass, up to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

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
    for start, end in spans(mask, limit):
        yield cut_rows(batch, start, end)


def spans(mask: torch.Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of parts of at most `limit` tokens; a longer row is alone."""
    start = total = 0
    lengths = mask.sum(1).tolist()
    for end, length in enumerate(lengths):
        if end > start and total + length > limit:
            yield start, end
            start, total = end, 0
        total += length
    yield start, len(lengths)


def cut_rows(batch: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """Some rows of a batch, in the columns that they fill."""
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
    frozen = not any(p.requires_grad for p in head.parameters()) and type(head) is torch.nn.Linear
    size = max(1, LOGITS // head.weight.shape[0])
    if len(hidden) <= size or not frozen:
        return _loss(logits_of(head, hidden, cap), labels)
    return piecewise(
        hidden, lambda part, rows: _loss(logits_of(head, part, cap), labels[rows]), size
    )


def logits_of(head: torch.nn.Linear, hidden: torch.Tensor, cap: float | None) -> torch.Tensor:
    """(tokens, vocabulary) of hidden states (tokens, size), in float32 at least."""
    logits = head(hidden)
    if cap is not None:
        logits = (logits / cap).tanh() * cap
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="sum")


PieceLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""The summed loss of the hidden states of a piece, and which of all they are."""


def piecewise(hidden: torch.Tensor, loss_of: PieceLoss, size: int) -> torch.Tensor:
    """The summed loss of hidden states (tokens, ...), `size` of them at a time.

    The gradient of each piece is computed beside its loss, so that the logits of one are held. Only
    the hidden states get one.
    """
    return _PiecewiseLoss.apply(hidden, loss_of, size)  # type: ignore[no-any-return]


class _PiecewiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: torch.Tensor, loss_of: PieceLoss, size: int
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        losses: list[torch.Tensor] = []
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                loss = loss_of(part, rows)
            (gradient[rows],) = torch.autograd.grad(loss, part)
            losses.append(loss.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum() if losses else hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (of_hidden,) = ctx.saved_tensors
        return gradients[0].to(of_hidden.dtype) * of_hidden, None, None
