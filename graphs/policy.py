"""What has to hold before an answer is accepted, and what follows where it does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from agents.errors import UsageError, within

Action = Literal["retry", "other", "person"]
"""`retry`: the same H with fresh votes. `other`: the next H's decomposition. `person`: a person
takes the steps, and what the person answers is accepted."""


@dataclass(frozen=True)
class CheckPolicy:
    """How answers are accepted, at every question that H divides."""

    confirm: int = 1
    """Attempts that must come to the same accepted answer, each by another decomposition or with
    other votes: redundant systems and a majority of them."""
    after_failure: tuple[Action, ...] = ()
    """What follows the first attempt that does not settle the question, the second, and so on;
    `other` where the list ends."""

    def __post_init__(self) -> None:
        within("checks.confirm", self.confirm, least=1)
        if strange := [each for each in self.after_failure if each not in get_args(Action)]:
            there = ", ".join(get_args(Action))
            raise UsageError(f"no action is called {strange[0]!r}; there are {there}")

    def action(self, attempt: int) -> Action:
        """What led to an attempt, from 1."""
        return self.after_failure[attempt - 1] if attempt <= len(self.after_failure) else "other"

    def by_person(self, attempt: int) -> bool:
        """True where a person takes the steps of an attempt."""
        return attempt > 0 and self.action(attempt) == "person"

    def way(self, attempt: int) -> int:
        """The decomposition of an attempt, counted through the overseers in turn."""
        return sum(self.action(number) == "other" for number in range(1, attempt + 1))

    def confirmed(self, passed: Sequence[str], answer: str) -> bool:
        """True where enough attempts, this one included, have come to the same answer."""
        return 1 + passed.count(answer) >= self.confirm
