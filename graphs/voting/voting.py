"""Votes on one question, as pure functions: how many more to ask for, and which answer wins.

A stopping rule (`reflux.graphs.voting.stopping`) tells from two counts whether they decide. The
next batch holds the fewest votes after which the rule could stop, so none is wasted: batching
changes when votes are asked, never which.
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
    """Normalized: equal texts are equal answers."""
    ok: bool
    """False where a check or a red flag refused it; such a vote is recorded and does not count."""
    logprob: float | None = None
    """Log-probability of its least certain token; None where unknown."""
    weight: float = 1
    flag: str = ""
    """Why it was refused."""
    truncated: bool = False
    """The token limit cut the reply."""


@dataclass(frozen=True)
class Variant:
    """One way in which copies differ, so that their errors are independent."""

    model: str = ""
    """Another model or adapter; the agent where empty."""
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
                f"votes.variants.wording is {self.wording!r}, which does not show the question: "
                "write {question} where the question goes"
            )
        if self.temperature is not None:
            check_range("votes.variants.temperature", self.temperature, least=0)


PLAIN_VARIANT = Variant()


@dataclass(frozen=True)
class VotePolicy:
    """How many votes a question gets."""

    margin: int = 2
    """Lead k in votes that decides, where no `rule` is set."""
    max_votes: int = 7
    """Maximum votes, where no `rule` is set; 1 switches voting off."""
    min_logprob: float | None = -0.05
    """The first vote stands alone where its least certain token has at least this log-probability,
    or where log-probabilities are unknown. None: never."""
    temperature: float = 0.7
    """Temperature of every vote but the first, which is greedy."""
    rule: AnyRule | None = None
    """When the votes decide; first to be ahead by `margin` where None."""
    variants: tuple[Variant, ...] = ()
    """How copies differ beyond their seed: vote i takes the variant at i modulo their number."""

    def __post_init__(self) -> None:
        check_range("votes.margin", self.margin, least=1)
        check_range("votes.max_votes", self.max_votes, least=1)
        check_range("votes.temperature", self.temperature, least=0)
        if self.min_logprob is not None:
            check_range("votes.min_logprob", self.min_logprob)
        _ = self.stopping  # Raises where margin and max_votes contradict each other.

    @cached_property
    def stopping(self) -> AnyRule:
        """The rule in force."""
        return self.rule or AheadBy(self.margin, self.max_votes)

    def variant(self, number: int) -> Variant:
        """What vote `number` differs by."""
        return self.variants[number % len(self.variants)] if self.variants else PLAIN_VARIANT

    def weight_between(self, begin: int, end: int) -> float:
        """Weight of the votes from number `begin` to just before `end`."""
        weights = [variant.weight for variant in self.variants or (PLAIN_VARIANT,)]
        cycles, rest = divmod(end - begin, len(weights))
        return cycles * sum(weights) + sum(self.variant(begin + n).weight for n in range(rest))

    def warmth(self, number: int) -> float:
        """Temperature of vote `number`."""
        temperature = self.variant(number).temperature
        return temperature if temperature is not None else self.temperature if number else 0.0


def tally(votes: Sequence[Vote]) -> list[tuple[str, float]]:
    """(answer, weight) of the votes that count, heaviest first; ties in order of appearance."""
    counts: dict[str, float] = {}
    for vote in votes:
        if vote.ok:
            counts[vote.text] = counts.get(vote.text, 0) + vote.weight
    return sorted(counts.items(), key=lambda item: -item[1])


def next_votes(votes: Sequence[Vote], policy: VotePolicy) -> int:
    """Size of the next batch; 0 where these votes are enough."""
    rule = policy.stopping
    left = rule.max_votes - len(votes)
    if left <= 0:
        return 0
    if policy.min_logprob is not None:
        if not votes:
            return 1  # It may stand alone.
        if len(votes) == 1 and votes[0].ok:
            logprob = votes[0].logprob
            if logprob is None or logprob >= policy.min_logprob:
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
        # The runner-up gains as much as it can: a rule may stop on votes that stay split.
        half = (first + second + gain) / 2
        if rule.decided(max(first, half), min(second + gain, half), open_weight):
            return more
    return left


def winner(votes: Sequence[Vote]) -> Vote | None:
    """The vote that stands for the heaviest answer that passed the check.

    Where none passed, the first vote, which is then marked as not `ok`; None without votes.
    """
    ranking = tally(votes)
    if not ranking:
        return votes[0] if votes else None
    return next(vote for vote in votes if vote.ok and vote.text == ranking[0][0])


def is_truncated(votes: Sequence[Vote], answer: str) -> bool:
    """True where the token limit cut every accepted vote for an answer."""
    cut = [vote.truncated for vote in votes if vote.ok and vote.text == answer]
    return bool(cut) and all(cut)
