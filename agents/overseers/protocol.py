"""The overseer: who decomposes a question and combines the answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from reflux.agents.budget import Budget
from reflux.agents.types import (
    Answer,
    Ask,
    Chain,
    ChatRequest,
    Completion,
    Defer,
    Exchange,
    Step,
    SubQuestion,
)


class ModelContext(Protocol):
    """What an overseer or a verifier calls models through: each call is recorded, replayed from
    the record, and charged to the question."""

    @property
    def model(self) -> str:
        """The agent's name."""
        ...

    async def complete(self, request: ChatRequest) -> Completion:
        """Make one call; the calls of one step are numbered in the order in which they are made.

        Raises:
            EndpointError: no reply after every retry, or no budget is left for the call.
        """
        ...


class OverseerContext(ModelContext, Protocol):
    """Everything that an overseer may use to take one step."""

    question: str
    """The question to take a step on."""
    transcript: Sequence[Exchange]
    """All sub-questions so far with their answers, in order."""
    may_ask: bool
    """False at the depth cap: the overseer answers a primitive, or returns `PASS` to leave
    the question to the agent."""

    attempt: int
    """Attempts at the question before this one, each another decomposition."""
    asked: Sequence[str]
    """What was asked before on the way from the root to the question, its ancestors included."""

    @property
    def tools(self) -> Mapping[str, str]:
        """What each tool does that a sub-question may go to, by name."""
        ...

    @property
    def budget(self) -> Budget:
        """What the question may still spend."""
        ...

    @property
    def path(self) -> str:
        """The question's position in its tree; empty at the root."""
        ...

    def members(self, count: int) -> Sequence["OverseerContext"]:
        """Contexts for `count` overseers that run side by side, each with a share of `budget`."""
        ...


class Overseer(Protocol):
    """Takes the steps of amplification: a script, a model or a human.

    One method covers every scheme of section 8.4.1 of the AI Safety Atlas: decompose-then-aggregate
    is an `Ask` followed by an `Answer`; a search of many dependent steps is the same with more
    `Ask`s. A step must depend on the context alone, so that an interrupted run resumes from its
    record.

    An overseer may have a `reserve`: the `Budget` that its later steps on one question need, which
    is kept back when sub-questions share the rest. One that asks chains has a `follow` as well.
    """

    @property
    def name(self) -> str:
        """Recorded with each step; never the name of a Python module."""
        ...

    async def act(self, context: OverseerContext) -> Step:
        """Take the next step on `context.question`."""
        ...


Follow = Callable[[str, str], str | Answer]
"""From a chain's last question and its answer: the next question, or the answer that ends the
chain. It depends on nothing else, because an interrupted chain resumes from its last link."""


def reserve_of(overseer: Overseer | None) -> Budget:
    """An overseer's reserve; nothing for an overseer without one."""
    return getattr(overseer, "reserve", Budget(0, 0))


def follow_of(overseer: Overseer | None) -> Follow | None:
    """How an overseer's chains continue; None for an overseer that asks none."""
    return getattr(overseer, "follow", None)


@dataclass(frozen=True)
class WrappedOverseer:
    """Base of an overseer around another one, whose reserve and chains are its own."""

    inner: Overseer

    @property
    def reserve(self) -> Budget:
        return reserve_of(self.inner)

    @property
    def follow(self) -> Follow | None:
        return follow_of(self.inner)


def validate_step(step: object) -> Step:
    """Check that what an overseer's code or a human returned is a step.

    Raises:
        TypeError: the step, or one of its parts, has the wrong type.
    """
    if isinstance(step, Answer):
        _check_type(step.text, str, "the text of an Answer")
    elif isinstance(step, Ask):
        for sub in _check_type(step.subquestions, tuple | list, "the sub-questions of an Ask"):
            _check_type(sub, SubQuestion, "a sub-question")
            _check_type(sub.text, str, "the text of a SubQuestion")
            _check_type(sub.to, str, "the `to` of a SubQuestion")
            for need in _check_type(sub.needs, tuple | list, "the needs of a SubQuestion"):
                _check_type(need, int, "a need of a SubQuestion")
    elif isinstance(step, Chain):
        _check_type(step.first, str, "the first question of a Chain")
    elif not isinstance(step, Defer):
        _check_type(step, Step, "a step")
    return cast(Step, step)


def _check_type(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind):
        wanted = "Answer, Ask, Chain or Defer" if kind is Step else getattr(kind, "__name__", kind)
        raise TypeError(
            f"{name} must be of type {wanted}, not {type(value).__name__}: {value!r:.80}"
        )
    return value


PASS = Ask(())
"""An `Ask` of nothing: the overseer leaves the question, undivided, to the agent."""
