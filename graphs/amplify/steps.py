"""One step of the overseer: taken in its context, deferred to a human if the overseer says so, and
recorded before it counts.

A model call's key is its step, the panel member that makes it, and its number among that member's
calls; so a step that is repeated after a restart gets the same replies.
"""

# pyright: reportMissingTypeStubs=false

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.overseers.protocol import Overseer, validate_step
from reflux.agents.overseers.scripted import HumanOverseer
from reflux.agents.policy.policy import joined
from reflux.agents.types import Defer, Exchange, Step, step_from_json, step_to_json
from reflux.graphs.amplify.context import AmplifyContext, silent, tries
from reflux.graphs.amplify.direct_answer import NodeRef
from reflux.graphs.amplify.flow import (
    expanded,
    labels_of,
    shown,
    step_labels,
    transcript_of,
    types_offered,
    view_of,
)
from reflux.graphs.amplify.model_calls import ModelCalls
from reflux.graphs.amplify.state import NOTHING_SPENT, AmplifyState, Spent, left_of, plus
from reflux.graphs.traces.revisions import AGAIN
from reflux.graphs.traces.store import CallKey


@dataclass(eq=False)
class StepContext(ModelCalls):
    """The context of one step of one question, or of one panel member: an `OverseerContext`."""

    question: str = field(kw_only=True)
    transcript: Sequence[Exchange] = field(kw_only=True)
    may_ask: bool = field(kw_only=True)
    attempt: int = field(kw_only=True, default=0)
    asked: Sequence[str] = field(kw_only=True, default=())
    types_for: str = field(kw_only=True, default="")
    """The question with its data, of which a model may have values read under a policy."""
    _members: list["StepContext"] = field(init=False, default_factory=list["StepContext"])

    @property
    def tools(self) -> Mapping[str, str]:
        """What each of the overseer's tools does, by name; under a policy the types, too."""
        tools = {name: tool.spec.description for name, tool in self.amplify.tools.items()}
        return types_offered(self.types_for, self.amplify.policy) | tools

    @property
    def spent(self) -> Spent:
        """What this step has spent, its members included."""
        return plus(self.own_spent, *(member.spent for member in self._members))

    @property
    def seen(self) -> tuple[str, ...]:
        """The labels of all that this step's models have read, its members' included."""
        return joined(self.labels, *(member.labels for member in self._members))

    def members(self, count: int) -> Sequence["StepContext"]:
        """Contexts for `count` overseers that run side by side, each with a share of `budget`."""
        first = len(self._members)
        members = [
            replace(self, limit=share, role=f"{self.role}.{first + index}", call_count=0)
            for index, share in enumerate(self.budget.split(count))
        ]
        self._members += members
        return members


def listening(runtime: Runtime[AmplifyContext]) -> AmplifyContext:
    """The context of a run; its events leave by the graph's stream unless it has a listener."""
    context = runtime.context
    return context if context.emit is not silent else replace(context, emit=runtime.stream_writer)


@dataclass(frozen=True)
class StepResult:
    """A step of the overseer, or why there is none, and what it cost."""

    step: Step | None
    spent: Spent = field(default_factory=lambda: NOTHING_SPENT)
    error: str | None = None
    labels: tuple[str, ...] = ()
    """Under a policy: of what the step says, and what its overseer had seen."""


