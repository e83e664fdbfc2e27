"""Stopping rules: when votes decide.

Every rule compares the two leading answers; votes for others count only toward the limit. Tests
hold each rule against simulation and, where there is one, its closed form.

| rule | stops when | for |
|---|---|---|
| `Majority` | no remaining vote can change the winner | a fixed price |
| `AheadBy` | one answer leads by k | a known accuracy, where it is Wald's test |
| `Sprt` | the leader's share is decided against another | stopping where votes stay split |
| `Posterior` | the leader is right with a given probability | an accuracy that varies by question |
| `Weighted` | the leader's log-odds suffice | copies that are unequally good |
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from reflux.agents.errors import UsageError, check_range


class StoppingRule(Protocol):
    """Tells whether two counts decide a vote."""

    @property
    def max_votes(self) -> int:
        """Maximum votes."""
        ...

    def decided(self, first: float, second: float, left: float) -> bool:
        """True where voting may stop at these weights of the leader and the runner-up, with the
        weight `left` of votes that could still be cast."""
        ...


@dataclass(frozen=True)
class Majority:
    """The most frequent of `max_votes` answers; stops once the remaining votes cannot change it
    (early-stopping self-consistency, arXiv 2401.10480, without its window)."""

    kind: Literal["majority"] = "majority"
    max_votes: int = 7

    def __post_init__(self) -> None:
        check_range("votes.rule.max_votes", self.max_votes, least=1)

    def decided(self, first: float, second: float, left: float) -> bool:
        """The lead is larger than what is left."""
        return first - second > left


@dataclass(frozen=True)
class AheadBy:
    """First to be ahead by k (MAKER, arXiv 2511.09030, section 3.2)."""

    margin: int = 2
    """k."""
    max_votes: int = 7
    kind: Literal["ahead"] = "ahead"

    def __post_init__(self) -> None:
        check_range("votes.rule.margin", self.margin, least=1)
        check_range("votes.rule.max_votes", self.max_votes, least=1)
        if self.margin > self.max_votes > 1:
            raise UsageError(
                f"votes.rule.margin is {self.margin} and max_votes only {self.max_votes}: allow "
                f"{self.margin} votes or more, or one to switch voting off"
            )

    def decided(self, first: float, second: float, left: float) -> bool:
        return first - second >= self.margin


@dataclass(frozen=True)
class Sprt:
    """Wald's sequential probability ratio test (1945) of the leader's share (as ConSol, arXiv
    2503.17587): `share` against `against`.

    It also stops where it accepts `against`: the votes are split, and more would not decide.
    """

    kind: Literal["sprt"] = "sprt"
    share: float = 0.8
    """The leader's share of both counts under the hypothesis that it is right."""
    against: float = 0.5
    """Its share under the hypothesis that it is not."""
    error: float = 0.05
    """Probability of an error of either kind."""
    max_votes: int = 40

    def __post_init__(self) -> None:
        check_range("votes.rule.against", self.against, above=0, below=1)
        check_range("votes.rule.share", self.share, above=self.against, below=1)
        check_range("votes.rule.error", self.error, above=0, below=0.5)
        check_range("votes.rule.max_votes", self.max_votes, least=1)

    def decided(self, first: float, second: float, left: float) -> bool:
        """The likelihood ratio has left the open interval between Wald's bounds."""
        ratio = first * math.log(self.share / self.against)
        ratio += second * math.log((1 - self.share) / (1 - self.against))
        return abs(ratio) >= math.log((1 - self.error) / self.error) - 1e-12


@dataclass(frozen=True)
class Posterior:
    """Stops when the leader is right with probability `confidence` (adaptive consistency, arXiv
    2305.11860, with a prior of the copies' accuracy in place of a flat one of the shares).

    The accuracy of a copy on a question is drawn from Beta(`right`, `wrong`) once per question, so
    that the votes on a hard question are wrong together; `reflux.graphs.evals.vote_log` estimates
    both from the log.
    """

    kind: Literal["posterior"] = "posterior"
    confidence: float = 0.95
    right: float = 8.0
    wrong: float = 2.0
    max_votes: int = 40

    def __post_init__(self) -> None:
        check_range("votes.rule.confidence", self.confidence, above=0, below=1)
        check_range("votes.rule.right", self.right, above=0)
        check_range("votes.rule.wrong", self.wrong, above=0)
        check_range("votes.rule.max_votes", self.max_votes, least=1)

    def decided(self, first: float, second: float, left: float) -> bool:
        return self.belief(first, second) >= self.confidence

    def belief(self, first: float, second: float) -> float:
        """Probability that the leader is right, given that one of the two is."""
        odds = log_beta(first + self.right, second + self.wrong)
        odds -= log_beta(second + self.right, first + self.wrong)
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


@dataclass(frozen=True)
class Weighted:
    """Votes weigh their copy's log-odds of being right; stops at a lead of ln((1 - error)/error),
    where the leader is wrong with probability `error` if the errors are independent."""

    kind: Literal["weighted"] = "weighted"
    error: float = 0.01
    max_votes: int = 40

    def __post_init__(self) -> None:
        check_range("votes.rule.error", self.error, above=0, below=0.5)
        check_range("votes.rule.max_votes", self.max_votes, least=1)

    def decided(self, first: float, second: float, left: float) -> bool:
        """The lead, in nats, suffices."""
        return first - second >= math.log((1 - self.error) / self.error)


AnyRule = Majority | AheadBy | Sprt | Posterior | Weighted


def log_beta(a: float, b: float) -> float:
    """Natural logarithm of the beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
