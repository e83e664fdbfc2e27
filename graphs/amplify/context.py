"""What has to hold before an answer is accepted, and what follows where it does not.

How much of a tree is open at once: its memory follows from that, not from its size.

Without a bound every sub-question of a level would start together, and a tree of 100,000 would be
in memory whole. There is one gate for each depth. A branch holds the gate of its own depth until
it ends, and waits only for gates of greater depth: no two can wait for each other.

What the amplification graph holds, and what it is given.

States are plain JSON types, so any checkpointer can keep them; models, overseers and checkers
come in by the context.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import UsageError, check_range
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.prompts import answer_prompt
from reflux.agents.tools.protocol import Grants, Tool
from reflux.agents.types import Completion, Turn
from reflux.agents.verifiers.red_flags import RedFlags
from reflux.agents.verifiers.rules import Checker, RuleChecker
from reflux.agents.verifiers.verifier import Equivalence, Verifier
from reflux.graphs.amplify.experts import Combiner, Expert, Vote
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.revisions import AGAIN, Override
from reflux.graphs.traces.store import CallKey
from reflux.graphs.voting.voting import VotePolicy

Action = Literal["retry", "other", "human"]
"""`retry`: the same H with fresh votes. `other`: the next H's decomposition. `human`: a person
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
        check_range("checks.confirm", self.confirm, least=1)
        if strange := [each for each in self.after_failure if each not in get_args(Action)]:
            there = ", ".join(get_args(Action))
            raise UsageError(f"no action is called {strange[0]!r}; there are {there}")

    def action(self, attempt: int) -> Action:
        """What led to an attempt, from 1."""
        return self.after_failure[attempt - 1] if attempt <= len(self.after_failure) else "other"

    def by_human(self, attempt: int) -> bool:
        """True where a person takes the steps of an attempt."""
        return attempt > 0 and self.action(attempt) == "human"

    def way(self, attempt: int) -> int:
        """The decomposition of an attempt, counted through the overseers in turn."""
        return sum(self.action(number) == "other" for number in range(1, attempt + 1))

    def confirmed(self, passed: Sequence[str], answer: str) -> bool:
        """True where enough attempts, this one included, have come to the same answer."""
        return 1 + passed.count(answer) >= self.confirm


class ConcurrencyLimit:
    """Lets at most `most` sub-questions of each depth be under way; the others wait their turn.

    Questions that share one of these share the bound. It serves one event loop at a time.
    """

    def __init__(self, max_votes: int = 256) -> None:
        """Where `most` is below the requests that the client makes at once, it limits those."""
        self.max_votes = max_votes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[int, asyncio.Semaphore] = {}

    def at(self, depth: int) -> AbstractAsyncContextManager[None]:
        """To be entered for as long as a sub-question of this depth is under way."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # A semaphore belongs to the loop that it was used in.
            self._loop, self._gates = loop, {}
        if depth not in self._gates:
            self._gates[depth] = asyncio.Semaphore(self.max_votes)
        return self._gates[depth]


@dataclass(frozen=True)
class Limits:
    """The caps of one amplified question."""

    depth: int = 1
    """Levels of sub-questions; 0 asks X directly."""
    fanout: int = 64
    """Sub-questions in one batch."""
    steps: int = 64
    """Steps that H may take on one question."""
    attempts: int = 3
    """Tries at one question; the second and later follow a failed check."""
    calls: int = 1_000
    """Model calls below the root."""
    tokens: int = 1_000_000
    """Prompt and completion tokens below the root."""
    question_chars: int = 100_000
    """Length of a question."""
    tool_turns: int = 4
    """Replies of one copy that may ask for tools; after them it must answer."""
    seconds: float | None = None
    """Of one root question, from its start; None for no limit. Time decides what is asked no more;
    calls under way are waited for."""
    money: float | None = None
    """Of one root question, in the currency of the prices; None for no limit."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_range(f"limits.{name}", value, least=1 if name == "question_chars" else 0)


def tries(above: int, attempt: int, depth: int, limits: Limits) -> int:
    """Numbers an attempt at a question whose parents were at try `above`; it picks the seeds.

    The attempts from the root down are its digits, lowest first: other retries have another
    number, at whatever depth they end, and a level that is not retried changes nothing.
    """
    return above + attempt * max(1, limits.attempts) ** depth


def as_asked(question: str) -> Sequence[str]:
    """The wording of those who give no other."""
    return (question,)


def silent(event: Event) -> None:
    """The listener of those who do not listen."""


