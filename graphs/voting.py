"""Votes on one question, as pure functions: when to stop, and who has won.

First-to-ahead-by-k (MAKER, arXiv 2511.09030, section 3.2) over the votes that passed the check; a
first vote that the model is sure of stands alone, because calls are the scarce good.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """One copy's answer."""

    text: str
    """Normalised: equal texts are equal answers."""
    ok: bool
    """False where a check refused it (a red flag): it is recorded and does not count."""
    logprob: float | None = None
    """Log-probability of its least certain token; None where unknown."""


@dataclass(frozen=True)
class VotePolicy:
    """How many votes a question gets."""

    lead: int = 2
    """Votes by which an answer must be ahead (k)."""
    most: int = 7
    """Votes at the most; 1 switches voting off."""
    sure: float = -0.05
    """A first vote whose least certain token has at least this log-probability stands alone,
    and so does one whose log-probabilities are unknown."""
    temperature: float = 0.7
    """Of every vote but the first, which is greedy."""


def tally(votes: Sequence[Vote]) -> list[tuple[str, int]]:
    """(answer, count) of the votes that count, most first; ties in order of appearance."""
    counts: dict[str, int] = {}
    for vote in votes:
        if vote.ok:
            counts[vote.text] = counts.get(vote.text, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def settled(votes: Sequence[Vote], policy: VotePolicy) -> bool:
    """True where no further vote is to be asked."""
    if len(votes) >= policy.most:
        return True
    if len(votes) == 1 and votes[0].ok and _sure(votes[0], policy):
        return True
    ranking = tally(votes)
    if not ranking:
        return False
    runner_up = ranking[1][1] if len(ranking) > 1 else 0
    return ranking[0][1] - runner_up >= policy.lead


def _sure(vote: Vote, policy: VotePolicy) -> bool:
    return vote.logprob is None or vote.logprob >= policy.sure


def winner(votes: Sequence[Vote]) -> Vote | None:
    """The vote that stands for the most frequent answer that passed the check.

    Where none passed, the first vote, which is then marked as not `ok`; None without votes.
    """
    ranking = tally(votes)
    if not ranking:
        return votes[0] if votes else None
    return next(vote for vote in votes if vote.ok and vote.text == ranking[0][0])
