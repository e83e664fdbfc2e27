"""The desk at which H asks models while it takes a step: recorded, replayed, charged.

A call's place in the log is its step, the member of a panel that made it, and its number among
that member's calls; so a step that is taken again, after a restart, gets the same replies.

A step of H: taken at its desk, by a person where H defers, and recorded before it counts.
"""

# pyright: reportMissingTypeStubs=false

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langgraph.errors import GraphBubbleUp
from langgraph.types import interrupt

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.overseers.protocol import AnyOverseer, seated, validate_step
from reflux.agents.overseers.scripted import HumanOverseer
from reflux.agents.types import (
    ChatRequest,
    Completion,
    Defer,
    Exchange,
    Step,
    step_from_json,
    step_to_json,
)
from reflux.graphs.amplify.context import AmplifyContext, tries
from reflux.graphs.amplify.sampling import run_tool_loop
from reflux.graphs.amplify.state import NOTHING_SPENT, AmplifyState, Spent, left_of, plus
from reflux.graphs.traces.revisions import AGAIN
from reflux.graphs.traces.store import CallKey

RETRY = 1_000
"""Seeds and votes of each try of a question lie so far from those of the try before."""


class StepDesk:
    """The desk of one step of one question, or of one member of the panel that takes it."""

    def __init__(
        self,
        context: AmplifyContext,
        key: CallKey,
        tried: int,
        given: Budget,
        place: str = "",
        *,
        role: str = "overseer.ask",
        made: int = 0,
    ) -> None:
        """
        Args:
            key: that of the step.
            tried: numbers the retries that lead here.
            given: what may be spent here.
            place: of a member among those who share the desk.
            role: of the calls, in the log.
            made: calls that were made in this role, at this key, before.
        """
        self._context = context
        self._key = key
        self._tried = tried
        self._given = given
        self._place = place
        self._spent: Spent = NOTHING_SPENT
        self._role = role
        self._made = made
        self._members: list[StepDesk] = []

    @property
    def spent(self) -> Spent:
        """What was spent here so far, that of members included."""
        return plus(self._spent, *(member.spent for member in self._members))

    @property
    def made(self) -> int:
        """Calls that were made in this role, at this key, those before this desk among them."""
        return self._made

    @property
    def model(self) -> str:
        """The name of X."""
        return self._context.model

    @property
    def path(self) -> str:
        """The question's place in its tree; empty at the root."""
        return self._key.path

    @property
    def left(self) -> Budget:
        """What the question may still spend."""
        spent = self.spent
        return self._given.minus(spent["calls"], spent["tokens"])

    async def ask(self, request: ChatRequest) -> Completion:
        """Make one call; see `Desk.ask`. A retry of the question draws from other seeds.

        Raises:
            EndpointError: no reply after every retry, or nothing is left to pay it.
        """
        left = self.left
        if (lacking := self._context.spend_limit.lacks) is not None:
            raise EndpointError(f"no {lacking} left for H's step: raise limits.{lacking}")
        if left.empty:
            raise EndpointError(
                f"H has {left.calls} calls and {left.tokens} tokens left for its step: raise "
                "limits.calls or limits.tokens"
            )
        self._made += 1
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, left.tokens),
            seed=request.sampling.seed + RETRY * self._tried,
        )
        if self._tried:
            hot = max(sampling.temperature, self._context.votes.temperature)
            sampling = replace(sampling, temperature=hot)
        request = replace(request, sampling=sampling, vote=request.vote + RETRY * self._tried)
        role = f"{self._role}{self._place}"
        key = replace(self._key, role=role, vote=self._made)
        tools = self._context.grants.get("overseer", ())
        reply = await run_tool_loop(self._context, tools, key, request, left)
        self._spent = plus(self._spent, reply.spent)
        return reply.completion

    def members(self, count: int) -> Sequence["StepDesk"]:
        """Places for `count` who ask side by side, each with a share of what is left here."""
        first = len(self._members)
        seats = [
            StepDesk(self._context, self._key, self._tried, share, f"{self._place}.{first + i}")
            for i, share in enumerate(self.left.split(count))
        ]
        self._members += seats
        return seats


