"""Checkers test an answer by rules (seed 8.4.1, error checking)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """A checker's or verifier's judgement."""

    ok: bool
    rule: str = ""
    """The first rule that failed; empty if none did."""
    reason: str = ""
    """Why the answer could not be tested."""


class Checker(Protocol):
    """Tests an answer without seeing the true one."""

    def check(self, question: str, answer: str) -> Verdict:
        """Judge one answer to one question."""
        ...


class RuleChecker:
    """Applies named predicates in order; the first that fails is the verdict.

    A rule that raises `ValueError` fails, because it could not parse the answer.
    """

    def __init__(self, rules: Mapping[str, Callable[[str, str], bool]]) -> None:
        self._rules = dict(rules)

    @property
    def has_rules(self) -> bool:
        """False where every answer is accepted untested."""
        return bool(self._rules)

    def check(self, question: str, answer: str) -> Verdict:
        """Return the first failing rule, or an accepting verdict."""
        for name, rule in self._rules.items():
            try:
                passed = rule(question, answer)
            except ValueError:
                passed = False
            if not passed:
                return Verdict(False, name)
        return Verdict(True)
