"""What the amplification graph holds, and what it is given.

States are plain JSON types, so any checkpointer can keep them; models, overseers and checkers
come in by the context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypedDict

from agents.budget import Budget
from agents.checker import Checker, RuleChecker
from agents.errors import UsageError, within
from agents.examiner import Examiner
from agents.flags import RedFlags
from agents.judge import Equivalence
from agents.overseer import AnyOverseer
from agents.prompts import answer_prompt
from agents.purse import Purse
from agents.tools import Grants, Tool
from agents.types import Completion, Turn
from graphs.branches import Branches
from graphs.calls import Caller
from graphs.events import Event
from graphs.experts import Combiner, Expert, Vote
from graphs.policy import CheckPolicy
from graphs.revision import AGAIN, Override
from graphs.traces import CallKey
from graphs.voting import VotePolicy

Status = Literal["ok", "rejected", "over_budget", "failed"]
"""`ok`: accepted. `rejected`: answered, but no attempt passed the check. `over_budget`: the calls
or tokens ended first. `failed`: no answer. All but `failed` carry the best answer so far."""


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
                within(f"limits.{name}", value, least=1 if name == "question_chars" else 0)


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

    caller: Caller
    model: str
    """The name of X."""
    overseers: Sequence[AnyOverseer]
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
    examiners: Sequence[Examiner] = ()
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
    purse: Purse = field(default_factory=Purse)
    """Seconds and money of the question, and of its run."""
    overrides: Mapping[str, Override] = field(default_factory=dict[str, Override])
    """What persons put in the place of nodes, by path; see `graphs.revision`."""
    branches: Branches = field(default_factory=Branches)
    """How many sub-questions of each depth are under way at once: what a tree takes of memory is
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
        self.purse.pay(model, reply)
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
                    "left": self.purse.left(),
                }
            )


def hold_together(context: AmplifyContext) -> None:
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


class Spent(TypedDict):
    """Calls (cache hits among them) and tokens."""

    calls: int
    cached: int
    tokens: int


NOTHING_SPENT: Spent = {"calls": 0, "cached": 0, "tokens": 0}


def plus(*parts: Spent) -> Spent:
    """Add up what was spent."""
    return {
        "calls": sum(p["calls"] for p in parts),
        "cached": sum(p["cached"] for p in parts),
        "tokens": sum(p["tokens"] for p in parts),
    }


class Outcome(TypedDict):
    """How one question ended."""

    answer: str | None
    status: Status
    error: str | None
    spent: Spent


def failed_outcome(reason: str) -> Outcome:
    """The outcome of a question that nothing was spent on, and why."""
    return {"answer": None, "status": "failed", "error": reason, "spent": NOTHING_SPENT}


class SubResult(TypedDict):
    """How one sub-question of a batch ended."""

    index: int
    question: str
    outcome: Outcome


class SubTask(TypedDict):
    """One sub-question on its way to a copy."""

    index: int
    text: str
    path: str
    depth: int
    ancestors: list[str]
    question_id: str
    retries: int
    calls: int
    tokens: int
    to: str
    """Who is to answer; see `SubQuestion.to`."""
    blocked: str | None
    """Why it cannot be asked: a sub-question that it needs has failed."""


def collect(old: list[SubResult], new: list[SubResult] | None) -> list[SubResult]:
    """Reducer of a batch's results: they add up until None clears them."""
    return [] if new is None else old + new


class AmplifyState(TypedDict):
    """One question in the middle of its amplification."""

    question: str
    question_id: str
    """Id of the root, which all of the tree's calls carry."""
    path: str
    depth: int
    ancestors: list[str]
    """Questions from the root down, without this one."""
    calls: int
    """Budget of this question, whole."""
    tokens: int
    spent: Spent
    retries: int
    """Retries of the levels above: they move every vote below to fresh seeds."""
    attempt: int
    step: int
    transcript: list[dict[str, Any]]
    first_step: dict[str, Any] | None
    """H's first step where the level above has taken it already."""
    batch: list[dict[str, Any]]
    """Sub-questions asked and not yet aggregated: text, needs, calls, tokens, retries."""
    results: Annotated[list[SubResult], collect]
    proposal: str | None
    error: str | None
    proposals: list[str]
    """Answers that failed the check, one for each attempt."""
    passed: list[str]
    """Answers that passed it, where more attempts have to agree."""
    outcome: Outcome | None


def left_of(state: AmplifyState) -> Budget:
    """What a question may still spend."""
    spent = state["spent"]
    return Budget(state["calls"], state["tokens"]).minus(spent["calls"], spent["tokens"])


def best_proposal(proposals: Sequence[str]) -> str | None:
    """The most frequent of the answers that failed the check; the first among equals."""
    return max(proposals, key=proposals.count) if proposals else None
