"""Divergences and their gradients are those of brute force in float64."""

import math
from itertools import product
from typing import Any

import pytest
import torch

from reflux.finetune.targets.divergence import logged_loss, soft_loss, top_ids

pytestmark = pytest.mark.engine
TOKENS, VOCABULARY = 5, 11


def logits(seed: int, ties: bool = False) -> torch.Tensor:
    drawn = torch.randn(
        TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (2 * drawn).round() / 2 if ties else 3 * drawn


def probabilities(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [power / sum(powers) for power in powers]


def brute_force(s: list[float], t: list[float], beta: float) -> float:
    """Of two lists of probabilities, by the definition."""

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)

    if beta in (0, 1):
        return kl(s, t) if beta else kl(t, s)
    mixed = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * kl(t, mixed) + (1 - beta) * kl(s, mixed)


def bucketed(p: list[float], kept: list[int]) -> list[float]:
    return [*(p[i] for i in kept), sum(x for i, x in enumerate(p) if i not in kept)]


def expected(s: torch.Tensor, t: torch.Tensor, beta: float, warmth: float, k: Any) -> list[float]:
    found: list[float] = []
    for one, other in zip(s.tolist(), t.tolist(), strict=True):
        ours, theirs = probabilities(one, warmth), probabilities(other, warmth)
        kept = sorted(range(VOCABULARY), key=lambda i: (-other[i], i))[: k or VOCABULARY]
        if k is not None:
            ours, theirs = bucketed(ours, kept), bucketed(theirs, kept)
        found.append(warmth**2 * brute_force(ours, theirs, beta))
    return found


CASES = list(product([0, 0.3, 0.5, 1], [1.0, 2.5], [None, 1, 4], [False, True]))


@pytest.mark.parametrize(("beta", "warmth", "k", "ties"), CASES)
def test_loss_and_gradient_are_those_of_brute_force(
    beta: float, warmth: float, k: int | None, ties: bool
) -> None:
    student, teacher = logits(1, ties).requires_grad_(), logits(2, ties)
    loss = soft_loss(student, teacher, beta=beta, temperature=warmth, top_k=k)
    assert loss.tolist() == pytest.approx(expected(student, teacher, beta, warmth, k), rel=1e-9)
    loss.sum().backward()
    step, apart = 1e-6, torch.zeros(TOKENS, VOCABULARY, dtype=torch.float64)
    for i, j in product(range(TOKENS), range(VOCABULARY)):
        ends: list[float] = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved[i, j] += sign * step
            ends.append(expected(moved[i : i + 1], teacher[i : i + 1], beta, warmth, k)[0])
        apart[i, j] = (ends[0] - ends[1]) / (2 * step)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, apart, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_without_top_k_it_is_trls(beta: float) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, head = torch.randn(4, 6), torch.randn(VOCABULARY, 6)
    other, their_head = torch.randn(4, 6), torch.randn(VOCABULARY, 6)
    theirs, _ = ChunkedDivergenceFunction.apply(  # type: ignore[no-untyped-call]
        hidden, head, None, other, their_head, None, beta, 2.0, 1.0, None, 1.0, None
    )
    ours = soft_loss(hidden @ head.T, other @ their_head.T, beta=beta, temperature=2.0) / 4
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_all_tokens_are_as_no_limit_and_equal_distributions_have_no_distance() -> None:
    student, teacher = logits(1), logits(2)
    whole = soft_loss(student, teacher)
    torch.testing.assert_close(soft_loss(student, teacher, top_k=VOCABULARY), whole)
    for beta in (0, 0.5, 1):
        for k in (None, 3):
            same = soft_loss(student, student, beta=beta, top_k=k)
            assert same.abs().max() < 1e-12


def test_ties_go_to_the_lower_ids() -> None:
    rows = torch.tensor([[1.0, 2, 2, 2, 0], [3, 3, 3, 3, 3], [5, 4, 3, 2, 1]])
    found = [sorted(row) for row in top_ids(rows, 2).tolist()]
    assert found == [[1, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_logged_log_probabilities_are_the_same_as_the_logits_they_come_from(beta: float) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    ids = top_ids(teacher, 4)
    logged = teacher.log_softmax(-1).gather(-1, ids)
    # A token more or less: the record lists as many as it has.
    ids = torch.cat([ids, torch.full((TOKENS, 2), -1)], -1)
    logged = torch.cat([logged, torch.zeros(TOKENS, 2, dtype=torch.float64)], -1)
    found = logged_loss(student, ids, logged, beta=beta)
    torch.testing.assert_close(found, soft_loss(student, teacher, beta=beta, top_k=4))
    found.sum().backward()
    ours = student.grad
    again = student.detach().clone().requires_grad_()
    soft_loss(again, teacher, beta=beta, top_k=4).sum().backward()
    torch.testing.assert_close(ours, again.grad)


def test_a_tail_that_rounding_took_is_finite() -> None:
    student = torch.randn(1, VOCABULARY).requires_grad_()
    certain = torch.full((1, VOCABULARY), -200.0)
    certain[0, 3] = 0
    for beta in (0.0, 0.5, 1.0):
        losses = [
            soft_loss(student, certain, beta=beta, top_k=2),
            logged_loss(student, torch.tensor([[3]]), torch.tensor([[1e-4]]), beta=beta),
        ]
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), student)
            assert bool(loss.isfinite().all() and gradient.isfinite().all())
