"""Budgets are split statically among the children, so timing never changes an answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What one question may spend, in whole model calls and whole tokens."""

    calls: int
    tokens: int

    def split(self, parts: int) -> tuple["Budget", ...]:
        """Share among `parts` children in order: shares add up to the whole, and the first
        children get the odd units."""
        return tuple(
            Budget(
                self.calls // parts + (i < self.calls % parts),
                self.tokens // parts + (i < self.tokens % parts),
            )
            for i in range(parts)
        )

    def minus(self, calls: int, tokens: int) -> "Budget":
        """What is left after spending; a call may overrun its tokens, so never below zero."""
        return Budget(max(0, self.calls - calls), max(0, self.tokens - tokens))

    @property
    def empty(self) -> bool:
        """True where not one more call can be paid."""
        return self.calls < 1 or self.tokens < 1
