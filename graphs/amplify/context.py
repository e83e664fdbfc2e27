"""What the amplification graph needs beside its state: models, overseers, checks and limits."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from reflux.agents.answer_checks import AnswerChecks
from reflux.agents.budget import SpendLimit
from reflux.agents.clients.retries import time_left
from reflux.agents.errors import UsageError, check_choice, check_has, check_range
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.policy.calls import CallGraph
from reflux.agents.policy.policy import Policy
from reflux.agents.tools.protocol import ROLES, Grants, Tool
from reflux.agents.types import ChatRequest, Completion
from reflux.agents.verifiers import Checker, Equivalence, RedFlags, RuleChecker, Verifier
from reflux.graphs.amplify.state import Spent
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.traces.events import Event, called
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.revisions import AGAIN, Override
from reflux.graphs.traces.store import CallKey
from reflux.graphs.voting.combiners import Combiner, Expert, PluralityVote
from reflux.graphs.voting.confidence import Cascade
from reflux.graphs.voting.voting import VotePolicy

Action = Literal["retry", "other", "human"]
"""`retry`: the same overseer with fresh votes. `other`: the next overseer's decomposition.
`human`: a human takes the steps, and the human's answer is accepted."""


@dataclass(frozen=True)
class CheckPolicy:
    """How answers are accepted, at every question that the overseer divides."""

    confirm: int = 1
    """Attempts that must reach the same accepted answer, each by another decomposition or with
    other votes."""
    after_failure: tuple[Action, ...] = ()
    """What follows the first failed attempt, the second, and so on; `other` after the list ends."""

    def __post_init__(self) -> None:
        check_range("checks.confirm", self.confirm, least=1)
        for action in self.after_failure:
            check_choice("an action of checks.after_failure", action, get_args(Action))

    def action(self, attempt: int) -> Action:
        """The action that led to an attempt, which counts from 1."""
        return self.after_failure[attempt - 1] if attempt <= len(self.after_failure) else "other"

    def by_human(self, attempt: int) -> bool:
        """True where a human takes the steps of an attempt."""
        return attempt > 0 and self.action(attempt) == "human"

    def way(self, attempt: int) -> int:
        """How many decompositions precede an attempt's; it picks the overseer."""
        return sum(self.action(number) == "other" for number in range(1, attempt + 1))

    def confirmed(self, passed: Sequence[str], answer: str) -> bool:
        """True where enough attempts, this one included, gave the same answer."""
        return 1 + passed.count(answer) >= self.confirm


class ConcurrencyLimit:
    """Runs at most `max_open` sub-questions of each depth at a time; the others wait.

    It bounds a tree's memory: without it, every sub-question of a level would start at once. A
    branch holds a slot of its depth until it ends and waits only for deeper ones, so no two
    branches deadlock. Each event loop has its own slots.
    """

    def __init__(self, max_open: int = 256) -> None:
        # Fewer than the client's concurrent requests limit those, too.
        self.max_open = max_open
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]]
        self._gates = WeakKeyDictionary()

    def at(self, depth: int) -> AbstractAsyncContextManager[None]:
        """A context manager that a sub-question of this depth runs in."""
        # A semaphore belongs to the loop that it was used in.
        gates = self._gates.setdefault(asyncio.get_running_loop(), {})
        return gates.setdefault(depth, asyncio.Semaphore(self.max_open))


@dataclass(frozen=True)
class Limits:
    """The caps of one amplified question."""

    depth: int = 1
    """Levels of sub-questions; 0 asks the agent directly."""
    fanout: int = 64
    """Sub-questions in one batch."""
    steps: int = 64
    """Steps that the overseer may take on one question."""
    attempts: int = 3
    """Attempts at one question; the second and later follow a failed check."""
    calls: int = 1_000
    """Model calls below the root."""
    tokens: int = 1_000_000
    """Prompt and completion tokens below the root."""
    question_chars: int = 100_000
    """Characters of a question."""
    tool_turns: int = 4
    """Replies of one copy that may ask for tools; after them it must answer."""
    seconds: float | None = None
    """Time of one root question; None for no limit. When it is up, no new call starts, and running
    calls finish. For timing-independent answers, limit calls and tokens."""
    money: float | None = None
    """Cost of one root question, in the currency of the prices; None for no limit."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_range(f"limits.{name}", value, least=1 if name == "question_chars" else 0)


def tries(above: int, attempt: int, depth: int, limits: Limits) -> int:
    """The number of an attempt at a question whose parents' retries number `above`; it picks seeds.

    The attempts from the root down are its digits, lowest first. Every sequence of retries has
    another number, at any depth, and a level without a retry changes nothing.
    """
    return above + attempt * max(1, limits.attempts) ** depth


def silent(event: Event) -> None:
    """The default listener, which ignores events."""


@dataclass(frozen=True)
class Reply:
    """A model's last completion, and the cost of all its turns."""

    completion: Completion
    spent: Spent
    labels: tuple[str, ...] = ()
    """Of the untrusted text that the model had read; empty without a policy."""