@dataclass(frozen=True)
class AmplifyContext:
    """All that the graph needs beside its state."""

    recorded_client: RecordedClient
    model: str
    """The name of X."""
    overseers: Sequence[Overseer]
    """H; on attempt i the one at position i modulo their number: another decomposition."""
    checker: Checker = field(default_factory=lambda: RuleChecker({}))
    limits: Limits = field(default_factory=Limits)
    votes: VotePolicy = field(default_factory=VotePolicy)
    flags: RedFlags = field(default_factory=RedFlags)
    """Replies that have no vote."""
    wordings: Callable[[str], Sequence[str]] = as_asked
    """Equivalent questions, the plainest first: vote i asks the one at i modulo their number."""
    same: Equivalence | None = None
    """Tells which votes are for one answer where their normalised texts differ."""
    verifiers: Sequence[Verifier] = ()
    """Test by other methods what the checker lets pass, wherever H divides."""
    checks: CheckPolicy = field(default_factory=CheckPolicy)
    max_tokens: int | Callable[[str], int] = 256
    """Tokens of one answer, or a function of the question that tells them."""
    stop: tuple[str, ...] = ()
    top_logprobs: int = 1
    system_prompt: str = ""
    seed: int = 0
    normalise: Callable[[str], str] = str.strip
    """Brings equal answers to equal text."""
    canonical: Callable[[str], str] = str.strip
    """Brings equal questions to equal text; a question that equals an ancestor is refused."""
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    """Tools that H may ask, by name: `SubQuestion(text, to="tool:NAME")`."""
    grants: Grants = field(default_factory=dict[str, Sequence[Tool]])
    """Tools that a model may call, by its role; none by default."""
    experts: Sequence[Expert] = ()
    """Who may be asked by name, `to="expert:NAME"`, or all together, `to="experts"`."""
    everyone: bool = False
    """All experts answer whatever H leaves to X."""
    combiner: Combiner = field(default_factory=Vote)
    """Makes one answer of what several experts say."""
    spend_limit: SpendLimit = field(default_factory=SpendLimit)
    """Seconds and money of the question, and of its run."""
    overrides: Mapping[str, Override] = field(default_factory=dict[str, Override])
    """What persons put in the place of nodes, by path; see `reflux.graphs.traces.revisions`."""
    concurrency: ConcurrencyLimit = field(default_factory=ConcurrencyLimit)
    """How many sub-questions of each depth are under way at once: what a tree takes of
    memory is
    set by this, not by its size. It changes no answer."""
    emit: Callable[[Event], None] = silent
    """Hears of every event of the growing tree; by default they leave by the graph's stream
    of mode `custom`."""

    def answer_tokens(self, question: str) -> int:
        """Tokens that the answer to a question may take."""
        return self.max_tokens if isinstance(self.max_tokens, int) else self.max_tokens(question)

    def override(self, path: str, question: str) -> Override | None:
        """A person's word on this very question at this place."""
        found = self.overrides.get(path)
        return found if found is not None and found.question == question else None

    def asked_before(self, path: str, question: str) -> int:
        """Retries that a question begins with, where a person had it asked again."""
        found = self.override(path, question)
        return found.again * AGAIN if found is not None else 0

    def prompt(self, question: str, persona: str = "") -> tuple[Turn, ...]:
        """The messages that ask one copy one question."""
        return answer_prompt(question, persona or self.system_prompt)

    def heard(self, key: CallKey, model: str, reply: Completion) -> None:
        """Pay for a reply, and tell the listeners of it."""
        self.spend_limit.pay(model, reply)
        if self.emit is not silent:
            self.emit(
                {
                    "event": "called",
                    "path": key.path,
                    "role": key.role,
                    "model": model,
                    "tokens": reply.tokens,
                    "cached": reply.cached,
                    "seconds": reply.seconds,
                    "left": self.spend_limit.left(),
                }
            )


def validate_context(context: AmplifyContext) -> None:
    """Refuse settings that are each in range and together ask for what cannot be.

    Raises:
        UsageError: more attempts must agree than there are.
    """
    confirm, attempts = context.checks.confirm, context.limits.attempts
    if confirm > max(1, attempts):
        raise UsageError(
            f"checks.confirm is {confirm} and limits.attempts {attempts}: so many attempts can "
            f"never agree; raise limits.attempts to {confirm} or more"
        )


def listening(context: AmplifyContext, writer: Callable[[Event], None]) -> AmplifyContext:
    """The context whose events leave by a graph's stream, unless they have a listener already."""
    return context if context.emit is not silent else replace(context, emit=writer)