@dataclass(frozen=True)
class Taken:
    """A step of H, or why there is none, and what it cost."""

    step: Step | None
    spent: Spent = field(default_factory=lambda: NOTHING_SPENT)
    error: str | None = None


async def take_step(state: AmplifyState, context: AmplifyContext) -> Taken:
    """H's next step, recorded; a person's where H defers. What H's code raises is a value."""
    overseer = overseer_of(state, context)
    key = CallKey(state["question_id"], state["path"], "overseer", state["step"], state["attempt"])
    desk = StepDesk(context, key, tried(state, context), left_of(state))
    transcript = [Exchange(**said) for said in state["transcript"]]
    may_ask = state["depth"] < context.limits.depth
    shown: str | None = None
    try:
        with context.recorded_client.spans.step(key, overseer.name):
            step = await seated(overseer, desk).act(state["question"], transcript, may_ask)
            if isinstance(step, Defer):
                form = dict(step.form) | _failed(state, context)
                # Who is asked again is to say it again, and not to be quoted.
                again = state["retries"] // AGAIN
                shown = digest_of(form | ({"asked_again": again} if again else {}))
                said = context.recorded_client.human_step(key, shown)
                if said is None:
                    await _deferred(context, key, form)
                    said = interrupt({"path": state["path"], "form": form})
                    if "proposal" in form:
                        await _reviewed(context, key, form, said)
                step = step_from_json(approved(said, form))
            step = await context.recorded_client.step(
                key, overseer.name, validate_step(step), shown
            )
    except GraphBubbleUp:
        raise
    except EndpointError as failure:
        return Taken(None, desk.spent, str(failure))
    except RefluxError:
        raise
    except Exception as failure:  # noqa: BLE001 - H is the user's code: its failures are values
        reason = f"the overseer failed: {type(failure).__name__}: {failure}"
        return Taken(None, desk.spent, reason)
    context.emit({"event": "step", "path": state["path"], "step": step_to_json(step)})
    return Taken(step, desk.spent)


def _failed(state: AmplifyState, context: AmplifyContext) -> dict[str, Any]:
    """What a person is shown of the attempts before, where checks led to the person."""
    if not context.checks.by_human(state["attempt"]):
        return {}
    return {"failed": state["proposals"], "passed": state.get("passed", [])}


def overseer_of(state: AmplifyState, context: AmplifyContext) -> AnyOverseer:
    """H of this attempt."""
    return overseer_at(context, state["attempt"])


HUMAN = HumanOverseer()


def overseer_at(context: AmplifyContext, attempt: int) -> AnyOverseer:
    """H of an attempt, by the policy for failed checks."""
    if context.checks.by_human(attempt):
        return HUMAN
    return context.overseers[context.checks.way(attempt) % len(context.overseers)]


def approved(said: Mapping[str, Any], form: Mapping[str, Any]) -> Mapping[str, Any]:
    """A person's step: the proposal of the form where it is approved as it stands."""
    return form["proposal"] if said.get("kind") == "approve" else said


def digest_of(form: Mapping[str, Any]) -> str:
    """Hash of what a person is shown (hex, 32)."""
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:32]


async def _deferred(context: AmplifyContext, key: CallKey, form: Mapping[str, Any]) -> None:
    """What waits for a person is on the record, for the review queue: until the step is taken."""
    detail = {"step": key.step, "attempt": key.attempt, "form": form}
    place = f"{key.step}.{key.attempt}"
    store = context.recorded_client.store
    await store.add_judgement(key.question, key.path, "deferred", None, detail, key=place)


async def _reviewed(
    context: AmplifyContext, key: CallKey, form: Mapping[str, Any], said: Mapping[str, Any]
) -> None:
    """What a person made of a proposal is a judgement of its own, comment and all."""
    detail = {"proposal": form["proposal"], "reply": said, "comment": said.get("comment", "")}
    await context.recorded_client.store.add_judgement(
        key.question,
        key.path,
        "review",
        said.get("kind") == "approve",
        detail,
        author="human",
        key=f"{key.step}.{key.attempt}",
    )


def tried(state: AmplifyState, context: AmplifyContext) -> int:
    """A number of its own for every way of retries that leads here, so that none draws the votes
    of another; see `tries`."""
    return tries(state["retries"], state["attempt"], state["depth"], context.limits)
