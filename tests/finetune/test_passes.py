"""Passes and pieces change what memory a step takes, and neither its loss nor its gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reflux.finetune.train import passes as module
from reflux.finetune.train import trainer as trainers
from reflux.finetune.train.passes import head_loss, passes
from reflux.finetune.train.trainer import StudentTrainer
from tests.finetune.test_sft import trainer_of


def padded(lengths: list[int], left: bool = False) -> dict[str, Any]:
    width = max(lengths)
    places = torch.arange(width)
    mask = torch.stack([(places >= width - n) if left else (places < n) for n in lengths]).long()
    ids = torch.arange(1, mask.numel() + 1).view_as(mask) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([3, 4, 5], 100, [3]),
        ([3, 4, 5], 7, [2, 1]),
        ([9, 1, 9], 5, [1, 1, 1]),
        ([2, 2, 2, 2], 4, [2, 2]),
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_every_token_is_in_one_pass(
    lengths: list[int], limit: int, expected: list[int], left: bool
) -> None:
    batch = padded(lengths, left)
    parts = list(passes(batch, limit))
    assert [len(part["input_ids"]) for part in parts] == expected
    seen = torch.cat([part["input_ids"][part["attention_mask"].bool()] for part in parts])
    assert seen.equal(batch["input_ids"][batch["attention_mask"].bool()])
    assert all(part["input_ids"].shape[1] == part["attention_mask"].sum(1).max() for part in parts)


def test_a_batch_of_other_things_stays_whole() -> None:
    batch = {**padded([3, 4]), "weights": [1.0, 2.0]}
    assert list(passes(batch, 1)) == [batch]


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("logits", [30, 31 * 5, 10**6])
def test_the_loss_of_the_pieces_is_that_of_the_whole(
    cap: float | None, bias: bool, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 31, bias=bias).double().requires_grad_(False)
    labels = torch.randint(31, (17,))
    values = 3 * torch.randn(17, 8).double()

    def found() -> tuple[Any, Any]:
        hidden = values.clone().requires_grad_()
        loss = 0.25 * head_loss(hidden, head, labels, cap)
        loss.backward()
        return loss, hidden.grad

    whole, gradient = found()
    monkeypatch.setattr(module, "LOGITS", logits)
    loss, ours = found()
    torch.testing.assert_close(loss.float(), whole.float())
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-7)


def test_a_head_that_learns_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS", 30)
    head = torch.nn.Linear(8, 31)
    head_loss(torch.randn(17, 8), head, torch.randint(31, (17,)), None).backward()
    assert head.weight.grad is not None


def test_a_step_in_many_passes_has_the_gradients_of_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(StudentTrainer, tiny_base, tmp_path)
    trainer.create_optimizer()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    made: list[Any] = []

    def step(limit: int) -> tuple[Any, dict[str, Any]]:
        monkeypatch.setitem(trainers.PASS_TOKENS, "cpu", limit)
        made.append(list(passes(batch, limit)))
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, dict(batch), 50)
        named = trainer.model.named_parameters()
        return loss, {name: p.grad.clone() for name, p in named if p.requires_grad}

    whole, gradients = step(10**6)
    loss, ours = step(80)
    assert (len(made[0]), len(made[1]) > 2) == (1, True)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)
