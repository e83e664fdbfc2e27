"""Checkers test an answer by rules or by another method (seed 8.4.1, error checking)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """What a checker found."""

    ok: bool
    rule: str = ""
    """The first rule that failed; empty where none did."""
    reason: str = ""
    """Why the answer could not be tested."""


class Checker(Protocol):
    """Anything that can doubt an answer. It never sees the true one."""

    def check(self, question: str, answer: str) -> Verdict:
        """Judge one answer to one question."""
        ...


class RuleChecker:
    """Applies named predicates in order; the first that fails is the verdict.

    A rule that raises `ValueError` has failed: it could not make sense of the answer.
    """

    def __init__(self, rules: Mapping[str, Callable[[str, str], bool]]) -> None:
        self.rules = dict(rules)

    def check(self, question: str, answer: str) -> Verdict:
        """Return the first failing rule, or an accepting verdict."""
        for name, rule in self.rules.items():
            try:
                passed = rule(question, answer)
            except ValueError:
                passed = False
            if not passed:
                return Verdict(False, name)
        return Verdict(True)
