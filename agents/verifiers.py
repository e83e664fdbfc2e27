"""Tests of an answer (AI Safety Atlas 8.4.1, error checking): rules, verifiers, which use another
method than the one that produced it, and red flags, by which a reply is discarded before it is a
vote.

Another decomposition is a method as well; `CheckPolicy.confirm` demands it. A `Judge` decides
whether two answers with different wordings, such as sentences, say the same; the task's
`normalise` makes numbers, sets and short texts equal at no cost.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from reflux.agents.errors import RefluxError, UsageError, check_range
from reflux.agents.overseers.protocol import ModelContext
from reflux.agents.prompts import critic_prompt, read_verdict, read_yes, same_prompt
from reflux.agents.tools.protocol import CALL_SECONDS, Tool, guarded
from reflux.agents.types import ChatRequest, Completion, Exchange, Sampling


@dataclass(frozen=True)
class Verdict:
    """A checker's or verifier's judgement."""

    ok: bool
    rule: str = ""
    """The first rule that failed; empty if none did."""
    reason: str = ""
    """Why the answer could not be tested."""


def as_verdict(source: object, result: object) -> Verdict:
    """What a checker or verifier returned; a bool is a verdict without a reason.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(result, bool):
        return Verdict(result, type(source).__name__)
    if isinstance(result, Verdict):
        return result
    raise TypeError(
        f"{type(source).__name__} returned {result!r:.80}; return reflux.Verdict(ok, rule)"
    )


class Checker(Protocol):
    """Tests an answer without seeing the true one."""

    def check(self, question: str, answer: str) -> Verdict:
        """Judge one answer to one question."""
        ...


def verdict_of(checker: Checker, question: str, answer: str) -> Verdict:
    """A checker's verdict on an answer.

    Raises:
        RefluxError: the checker fails.
        UsageError: it returns neither a bool nor a verdict.
    """
    try:
        result: object = checker.check(question, answer)
    except RefluxError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RefluxError(
            f"the checker {type(checker).__name__} failed on the answer {answer[:80]!r} to "
            f"{question[:80]!r}: {type(error).__name__}: {str(error)[:300]} ({place.filename}, "
            f"line {place.lineno}); what was asked is recorded, so correct it and repeat"
        ) from error
    try:
        return as_verdict(checker, result)
    except TypeError as error:
        raise UsageError(str(error)) from error


class RuleChecker:
    """Applies named predicates in order; the first that fails is the verdict.

    A rule that raises `ValueError` fails, because it could not parse the answer.
    """

    def __init__(
        self, rules: Mapping[str, Callable[[str, str], bool]], *, form_only: bool = False
    ) -> None:
        """
        Args:
            form_only: the rules say nothing of whether an answer is right.
        """
        self._rules = dict(rules)
        self.form_only = form_only

    @property
    def has_rules(self) -> bool:
        """False where every answer is accepted untested."""
        return bool(self._rules)

    def check(self, question: str, answer: str) -> Verdict:
        for name, rule in self._rules.items():
            try:
                passed = rule(question, answer)
            except ValueError:
                passed = False
            if not passed:
                return Verdict(False, name)
        return Verdict(True)


class Verifier(Protocol):
    """Tests an answer that has passed the rules, without seeing the true one."""

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Judge an answer; calls through `context` are recorded and charged to the question.

        Raises:
            EndpointError: a model that is needed does not answer.
        """
        ...


@dataclass(frozen=True)
class CriticVerifier:
    """A model that judges an answer right or wrong. If it says neither, the answer passes."""

    model: str = ""
    """The agent's model if empty."""
    max_tokens: int = 128

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        prompt = critic_prompt(question, answer, transcript)
        sampling = Sampling(max_tokens=self.max_tokens)
        reply = await context.complete(ChatRequest(self.model or context.model, prompt, sampling))
        return Verdict(read_verdict(reply.text) is not False, "critic")


Inversion = Callable[[str, str], tuple[str, Callable[[str], bool]] | None]
"""From a question and its answer: the inverse question, and a test of its answer; None if there is
no inverse question."""


@dataclass(frozen=True)
class BackwardVerifier:
    """The agent answers the inverse question: for a sum, what remains without one of its parts."""

    invert: Inversion
    model: str = ""
    """The agent's model if empty."""
    max_tokens: int = 64

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        if (inverse := self.invert(question, answer)) is None:
            return Verdict(True)
        inverse_question, accepts = inverse
        turns = (("system", ""), ("user", inverse_question))
        sampling = Sampling(max_tokens=self.max_tokens)
        reply = await context.complete(ChatRequest(self.model or context.model, turns, sampling))
        return Verdict(accepts(reply.text), "inverse")


