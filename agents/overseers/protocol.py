"""H: who decomposes a question and combines the answers."""

from collections.abc import Callable, Sequence
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


class Overseer(Protocol):
    """Whoever takes the steps of amplification: a script, a model or a person.

    One method covers every scheme of the seed's section 8.4.1: decompose-then-aggregate is an
    `Ask` followed by an `Answer`; a search of many dependent steps is the same with more `Ask`s.
    """

    @property
    def name(self) -> str:
        """Recorded with each step; never the name of a Python module."""
        ...

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Take the next step on `question`, given all that was asked and answered so far.

        With `may_ask=False` (the depth cap) an overseer answers a primitive, or returns `PASS`
        to leave the question to X.
        """
        ...


class Desk(Protocol):
    """Where an overseer asks models while it takes a step: each call is recorded, replayed from
    the record, and charged to the question."""

    @property
    def model(self) -> str:
        """The name of X."""
        ...

    @property
    def left(self) -> Budget:
        """What the question may still spend."""
        ...

    @property
    def path(self) -> str:
        """The question's place in its tree; empty at the root."""
        ...

    async def ask(self, request: ChatRequest) -> Completion:
        """Make one call; the calls of one step are numbered in the order in which they are made.

        Raises:
            EndpointError: no reply after every retry, or nothing is left to pay it.
        """
        ...

    def members(self, count: int) -> Sequence["Desk"]:
        """Places for `count` who ask side by side, each with a share of what is left here."""
        ...


class Seated(Protocol):
    """An overseer that asks models: before each step it is given the desk to ask at.

    One with a `reserve: Budget` has so much kept back for its later steps wherever its
    sub-questions share what is left.
    """

    @property
    def name(self) -> str:
        """Recorded with each step."""
        ...

    def at(self, desk: Desk) -> Overseer:
        """The overseer that takes this one step."""
        ...


class Follower(Protocol):
    """An overseer that asks chains (`reflux.agents.types.Chain`) also says how they go on."""

    def follow(self, asked: str, answer: str) -> str | Answer:
        """The next question, or the answer that ends the chain.

        It must depend on nothing but these two: a chain that was interrupted goes on from its last
        link.
        """
        ...


AnyOverseer = Overseer | Seated
Follow = Callable[[str, str], str | Answer]
"""`Follower.follow`, of an overseer that has one."""


def follow_of(overseer: AnyOverseer) -> Follow | None:
    """How an overseer's chains go on; None where it asks none."""
    return getattr(overseer, "follow", None)


def seated(overseer: AnyOverseer, desk: Desk) -> Overseer:
    """The overseer at its desk; one that asks no models needs none."""
    at: Callable[[Desk], Overseer] | None = getattr(overseer, "at", None)
    return cast(Overseer, overseer) if at is None else at(desk)


def reserve_of(overseer: AnyOverseer) -> Budget:
    """What H's later steps need of a question's budget, before its sub-questions share it."""
    return getattr(overseer, "reserve", Budget(0, 0))


def validate_step(step: object) -> Step:
    """A step as H's code or a person gave it, held to what a step is.

    Raises:
        TypeError: it is none, or one of its parts has not the type that it must have.
    """
    if isinstance(step, Answer):
        _must(step.text, str, "the text of an Answer")
    elif isinstance(step, Ask):
        for sub in _must(step.subquestions, tuple | list, "the sub-questions of an Ask"):
            _must(sub, SubQuestion, "a sub-question")
            _must(sub.text, str, "the text of a SubQuestion")
            _must(sub.to, str, "the `to` of a SubQuestion")
            for need in _must(sub.needs, tuple | list, "the needs of a SubQuestion"):
                _must(need, int, "a need of a SubQuestion")
    elif isinstance(step, Chain):
        _must(step.first, str, "the first question of a Chain")
    else:
        _must(step, Defer, "a step")
    return cast(Step, step)


def _must(value: Any, kind: Any, what: str) -> Any:
    if not isinstance(value, kind):
        wanted = (
            "Answer, Ask, Chain or Defer" if kind is Defer else getattr(kind, "__name__", str(kind))
        )
        raise TypeError(
            f"{what} must be of type {wanted}, not {type(value).__name__}: {value!r:.80}"
        )
    return value


PASS = Ask(())
"""An `Ask` of nothing: the overseer leaves the question, undivided, to X."""
