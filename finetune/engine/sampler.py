"""Draws the next token of each row from its logits, by that row's own sampling and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reflux.agents.types import Sampling

LEAST_SHARE = 0.05
"""Tokens less likely than this share of the likeliest are never drawn; llama.cpp's own default."""


class TokenSampler:
    """The random numbers of one request: they follow from its seed and vote."""

    def __init__(self, seed: int, vote: int) -> None:
        self._generator = torch.Generator()
        # A vote is another stream, not the next number of the same one.
        self._generator.manual_seed((seed * 1_000_003 + vote) % 2**63)

    def throw(self) -> float:
        """A number from 0 to 1."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


@dataclass(frozen=True)
class SampledTokens:
    """One token, with what is known of the runners-up."""

    token: int
    logprob: float = 0.0
    """Natural-log probability, before temperature; 0 where it was not asked for."""
    top: tuple[tuple[int, float], ...] = field(default=())


def draw(
    logits: torch.Tensor, samplings: Sequence[Sampling], dice: Sequence[TokenSampler | None]
) -> list[SampledTokens]:
    """A token for each row of logits (rows, vocabulary), in float32.

    The likeliest where there are no dice; ties go to the lower id.
    """
    best, at_best = logits.max(1)
    tokens = at_best.tolist()
    for row, own in enumerate(dice):
        if own is not None:
            tokens[row] = _thrown(logits[row], samplings[row].temperature, own.throw())
    asked = [row for row, sampling in enumerate(samplings) if sampling.top_logprobs]
    if not asked:
        return [SampledTokens(token) for token in tokens]
    chosen = logits if len(asked) == len(tokens) else logits[asked]
    total = chosen.logsumexp(1)
    drawn = chosen.gather(1, torch.tensor([[tokens[row]] for row in asked], device=logits.device))
    most = max(samplings[row].top_logprobs for row in asked)
    if most == 1:  # The likeliest is known already; topk would look for it again.
        values, ids = best[asked, None], at_best[asked, None]
    else:
        values, ids = chosen.topk(min(most, chosen.shape[1]))
    of_drawn = (drawn[:, 0] - total).tolist()
    of_top, top_ids = (values - total[:, None]).tolist(), ids.tolist()
    found = {}
    for at, row in enumerate(asked):
        kept = samplings[row].top_logprobs
        top = tuple(zip(top_ids[at][:kept], of_top[at][:kept], strict=True))
        found[row] = SampledTokens(tokens[row], of_drawn[at], top)
    return [found.get(row) or SampledTokens(token) for row, token in enumerate(tokens)]


def _thrown(logits: torch.Tensor, temperature: float, number: float) -> int:
    """The token on which `number` falls where the likely ones share the way from 0 to 1."""
    shares = (logits / temperature).softmax(0, dtype=torch.float64)
    shares[shares < LEAST_SHARE * shares.max()] = 0
    way = shares.cumsum(0)
    token = int(torch.searchsorted(way, number * way[-1], right=True))
    return min(token, int(shares.nonzero()[-1]))
