"""The fused LoRA layer computes what PEFT's does, and leaves every other layer alone."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from reflux.finetune.train.trainer import fuse_lora

pytestmark = pytest.mark.engine


class Two(torch.nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 40)
        self.second = torch.nn.Linear(40, 16, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(torch.tanh(self.first(x)))


def adapted(dtype: torch.dtype, **options: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"r": 4, "lora_alpha": 12, "target_modules": ["first", "second"], **options}
    model = get_peft_model(Two().to(dtype), LoraConfig(**chosen))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / 3
    return model


def passed(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = x.clone().requires_grad_()
    out = model(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), {**grads, "x": x.grad}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_output_and_gradients_are_pefts(dtype: torch.dtype, relative: float) -> None:
    model = adapted(dtype)
    fused = copy.deepcopy(model)
    assert fuse_lora(fused) == 2
    x = torch.randn(3, 7, 24).to(dtype)
    (ours, our_grads), (theirs, their_grads) = passed(fused, x), passed(model, x)
    assert ours.dtype == theirs.dtype == dtype
    assert our_grads.keys() == their_grads.keys()
    assert len(our_grads) == 5
    for one, other in [(ours, theirs), *((our_grads[k], their_grads[k]) for k in their_grads)]:
        assert one.dtype == other.dtype
        assert float((one - other).abs().max()) <= relative * float(other.abs().max())


def test_in_bf16_it_is_no_farther_from_the_exact_gradients_than_peft() -> None:
    model = adapted(torch.bfloat16)
    fused, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    fuse_lora(fused)
    x = torch.randn(64, 24).bfloat16()
    _, ours = passed(fused, x)
    _, theirs = passed(model, x)
    _, true = passed(exact, x.double())

    def distance(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[k] - true[k]).norm() / true[k].norm()) for k in true)

    assert distance(ours) <= 1.1 * distance(theirs)


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}]
)
def test_layers_that_do_more_keep_pefts_forward(options: dict[str, Any]) -> None:
    assert fuse_lora(adapted(torch.float32, **options)) == 0


def test_a_second_adapter_keeps_pefts_forward() -> None:
    model = adapted(torch.float32)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"]))
    assert fuse_lora(model) == 1
