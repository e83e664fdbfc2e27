"""Examiners test an answer by another method than the one that found it (seed 8.4.1, error
checking): a critic, the inverse question, a tool, or the sub-answers that it was made from.

Another decomposition is a method, too; it is asked for by `CheckPolicy.confirm`.

Whether two free answers say the same: where no rule can tell, a model does.

Numbers, sets and texts are made equal by the task's `normalise`, which costs nothing; a judge is
for answers whose wordings differ, such as sentences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from reflux.agents.overseers.protocol import ModelContext
from reflux.agents.prompts import critic_prompt, same_prompt, verdict_in, yes_in
from reflux.agents.tools.protocol import CALL_SECONDS, Tool, guarded
from reflux.agents.types import ChatRequest, Exchange, Sampling
from reflux.agents.verifiers.rules import Verdict


class Verifier(Protocol):
    """Tests an answer that the rules have let pass. It never sees the true one."""

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Judge an answer; what it asks through `context` is recorded and charged to the question.

        Raises:
            EndpointError: a model that it needs does not answer.
        """
        ...


@dataclass(frozen=True)
class CriticVerifier:
    """A model that says whether an answer is right. Where it says neither, the answer stands."""

    model: str = ""
    """X where empty."""
    max_tokens: int = 128

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Ask once, greedily."""
        prompt = critic_prompt(question, answer, transcript)
        sampling = Sampling(max_tokens=self.max_tokens)
        reply = await context.complete(ChatRequest(self.model or context.model, prompt, sampling))
        return Verdict(verdict_in(reply.text) is not False, "critic")


Inversion = Callable[[str, str], tuple[str, Callable[[str], bool]] | None]
"""Of a question and its answer: the inverse question, and what its answer must satisfy; None where
there is none."""


@dataclass(frozen=True)
class BackwardVerifier:
    """X is asked the question backwards: of a sum, what is left without one of its parts."""

    invert: Inversion
    model: str = ""
    """X where empty."""
    max_tokens: int = 64

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Ask the inverse question once, greedily."""
        if (inverse := self.invert(question, answer)) is None:
            return Verdict(True)
        asked, satisfies = inverse
        turns = (("system", ""), ("user", asked))
        sampling = Sampling(max_tokens=self.max_tokens)
        reply = await context.complete(ChatRequest(self.model or context.model, turns, sampling))
        return Verdict(satisfies(reply.text), "inverse")


@dataclass(frozen=True)
class ToolVerifier:
    """A tool that finds the answer, or tests it, by itself; it is asked again on replay."""

    tool: Tool
    asked: Callable[[str, str], str]
    """What to ask it, of question and answer."""
    agrees: Callable[[str, str], bool]
    """Does its reply, the second, agree with the answer?"""

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Ask the tool; where it refuses, it tells nothing, and the answer stands."""
        said = await guarded(self.tool.answer(self.asked(question, answer)), CALL_SECONDS)
        return Verdict(not said.ok or self.agrees(answer, said.text), "tool")


@dataclass(frozen=True)
class ConsistencyVerifier:
    """A rule of question, sub-answers and answer: do the parts bear the whole?"""

    name: str
    holds: Callable[[str, Sequence[Exchange], str], bool]

    async def verify(
        self, context: ModelContext, question: str, answer: str, transcript: Sequence[Exchange]
    ) -> Verdict:
        """Apply the rule; one that raises `ValueError` has failed."""
        try:
            return Verdict(self.holds(question, transcript, answer), self.name)
        except ValueError:
            return Verdict(False, self.name)


class Equivalence(Protocol):
    """Tells whether two answers to a question are one."""

    async def same(self, context: ModelContext, question: str, one: str, other: str) -> bool:
        """Are these the same answer? Asked only where their texts differ.

        Raises:
            EndpointError: a model that it needs does not answer.
        """
        ...


@dataclass(frozen=True)
class Judge:
    """A model that compares two answers. Where it says neither yes nor no, they differ: a vote is
    then asked too many, and no wrong answer is taken for a right one."""

    model: str = ""
    """X where empty."""
    max_tokens: int = 16

    async def same(self, context: ModelContext, question: str, one: str, other: str) -> bool:
        """Ask once, greedily."""
        sampling = Sampling(max_tokens=self.max_tokens)
        prompt = same_prompt(question, one, other)
        reply = await context.complete(ChatRequest(self.model or context.model, prompt, sampling))
        return yes_in(reply.text) is True
