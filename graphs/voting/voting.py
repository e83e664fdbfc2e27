"""Votes on one question, as pure functions: how many more to ask for, and who has won.

A stopping rule says of two counts whether they decide; everything else here follows from that. The
next wave is no larger than the fewest votes after which the rule could stop, so none is asked in
vain: a wave changes when votes are asked, never which. The rules are in
`reflux.graphs.voting.stopping`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reflux.agents.errors import UsageError, check_range
from reflux.graphs.voting.stopping import AheadBy, AnyRule


@dataclass(frozen=True)
class Vote:
    """One copy's answer."""

    text: str
    """Normalised: equal texts are equal answers."""
    ok: bool
    """False where a check or a red flag refused it: it is recorded and does not count."""
    logprob: float | None = None
    """Log-probability of its least certain token; None where unknown."""
    weight: float = 1
    """What it counts for."""
    flag: str = ""
    """Why it was refused."""


@dataclass(frozen=True)
class Variant:
    """One way in which a copy differs from the next, so that it errs on its own."""

    model: str = ""
    """Another model or adapter; X where empty."""
    system: str = ""
    """Another system message; the context's where empty."""
    wording: str = "{question}"
    """Another frame for the question."""
    temperature: float | None = None
    """Another temperature; the policy's where None."""
    weight: float = 1
    """Of its vote."""

    def __post_init__(self) -> None:
        check_range("votes.variants.weight", self.weight, above=0)
        if "{question}" not in self.wording:
            raise UsageError(
                f"votes.variants.wording is {self.wording!r}, in which no copy would see its "
                "question: write {question} where it is to stand"
            )
        if self.temperature is not None:
            check_range("votes.variants.temperature", self.temperature, least=0)


PLAIN_VARIANT = Variant()


@dataclass(frozen=True)
class VotePolicy:
    """How many votes a question gets."""

    margin: int = 2
    """Votes by which an answer must be ahead (k), where no `rule` is given."""
    max_votes: int = 7
    """Votes at the most, where no `rule` is given; 1 switches voting off."""
    min_logprob: float | None = -0.05
    """A first vote whose least certain token has at least this log-probability stands alone,
    and so does one whose log-probabilities are unknown. None: none does."""
    temperature: float = 0.7
    """Of every vote but the first, which is greedy."""
    rule: AnyRule | None = None
    """When the votes decide; first to be ahead by `margin` where None."""
    variants: tuple[Variant, ...] = ()
    """How copies differ beyond seed and temperature: vote i takes the one at i modulo their
    number."""

    def __post_init__(self) -> None:
        check_range("votes.margin", self.margin, least=1)
        check_range("votes.max_votes", self.max_votes, least=1)
        check_range("votes.temperature", self.temperature, least=0)
        if self.min_logprob is not None:
            check_range("votes.min_logprob", self.min_logprob)
        _ = self.stopping  # Raises where lead and most contradict each other.

    @cached_property
    def stopping(self) -> AnyRule:
        """The rule that counts."""
        return self.rule or AheadBy(self.margin, self.max_votes)

    def variant(self, number: int) -> Variant:
        """What vote `number` differs by."""
        return self.variants[number % len(self.variants)] if self.variants else PLAIN_VARIANT

    def weight_between(self, begin: int, end: int) -> float:
        """Weight of the votes from number `begin` to just before `end`."""
        if not self.variants:
            return (end - begin) * PLAIN_VARIANT.weight
        weights = [variant.weight for variant in self.variants]
        cycles, rest = divmod(end - begin, len(weights))
        return cycles * sum(weights) + sum(self.variant(begin + n).weight for n in range(rest))

    def warmth(self, number: int) -> float:
        """Temperature of vote `number`."""
        given = self.variant(number).temperature
        return given if given is not None else self.temperature if number else 0.0


def tally(votes: Sequence[Vote]) -> list[tuple[str, float]]:
    """(answer, weight) of the votes that count, heaviest first; ties in order of appearance."""
    counts: dict[str, float] = {}
    for vote in votes:
        if vote.ok:
            counts[vote.text] = counts.get(vote.text, 0) + vote.weight
    return sorted(counts.items(), key=lambda item: -item[1])


def next_votes(votes: Sequence[Vote], policy: VotePolicy) -> int:
    """Votes to ask next, all at once; 0 where these are enough."""
    rule = policy.stopping
    left = rule.max_votes - len(votes)
    if left <= 0:
        return 0
    if policy.min_logprob is not None:
        if not votes:
            return 1  # It may stand alone.
        if len(votes) == 1 and votes[0].ok and _sure(votes[0], policy.min_logprob):
            return 0
    ranking = tally(votes)
    first = ranking[0][1] if ranking else 0
    second = ranking[1][1] if len(ranking) > 1 else 0
    open_weight = policy.weight_between(len(votes), rule.max_votes)
    if ranking and rule.decided(first, second, open_weight):
        return 0
    gain = 0.0
    for more in range(1, left):
        weight = policy.variant(len(votes) + more - 1).weight
        gain, open_weight = gain + weight, open_weight - weight
        if rule.decided(first + gain, second, open_weight):
            return more
        # The runner-up comes as near as it can: a rule may give up on votes that stay split.
        half = (first + second + gain) / 2
        if rule.decided(max(first, half), min(second + gain, half), open_weight):
            return more
    return left


def settled(votes: Sequence[Vote], policy: VotePolicy) -> bool:
    """True where no further vote is to be asked."""
    return next_votes(votes, policy) == 0


def _sure(vote: Vote, least: float) -> bool:
    return vote.logprob is None or vote.logprob >= least


def winner(votes: Sequence[Vote]) -> Vote | None:
    """The vote that stands for the heaviest answer that passed the check.

    Where none passed, the first vote, which is then marked as not `ok`; None without votes.
    """
    ranking = tally(votes)
    if not ranking:
        return votes[0] if votes else None
    return next(vote for vote in votes if vote.ok and vote.text == ranking[0][0])