async def take_step(state: AmplifyState, context: AmplifyContext) -> StepResult:
    """The overseer's next step, or a human's if it defers; recorded. An exception in the
    overseer's code becomes the result's `error`."""
    attempt = decompositions_before(state, context)
    overseer, key = overseer_at(context, attempt), step_key(state)
    policy = view_of(overseer, context.policy)
    step_context = StepContext(
        context,
        key,
        retry_index(state, context),
        left_of(state),
        "overseer.ask",
        labels=step_labels(state, context, overseer),
        question=shown(state["question"], policy),
        transcript=transcript_of(state, policy),
        may_ask=state["depth"] < context.limits.depth,
        attempt=attempt,
        asked=[shown(question, policy) for question in state.get("asked", [])],
        types_for=state["question"],
    )
    form_digest: str | None = None
    try:
        with context.recorded_client.spans.step(key, overseer.name):
            step = await overseer.act(step_context)
            if isinstance(step, Defer):
                form = dict(step.form)
                if context.checks.by_human(state["attempt"]):  # Failed checks led to the human.
                    form |= {"failed": state["proposals"], "passed": state["passed"]}
                # A human who is asked again must reply again: the digest must differ.
                again = state["retries"] // AGAIN
                form_digest = digest_of(form | ({"asked_again": again} if again else {}))
                step = await _human_step(context, key, form, form_digest)
            step = await context.recorded_client.step(
                key, overseer.name, validate_step(step), form_digest
            )
    except GraphBubbleUp:
        raise
    except EndpointError as failure:
        return StepResult(None, step_context.spent, str(failure))
    except RefluxError:
        raise
    except Exception as failure:  # noqa: BLE001 - an overseer is the user's code
        reason = f"the overseer failed: {type(failure).__name__}: {failure}"
        return StepResult(None, step_context.spent, reason)
    context.emit({"event": "step", "path": state["path"], "step": step_to_json(step)})
    if isinstance(step, Defer):
        return StepResult(None, step_context.spent, "a human deferred the question again")
    labels = joined(step_context.seen, labels_of(step, state)) if policy else ()
    return StepResult(expanded(step, state, context, overseer), step_context.spent, labels=labels)


def step_key(state: AmplifyState) -> CallKey:
    """The key of the overseer's step in the log."""
    return CallKey(state["question_id"], state["path"], "overseer", state["step"], state["attempt"])


async def _human_step(
    context: AmplifyContext, key: CallKey, form: Mapping[str, Any], form_digest: str
) -> Step:
    """A human's step: the recorded one, else the reply to an interrupt.

    The deferral and the reply to a proposal are stored as judgements, for the review queue.
    """
    reply = context.recorded_client.human_step(key, form_digest)
    if reply is None:
        store, judgement_key = context.recorded_client.store, f"{key.step}.{key.attempt}"
        detail: dict[str, Any] = {"step": key.step, "attempt": key.attempt, "form": form}
        await store.add_judgement(
            key.question, key.path, "deferred", None, detail, key=judgement_key
        )
        reply = interrupt({"path": key.path, "form": form})
        if "proposal" in form:
            comment = reply.get("comment", "")
            await store.add_judgement(
                key.question,
                key.path,
                "review",
                reply.get("kind") == "approve",
                {"proposal": form["proposal"], "reply": reply, "comment": comment},
                author="human",
                key=judgement_key,
            )
    return step_from_json(approved(reply, form))


HUMAN = HumanOverseer()


def overseer_at(context: AmplifyContext, attempt: int) -> Overseer:
    """The overseer of an attempt, by the policy for failed checks."""
    if context.checks.by_human(attempt):
        return HUMAN
    return context.overseers[context.checks.way(attempt) % len(context.overseers)]


def approved(reply: Mapping[str, Any], form: Mapping[str, Any]) -> Mapping[str, Any]:
    """A human's step: the form's proposal if the reply approves it, else the reply."""
    return form["proposal"] if reply.get("kind") == "approve" else reply


def digest_of(form: Mapping[str, Any]) -> str:
    """Hash of what a human sees (hex, 32)."""
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:32]


def retry_index(state: AmplifyState, context: AmplifyContext) -> int:
    """A number for each sequence of retries that leads here, so that no two of them share seeds
    and votes; see `tries`. The first decomposition beside a direct answer is no retry."""
    attempt = decompositions_before(state, context)
    return tries(state["retries"], attempt, state["depth"], context.limits)


def decompositions_before(state: AmplifyState, context: AmplifyContext) -> int:
    """Attempts before this one, without the direct answer that is weighed."""
    return max(0, state["attempt"] - context.weighs(state["depth"]))


def node_of(state: AmplifyState, context: AmplifyContext) -> NodeRef:
    """A question as a node that is answered directly."""
    number = retry_index(state, context)
    place = (state["question_id"], state["path"], state["step"], number)
    return NodeRef(state["question"], *place, tuple(state.get("labels", ())))