AS_OVERSEER = (
    "an overseer has a `name` and an async `act(context)`; wrap a function as "
    "reflux.ScriptedOverseer(name, function)"
)
AS_CHECKER = "wrap a function of question and answer as reflux.RuleChecker({'name': function})"
AS_TOOL = "give a function with types and a docstring, a tool of LangChain, or a reflux.Tool"
AS_TOOLS = "write tools={'calculator': reflux.Calculator()}"
AS_GRANTS = "write grants={'answer': [reflux.Calculator()]}"


def _as_tool(made: Any) -> Any:
    if hasattr(made, "answer") or hasattr(made, "spec"):
        return made
    from reflux.agents.tools.langchain import as_tool  # LangChain is slow to import.

    return as_tool(made)


@dataclass(frozen=True)
class AmplifyContext:
    """All that the graph needs beside its state."""

    recorded_client: RecordedClient
    model: str
    """The agent's name."""
    overseers: Sequence[Overseer]
    """Attempt i takes the one at i modulo their number, for another decomposition."""
    checker: Checker = field(default_factory=lambda: RuleChecker({}))
    limits: Limits = field(default_factory=Limits)
    votes: VotePolicy = field(default_factory=VotePolicy)
    flags: RedFlags = field(default_factory=RedFlags)
    """Which replies lose their vote."""
    wordings: Callable[[str], Sequence[str]] = lambda question: (question,)
    """Equivalent questions, the plainest first: vote i asks the one at i modulo their number."""
    same: Equivalence | None = None
    """Tells which votes mean the same answer where their normalized texts differ."""
    verifiers: Sequence[Verifier] = ()
    """Test what the checker accepts by other methods, wherever the overseer divides."""
    checks: CheckPolicy = field(default_factory=CheckPolicy)
    max_tokens: int | Callable[[str], int] = 256
    """Maximum tokens of one answer, or a function of the question that returns them."""
    stop: tuple[str, ...] = ()
    top_logprobs: int = 1
    system_prompt: str = ""
    seed: int = 0
    normalise: Callable[[str], str] = str.strip
    """Maps equal answers to equal text."""
    canonical: Callable[[str], str] = str.strip
    """Maps equal questions to equal text; a question that equals an ancestor fails."""
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    """Tools that the overseer may ask, by name: `SubQuestion(text, to="tool:NAME")`."""
    grants: Grants = field(default_factory=dict[str, Sequence[Tool]])
    """Tools that a model may call, by its role; none by default."""
    experts: Sequence[Expert] = ()
    """Experts to ask by name, `to="expert:NAME"`, or all together, `to="experts"`."""
    everyone: bool = False
    """All experts answer every question that the overseer leaves to the agent."""
    combiner: Combiner = field(default_factory=PluralityVote)
    """Makes one answer of several experts' answers."""
    spend_limit: SpendLimit = field(default_factory=SpendLimit)
    """Seconds and money of the question, and of its run."""
    overrides: Mapping[str, Override] = field(default_factory=dict[str, Override])
    """Humans' overrides of nodes, by path."""
    weighing: Weighing | None = None
    """Weighs the agent's direct answer to the root question against those of decompositions; None:
    the overseer's answer stands."""
    cascade: Cascade | None = None
    """The agent answers the root question alone where it is sure enough."""
    policy: Policy | None = None
    """What untrusted text may reach; None: whatever the calls that there are reach."""
    concurrency: ConcurrencyLimit = field(default_factory=ConcurrencyLimit)
    """Changes no answer; questions that share it share the bound."""
    emit: Callable[[Event], None] = silent
    """Receives every event; by default events leave by the graph's stream of mode `custom`."""
    checks_parts: bool = True
    """Whether the checker judges sub-answers, too."""

    def __post_init__(self) -> None:
        check_has("a set of limits", ("attempts",), "write reflux.Limits(depth=1)", self.limits)
        check_has("a vote policy", ("rule",), "write reflux.VotePolicy(max_votes=3)", self.votes)
        check_has("a checker", ("check",), AS_CHECKER, self.checker)
        check_has("an overseer", ("act", "name"), AS_OVERSEER, *self.overseers)
        check_has("a verifier", ("verify",), "see reflux.Verifier", *self.verifiers)
        check_has("an expert", ("name", "weight"), "write reflux.Expert(name)", *self.experts)
        if self.weighing is not None and (self.checks.confirm > 1 or self.checks.after_failure):
            raise UsageError(
                "candidates are weighed by themselves: leave out checks.confirm and "
                "checks.after_failure, or set candidates to 0"
            )
        check_has("a mapping of tools by name", ("values",), AS_TOOLS, self.tools)
        object.__setattr__(self, "tools", {n: _as_tool(t) for n, t in self.tools.items()})
        check_has("a tool", ("answer",), AS_TOOL, *self.tools.values())
        check_has("a mapping of tools by role", ("items",), AS_GRANTS, self.grants)
        grants: dict[str, Sequence[Tool]] = {}
        for role, tools in self.grants.items():
            check_choice("a role of grants", role, ROLES)
            check_has("a list of tools", ("__iter__",), AS_GRANTS, tools)
            grants[role] = [_as_tool(tool) for tool in tools]
            check_has("a tool", ("spec", "call"), AS_TOOL, *grants[role])
        object.__setattr__(self, "grants", grants)

    @property
    def calls(self) -> CallGraph:
        """Who may call whom, whatever any text says."""
        return CallGraph.of(self.tools, (each.name for each in self.experts), self.grants)

    def at(self, path: str) -> "AmplifyContext":
        """The context of a node: below the root without a checker that is for whole answers."""
        return self if self.checks_parts or not path else replace(self, checker=RuleChecker({}))

    def granting(self, grants: Grants) -> "AmplifyContext":
        """The context with tools that copies may call, and the overseer ask by name."""
        tools = {tool.spec.name: tool for tool in grants.get("answer", ())}
        return replace(self, grants=grants, tools={**tools, **self.tools}) if grants else self

    def weighs(self, depth: int) -> bool:
        """True where the first attempt at a question of this depth is the direct answer."""
        return self.weighing is not None and depth == 0

    @property
    def agent_first(self) -> bool:
        """True where the agent answers the root question before the overseer is asked."""
        return self.weighing is not None or self.cascade is not None

    def decompositions_left(self, depth: int, attempt: int) -> int:
        """Decompositions of a question from this attempt on, if all that are weighed follow."""
        if self.weighing is None or depth > 0:
            return 1
        return max(1, self.weighing.decompositions + 1 - attempt)

    @property
    def has_rules(self) -> bool:
        """False where the checker accepts every answer untested."""
        return not isinstance(self.checker, RuleChecker) or self.checker.has_rules

    @property
    def has_check(self) -> bool:
        """True where a rule or a verifier tests the answers that the overseer gives."""
        return self.has_rules or bool(self.verifiers)

    @property
    def tests_form_only(self) -> bool:
        """True where answers that pass every test may well be wrong."""
        checker = self.checker
        form_only = isinstance(checker, RuleChecker | AnswerChecks) and checker.form_only
        return not self.verifiers and (form_only or not self.has_rules)

    def override(self, path: str, question: str) -> Override | None:
        """A human's override of this question at this path."""
        override = self.overrides.get(path)
        return override if override is not None and override.question == question else None

    def asked_before(self, path: str, question: str) -> int:
        """Retries that a question begins with, where a human had it asked again."""
        override = self.override(path, question)
        return override.again * AGAIN if override is not None else 0

    async def ask(self, key: CallKey, request: ChatRequest) -> Reply:
        """Make one recorded call, pay for it, and emit its event.

        Raises:
            EndpointError: it failed for good.
        """
        with time_left(self.spend_limit.left().get("seconds")):
            completion = await self.recorded_client.ask(key, request)
        self.spend_limit.pay(request.model, completion)
        if self.emit is not silent:
            left = self.spend_limit.left()
            self.emit(called(key.path, key.role, request.model, completion, left))
        spent: Spent = {"calls": 1, "cached": int(completion.cached), "tokens": completion.tokens}
        return Reply(completion, spent)
