"""Draws the next token of each row from its logits and its own sampling settings alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reflux.agents.types import Sampling

MIN_PROBABILITY = 0.05
"""Minimum probability of a drawn token, as a share of the likeliest token's (min-p); llama.cpp's
default."""


class TokenSampler:
    """The random numbers of one request, which follow from its seed and vote."""

    def __init__(self, seed: int, vote: int) -> None:
        self._generator = torch.Generator()
        # Each vote has its own stream, not the next numbers of a shared one.
        self._generator.manual_seed((seed * 1_000_003 + vote) % 2**63)

    def uniform(self) -> float:
        """A number from 0 to 1."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


@dataclass(frozen=True)
class SampledToken:
    """One token and the likeliest alternatives."""

    token: int
    logprob: float = 0.0
    """Natural-log probability before temperature; 0 if the request has no `top_logprobs`."""
    top: tuple[tuple[int, float], ...] = field(default=())


def draw(
    logits: torch.Tensor, samplings: Sequence[Sampling], samplers: Sequence[TokenSampler | None]
) -> list[SampledToken]:
    """A token for each row of logits (rows, vocabulary), in float32.

    Without a sampler it is the likeliest token; ties go to the lower id.
    """
    best, best_ids = logits.max(1)
    tokens = best_ids.tolist()
    for row, sampler in enumerate(samplers):
        if sampler is not None:
            tokens[row] = _token_at(logits[row], samplings[row].temperature, sampler.uniform())
    reported = [row for row, sampling in enumerate(samplings) if sampling.top_logprobs]
    if not reported:
        return [SampledToken(token) for token in tokens]
    chosen = logits if len(reported) == len(tokens) else logits[reported]
    total = chosen.logsumexp(1)
    ids = torch.tensor([[tokens[row]] for row in reported], device=logits.device)
    logprobs = (chosen.gather(1, ids)[:, 0] - total).tolist()
    limit = max(samplings[row].top_logprobs for row in reported)
    if limit == 1:  # `max` has found the likeliest token; topk would search again.
        top, top_ids = best[reported, None], best_ids[reported, None]
    else:
        top, top_ids = chosen.topk(min(limit, chosen.shape[1]))
    top_logprobs, top_tokens = (top - total[:, None]).tolist(), top_ids.tolist()
    sampled = {}
    for index, row in enumerate(reported):
        count = samplings[row].top_logprobs
        pairs = zip(top_tokens[index][:count], top_logprobs[index][:count], strict=True)
        sampled[row] = SampledToken(tokens[row], logprobs[index], tuple(pairs))
    return [sampled.get(row) or SampledToken(token) for row, token in enumerate(tokens)]


def _token_at(logits: torch.Tensor, temperature: float, number: float) -> int:
    """The token at a quantile, 0 to 1, of the likely tokens' cumulative distribution."""
    probabilities = (logits / temperature).softmax(0, dtype=torch.float64)
    probabilities[probabilities < MIN_PROBABILITY * probabilities.max()] = 0
    cumulative = probabilities.cumsum(0)
    token = int(torch.searchsorted(cumulative, number * cumulative[-1], right=True))
    return min(token, int(probabilities.nonzero()[-1]))
