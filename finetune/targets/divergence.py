"""How far a student's distributions are from a teacher's, as pure functions on logits.

Implements the loss of section 8.4.2 of the AI Safety Atlas. `beta` is that of TRL's
`DistillationConfig`: 0 is the forward Kullback-Leibler divergence KL(teacher || student), 1 the
reverse one, and anything between the generalized Jensen-Shannon divergence (Agarwal et al. 2024,
arXiv 2306.13649, section 3) to the mixture m = beta teacher + (1 - beta) student:

    beta KL(teacher || m) + (1 - beta) KL(student || m)

With `top_k`, the distributions are compared on the teacher's k likeliest tokens and one bucket for
all others, the tail, so that what is not kept still counts.
"""

import math

import torch

LEAST_TAIL = 1e-8
"""Least probability of the tokens that a record does not list."""
ABSENT = -1e4
"""Log-probability of a bucket that does not exist: both sides have it, so it counts nothing."""


def soft_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> torch.Tensor:
    """(tokens,): the divergence of each token's distributions, times the temperature squared.

    The factor keeps the size of the gradients whatever the temperature (Hinton et al. 2015, arXiv
    1503.02531, section 2), so that a weight against other losses keeps its meaning.

    Args:
        student, teacher: logits, (tokens, vocabulary).
        top_k: compare the teacher's likeliest tokens and their tail; None compares all.
    """
    student, teacher = student / temperature, teacher / temperature
    if top_k is None or top_k >= teacher.shape[-1]:
        found = divergence(student.log_softmax(-1), teacher.log_softmax(-1), beta)
    else:
        ids = top_ids(teacher, top_k)
        found = divergence(buckets(student, ids), buckets(teacher, ids), beta)
    return temperature**2 * found


def logged_loss(
    student: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor, *, beta: float = 0.0
) -> torch.Tensor:
    """(tokens,): the divergence from log-probabilities that a record lists, and their tail.

    Args:
        student: logits, (tokens, vocabulary).
        ids, logprobs: (tokens, k); an id of -1 is none, and every token has one at least.
    """
    absent = ids < 0
    known = torch.where(absent, ids[:, :1], ids)
    listed = logprobs.to(student.dtype).masked_fill(absent, ABSENT)
    tail = (1 - listed.exp().sum(-1, keepdim=True)).clamp(min=LEAST_TAIL).log()
    ours = buckets(student, known)
    ours = torch.cat([ours[:, :-1].masked_fill(absent, ABSENT), ours[:, -1:]], -1)
    return divergence(ours, torch.cat([listed, tail], -1), beta)


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """(tokens,): between log-probabilities (tokens, buckets)."""
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.exp() * (one - other)).sum(-1)


def buckets(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(tokens, k + 1): log-probabilities of the tokens `ids` (tokens, k), then of all others."""
    total = logits.logsumexp(-1, keepdim=True)
    # Summed over the others: one minus a sum near one would lose the tail to rounding.
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), others], -1) - total


def top_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """(tokens, k): ids of the largest logits; among equal ones the lower ids.

    Logits of bf16 are often equal, and which of them `topk` takes differs between devices.
    """
    values, ids = logits.topk(k)
    edge = values[:, -1:]
    tied = (logits >= edge).sum(-1) > k
    if bool(tied.any()):
        rows, edge = logits[tied], edge[tied]
        above, equal = rows > edge, rows == edge
        kept = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
        ids[tied] = kept.nonzero()[:, 1].view(-1, k)
    return ids
