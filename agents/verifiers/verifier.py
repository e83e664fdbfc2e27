"""Verifiers test an answer by another method than the one that produced it (seed 8.4.1, error
checking): a critic, backward verification, a tool, or consistency with the sub-answers.

Another decomposition is a method as well; `CheckPolicy.confirm` demands it. A `Judge` decides
whether two answers with different wordings, such as sentences, say the same; the task's
`normalise` makes numbers, sets and short texts equal at no cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from reflux.agents.overseers.protocol import ModelContext
from reflux.agents.prompts import critic_prompt, read_verdict, read_yes, same_prompt
from reflux.agents.tools.protocol import CALL_SECONDS, Tool, guarded
from reflux.agents.types import ChatRequest, Exchange, Sampling
from reflux.agents.verifiers.rules import Verdict


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
        """Ask once, greedily."""
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
        """Ask the inverse question once, greedily."""
        if (inverse := self.invert(question, answer)) is None:
            return Verdict(True)
        inverse_question, accepts = inverse
        turns = (("system", ""), ("user", inverse_question))
        sampling = Sampling(max_tokens=self.max_tokens)
        reply = await context.complete(ChatRequest(self.model or context.model, turns, sampling))
        return Verdict(accepts(reply.text), "inverse")


@dataclass(frozen=True)
class ToolVerifier:
    """A tool that computes or tests the answer; a replay calls it again."""

    tool: Tool
    tool_question: Callable[[str, str], str]
    """The tool's question, from question and answer."""
    agrees: Callable[[str, str], bool]
    """Whether the answer, first, agrees with the tool's reply, second."""

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Ask the tool; if it refuses, the answer passes."""
        reply = await guarded(self.tool.answer(self.tool_question(question, answer)), CALL_SECONDS)
        return Verdict(not reply.ok or self.agrees(answer, reply.text), "tool")


@dataclass(frozen=True)
class ConsistencyVerifier:
    """A rule on question, sub-answers and answer: whether the parts support the whole."""

    name: str
    holds: Callable[[str, Sequence[Exchange], str], bool]

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Apply the rule; one that raises `ValueError` fails."""
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
        """Ask once, greedily."""
        sampling = Sampling(max_tokens=self.max_tokens)
        prompt = same_prompt(question, one, other)
        reply = await context.complete(ChatRequest(self.model or context.model, prompt, sampling))
        return read_yes(reply.text) is True