@dataclass(frozen=True)
class ToolVerifier:
    """A tool that computes or tests the answer; a replay calls it again. Where the tool fails, the
    answer passes, and the record says why it was not tested."""

    tool: Tool
    tool_question: Callable[[str, str], str]
    """The tool's question, from question and answer."""
    agrees: Callable[[str, str], bool]
    """Whether the answer, first, agrees with the tool's reply, second."""

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        asked = self.tool_question(question, answer)
        reply = await guarded(lambda: self.tool.answer(asked), CALL_SECONDS)
        if not reply.ok:
            return Verdict(True, "tool", reply.text)
        return Verdict(self.agrees(answer, reply.text), "tool")


@dataclass(frozen=True)
class ConsistencyVerifier:
    """A rule on question, sub-answers and answer: whether the parts support the whole."""

    name: str
    holds: Callable[[str, Sequence[Exchange], str], bool]

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        try:
            return Verdict(self.holds(question, transcript, answer), self.name)
        except ValueError:
            return Verdict(False, self.name)


class Equivalence(Protocol):
    """Decides whether two answers to a question say the same."""

    async def same(self, context: ModelContext, question: str, one: str, other: str) -> bool:
        """Whether two answers with different texts say the same.

        Raises:
            EndpointError: a model that is needed does not answer.
        """
        ...


@dataclass(frozen=True)
class Judge:
    """A model that compares two answers. If it says neither yes nor no, they differ: that costs a
    vote, but counts no wrong answer as a right one."""

    model: str = ""
    """The agent's model if empty."""
    max_tokens: int = 16

    async def same(self, context: ModelContext, question: str, one: str, other: str) -> bool:
        sampling = Sampling(max_tokens=self.max_tokens)
        prompt = same_prompt(question, one, other)
        reply = await context.complete(ChatRequest(self.model or context.model, prompt, sampling))
        return read_yes(reply.text) is True


REPEATED_WORDS = 8
"""Maximum length, in words, of a repeated sequence."""
MATCH_SECONDS = 5.0
"""Maximum seconds to match one reply: a linear pattern takes milliseconds for a megabyte, a
backtracking one does not end."""


@dataclass(frozen=True)
class RedFlags:
    """Red flags: signs in a reply that its model is confused; by default none.

    A flagged reply is recorded, has no vote, and is replaced by another: confused replies are wrong
    more often, and their errors correlate (MAKER, arXiv 2511.09030, section 3.3).
    `reflux.graphs.evals.vote_log.flag_effects` measures the effect of each rule from the log.
    """

    cut_off: bool = False
    """Discards replies that the token limit cut."""
    longest: int | None = None
    """Maximum characters."""
    pattern: str = ""
    """Regular expression that must match the whole reply, without outer white space."""
    hedges: tuple[str, ...] = ()
    """Phrases that no reply may hold, in any case."""
    repeats: int | None = None
    """Maximum consecutive repetitions of the same words."""

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise UsageError(
                f"the pattern {self.pattern!r} is not a regular expression: {error}; correct it"
            ) from error
        for name, value in (("longest", self.longest), ("repeats", self.repeats)):
            if value is not None:
                check_range(f"flags.{name}", value, least=1)
        if not all(phrase.strip() for phrase in self.hedges):
            raise UsageError("flags.hedges holds an empty phrase, which every reply has; remove it")

    def of(self, reply: Completion) -> str:
        """The name of the first rule that a reply breaks; empty if it breaks none.

        Raises:
            UsageError: matching the pattern takes too long.
        """
        text = reply.text.strip()
        if self.cut_off and reply.truncated:
            return "cut_off"
        if self.longest is not None and len(text) > self.longest:
            return "longest"
        try:
            if self.pattern and not regex.fullmatch(
                self.pattern, text, regex.DOTALL, timeout=MATCH_SECONDS
            ):
                return "pattern"
        except TimeoutError as error:
            raise UsageError(
                f"flags.pattern {self.pattern!r} has not matched a reply of {len(text)} characters "
                f"in {MATCH_SECONDS:g} s: it tries too many ways; write it without repetitions of "
                "repetitions, such as (a+)+, or set flags.longest, too"
            ) from error
        if any(phrase.lower() in text.lower() for phrase in self.hedges):
            return "hedges"
        if self.repeats is not None and repetitions(text) > self.repeats:
            return "repeats"
        return ""


def repetitions(text: str) -> int:
    """Maximum consecutive repetitions of a sequence of up to `REPEATED_WORDS` words."""
    words = text.split()
    maximum = min(1, len(words))
    for length in range(1, min(REPEATED_WORDS, len(words) // 2) + 1):
        same = 0  # Words in a row that equal the word `length` before them.
        for index in range(length, len(words)):
            same = same + 1 if words[index] == words[index - length] else 0
            maximum = max(maximum, 1 + same // length)
    return maximum
