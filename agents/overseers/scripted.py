"""Overseers without a model: a function, a human, a human who reviews an overseer's steps (seed
8.4.3, human oversight), and a record."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from reflux.agents.budget import Budget
from reflux.agents.errors import UsageError, check_choice
from reflux.agents.overseers.protocol import (
    PASS,
    Follow,
    Overseer,
    OverseerContext,
    WrappedOverseer,
    follow_of,
    reserve_of,
)
from reflux.agents.types import Answer, Ask, Chain, Defer, Exchange, Step, step_to_json

ScriptedStep = Callable[[str, Sequence[Exchange], bool], Step | Awaitable[Step]]


class ScriptedOverseer:
    """An overseer that is a plain Python function, the H of Christiano et al. 2018, section 2."""

    def __init__(self, name: str, function: ScriptedStep, follow: Follow | None = None) -> None:
        """
        Args:
            function: takes question, transcript and `may_ask`, returns a step; may be `async`.
            follow: how a chain continues, for a function that asks chains.
        """
        self.name = f"script:{name}"
        self.follow = follow
        self._function = function

    async def act(self, context: OverseerContext) -> Step:
        step = self._function(context.question, context.transcript, context.may_ask)
        if inspect.isawaitable(step):
            return await step
        return step


class HumanOverseer:
    """An overseer that defers every question to a human, who answers or decomposes it."""

    name = "human"

    async def act(self, context: OverseerContext) -> Step:
        return Defer(review_form(context))


def review_form(context: OverseerContext) -> dict[str, Any]:
    """What a human sees of a question, as plain JSON types."""
    transcript = [asdict(exchange) for exchange in context.transcript]
    return {"question": context.question, "transcript": transcript, "may_ask": context.may_ask}


When = Literal["always", "root", "asks", "answers"]
APPROVE = {"kind": "approve"}
"""A human's reply that accepts the proposal unchanged; any other reply is a step."""


@dataclass(frozen=True)
class Reviewed(WrappedOverseer):
    """An overseer whose steps a human sees first.

    A step to be reviewed becomes a `Defer` whose form holds what the human needs to judge it:
    `question`, `transcript`, `may_ask`, `proposal` (the step in the form of `step_to_json`) and
    `by` (the proposer's name). The human replies `{"kind": "approve"}`, or with another step in
    the proposal's form; a `comment` beside either is stored as a judgement `review`. The record
    holds the step that was taken. A proposed `Defer` goes to the human unchanged. Of a
    chain the human sees the first question, not each link.
    """

    when: When = "always"
    """`always`; `root`: the root's steps; `asks`: batches of sub-questions, and chains, at any
    depth; `answers`: the root's answer only."""

    def __post_init__(self) -> None:
        check_choice("when to review", self.when, get_args(When))

    @property
    def name(self) -> str:
        return f"reviewed:{self.inner.name}"

    async def act(self, context: OverseerContext) -> Step:
        step, at_root = await self.inner.act(context), context.path == ""
        needs_review = {
            "always": True,
            "root": at_root,
            "asks": isinstance(step, Chain) or (isinstance(step, Ask) and step.subquestions),
            "answers": isinstance(step, Answer) and at_root,
        }
        if isinstance(step, Defer) or not needs_review[self.when]:
            return step
        proposal = {"proposal": step_to_json(step), "by": self.inner.name}
        return Defer(review_form(context) | proposal)


def asks_humans(overseer: Overseer | None) -> bool:
    """True if the overseer may have to wait for a human."""
    return isinstance(overseer, HumanOverseer | Reviewed)


REPLY_FORMS = "answer: TEXT | approve | pass | sub-questions, one a line"
REPLY_HELP = (
    "Reply with `answer: TEXT`, `approve` to take the proposed step, `pass` to leave the question "
    "to the agent, or one sub-question a line and an empty line at the end. Ctrl-D leaves the "
    "question waiting."
)


def parse_reply(reply: str) -> dict[str, Any]:
    """The step of a reply in one of `REPLY_FORMS`, as JSON types.

    Raises:
        UsageError: the reply, or its answer, is empty.
    """
    text = reply.strip()
    if not text:
        raise UsageError(f"the reply is empty. {REPLY_HELP}")
    if text.lower() == "approve":
        return dict(APPROVE)
    if text.lower() == "pass":
        return {"kind": "ask", "subquestions": []}
    kind, colon, answer = text.partition(":")
    if colon and kind.strip().lower() == "answer":
        if not answer.strip():
            raise UsageError(f"the answer is empty. {REPLY_HELP}")
        return {"kind": "answer", "text": answer.strip()}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {"kind": "ask", "subquestions": [{"text": line, "needs": []} for line in lines]}


def step_text(step: Mapping[str, Any]) -> str:
    """A step, in the form of `step_to_json`, as one line."""
    if step["kind"] == "answer":
        return f"answer: {step['text']}"
    if step["kind"] == "chain":
        return f"chain: {step['first']}"
    texts = [subquestion["text"] for subquestion in step.get("subquestions", ())]
    return f"ask: {' | '.join(texts)}" if texts else "pass"


Record = Mapping[str, Sequence[Sequence[Step]]]
"""For each question the steps in their order, one sequence for each attempt."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class RecordedOverseer:
    """Replays the steps of a record, so that a decomposition can be tried with another agent.

    A question that the record lacks, or whose recorded steps are used up, goes to the `fallback`;
    without a fallback it goes to the agent, with a note that says so. The number of exchanges
    decides which step is next, so a record's later steps, its answer above all, combine its own
    sub-answers; with `asks_only` the fallback combines the new ones instead.
    """

    record: Record
    attempt: int = 0
    """Index of the attempt to replay; the last one if the record holds fewer."""
    fallback: Overseer | None = None
    asks_only: bool = False
    """Replays batches and takes answers from the fallback, which combines the new sub-answers."""

    @property
    def name(self) -> str:
        return f"recorded:{self.fallback.name}" if self.fallback else "recorded"

    @property
    def reserve(self) -> Budget:
        return reserve_of(self.fallback)

    @property
    def follow(self) -> Follow | None:
        """The fallback's: a record holds where a chain began, not how it continues."""
        return follow_of(self.fallback)

    async def act(self, context: OverseerContext) -> Step:
        """The recorded step after this many exchanges, else the fallback's."""
        attempts = self.record.get(context.question) or [()]
        steps = attempts[min(self.attempt, len(attempts) - 1)]
        sizes = [len(step.subquestions) if isinstance(step, Ask) else 0 for step in steps]
        positions = accumulate(sizes, initial=0)
        at_position = zip(positions, steps, strict=False)
        step = next((step for at, step in at_position if at == len(context.transcript)), None)
        asks = isinstance(step, Ask | Chain)
        if step is not None and (asks or not self.asks_only):
            return step if context.may_ask or not asks else PASS
        if self.fallback is not None:
            return await self.fallback.act(context)
        return Ask((), f"{NOT_RECORDED}: no step after {len(context.transcript)} exchanges")
