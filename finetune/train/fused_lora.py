"""PEFT's LoRA layer as one step of the graph, in fewer passes over memory.

PEFT's own forward leaves a dozen operations a layer to autograd, most of them casts between the
bf16 base and the fp32 adapter, which on a CPU cost about as much as the adapter's products. Here
the products are the same and in the same precision; sums that PEFT rounds to bf16 on the way are
rounded once.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear


class _LoraLinear(torch.autograd.Function):
    """x W' + b + s (x A') B', for x (..., inputs) of the base's type."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows.to(a.dtype) @ a.t()  # (tokens, rank)
        out = linear(rows, weight, bias).to(a.dtype).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        of_out = gradients[0].reshape(-1, gradients[0].shape[-1])
        exact = of_out.to(a.dtype)
        of_low = (exact @ b).mul_(ctx.scaling)
        of_a = of_low.t() @ rows.to(a.dtype)
        # Transposed afterwards: oneDNN is slower where the narrow side is the last.
        of_b = (low.t() @ exact).mul_(ctx.scaling).t()
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight).to(a.dtype).addmm_(of_low, a).to(rows.dtype)
            of_x = of_x.view(*gradients[0].shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None


def fuse_lora(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer of `model` the fused forward, for training; how many.

    A layer that does more (dropout, several adapters, a variant such as DoRA, a bias of its own,
    a quantised base) keeps PEFT's.
    """
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    for layer in layers:
        layer.forward = _forward_of(layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(layer: torch.nn.Module) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is torch.nn.Linear
        and not layer.base_layer.weight.requires_grad
        and layer.active_adapters == ["default"] == list(layer.lora_A)
        and not layer.lora_variant
        and not layer.merged
        and isinstance(layer.lora_dropout["default"], torch.nn.Identity)
        and layer.lora_B["default"].bias is None
    )


def _forward_of(layer: Any) -> Any:
    base, scaling = layer.base_layer, layer.scaling["default"]
    a, b = layer.lora_A["default"], layer.lora_B["default"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return _LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scaling)

    return forward
