"""A step of H: taken at its desk, by a person where H defers, and recorded before it counts."""

# pyright: reportMissingTypeStubs=false

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langgraph.errors import GraphBubbleUp
from langgraph.types import interrupt

from agents.errors import EndpointError, RefluxError
from agents.overseer import AnyOverseer, PersonOverseer, seated, sound
from agents.types import Defer, Exchange, Step, step_from_json, step_to_json
from graphs.desk import StepDesk
from graphs.revision import AGAIN
from graphs.state import NOTHING_SPENT, AmplifyContext, AmplifyState, Spent, left_of, tries
from graphs.traces import CallKey


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
        with context.caller.spans.step(key, overseer.name):
            step = await seated(overseer, desk).act(state["question"], transcript, may_ask)
            if isinstance(step, Defer):
                form = dict(step.form) | _failed(state, context)
                # Who is asked again is to say it again, and not to be quoted.
                again = state["retries"] // AGAIN
                shown = digest_of(form | ({"asked_again": again} if again else {}))
                said = context.caller.person_step(key, shown)
                if said is None:
                    await _deferred(context, key, form)
                    said = interrupt({"path": state["path"], "form": form})
                    if "proposal" in form:
                        await _reviewed(context, key, form, said)
                step = step_from_json(approved(said, form))
            step = await context.caller.step(key, overseer.name, sound(step), shown)
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
    if not context.checks.by_person(state["attempt"]):
        return {}
    return {"failed": state["proposals"], "passed": state.get("passed", [])}


def overseer_of(state: AmplifyState, context: AmplifyContext) -> AnyOverseer:
    """H of this attempt."""
    return overseer_at(context, state["attempt"])


PERSON = PersonOverseer()


def overseer_at(context: AmplifyContext, attempt: int) -> AnyOverseer:
    """H of an attempt, by the policy for failed checks."""
    if context.checks.by_person(attempt):
        return PERSON
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
    store = context.caller.store
    await store.add_judgement(key.question, key.path, "deferred", None, detail, key=place)


async def _reviewed(
    context: AmplifyContext, key: CallKey, form: Mapping[str, Any], said: Mapping[str, Any]
) -> None:
    """What a person made of a proposal is a judgement of its own, comment and all."""
    detail = {"proposal": form["proposal"], "reply": said, "comment": said.get("comment", "")}
    await context.caller.store.add_judgement(
        key.question,
        key.path,
        "review",
        said.get("kind") == "approve",
        detail,
        author="person",
        key=f"{key.step}.{key.attempt}",
    )


def tried(state: AmplifyState, context: AmplifyContext) -> int:
    """A number of its own for every way of retries that leads here, so that none draws the votes
    of another; see `tries`."""
    return tries(state["retries"], state["attempt"], state["depth"], context.limits)
