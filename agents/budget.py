"""Budgets of calls and tokens are split statically among sub-questions, so timing never changes an
answer.

Seconds and money are one pool for a question or a run. All concurrent work shares the pool, so
where it ends depends on timing. For timing-independent answers, limit calls and tokens.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reflux.agents.errors import UsageError, check_range
from reflux.agents.types import Completion


@dataclass(frozen=True)
class Budget:
    """What one question may spend, in whole model calls and whole tokens."""

    calls: int
    tokens: int

    def split(self, parts: int) -> tuple["Budget", ...]:
        """Shares for `parts` children in order: they add up to the whole, and the first children
        get the odd units."""
        return tuple(
            Budget(
                self.calls // parts + (i < self.calls % parts),
                self.tokens // parts + (i < self.tokens % parts),
            )
            for i in range(parts)
        )

    def minus(self, calls: int, tokens: int) -> "Budget":
        """What is left after spending; never below zero, because a call may overrun its tokens."""
        return Budget(max(0, self.calls - calls), max(0, self.tokens - tokens))

    @property
    def empty(self) -> bool:
        """True if the budget pays for no further call."""
        return self.calls < 1 or self.tokens < 1


@dataclass(frozen=True)
class Price:
    """The price of a model; all prices are in one currency."""

    prompt: float = 0.0
    """Per million prompt tokens."""
    completion: float = 0.0
    """Per million completion tokens."""

    def __post_init__(self) -> None:
        check_range("spend_limit.prices.prompt", self.prompt, least=0)
        check_range("spend_limit.prices.completion", self.completion, least=0)

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class SpendLimit:
    """Counts down seconds, money, calls and tokens; each may be unlimited."""

    def __init__(
        self,
        *,
        seconds: float | None = None,
        money: float | None = None,
        calls: int | None = None,
        tokens: int | None = None,
        prices: Mapping[str, Price] | None = None,
        parent: "SpendLimit | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            prices: by model name; a model without one is free.
            parent: the run's limit, which pays for this question as well.

        Raises:
            UsageError: money is limited, and no model has a price.
        """
        if money is not None and not prices:
            raise UsageError(
                f"money is limited to {money:g}, but no model has a price: set spend_limit.prices, "
                "or remove the limit"
            )
        self._limits = {"seconds": seconds, "money": money, "calls": calls, "tokens": tokens}
        self._prices = prices or {}
        self._parent = parent
        self._clock = clock
        self._start = clock()
        self._spent = {"money": 0.0, "calls": 0, "tokens": 0}

    def for_question(self, seconds: float | None, money: float | None) -> "SpendLimit":
        """A limit for one question, which starts now; this limit pays along with it."""
        return SpendLimit(
            seconds=seconds, money=money, prices=self._prices, parent=self, clock=self._clock
        )

    def pay(self, model: str, reply: Completion) -> None:
        """Charge one call; a reply from the cache is free."""
        if self._parent is not None:
            self._parent.pay(model, reply)
        if reply.cached:
            return
        price = self._prices.get(model) or Price()
        self._spent["money"] += price.of(reply.prompt_tokens, reply.completion_tokens)
        self._spent["calls"] += 1
        self._spent["tokens"] += reply.tokens

    def left(self) -> dict[str, float]:
        """What is left of each limit; the smaller value, if the parent limits the same."""
        spent = self._spent | {"seconds": self._clock() - self._start}
        limits = {name: limit for name, limit in self._limits.items() if limit is not None}
        left = {name: max(0.0, limit - spent[name]) for name, limit in limits.items()}
        for name, value in (self._parent.left() if self._parent else {}).items():
            left[name] = min(value, left.get(name, value))
        return left

    @property
    def lacks(self) -> str | None:
        """The name of an exhausted limit, or None."""
        return next((name for name, value in self.left().items() if value <= 0), None)
