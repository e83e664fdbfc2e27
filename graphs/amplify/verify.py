"""The check of an answer: first the free rules, then the verifiers in order, then agreement with
earlier attempts where several must agree."""

# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from langgraph.runtime import Runtime

from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.types import Exchange
from reflux.agents.verifiers import Verdict, as_verdict, verdict_of
from reflux.graphs.amplify.context import AmplifyContext, tries
from reflux.graphs.amplify.flow import read_labels, transcript_of
from reflux.graphs.amplify.model_calls import ModelCalls
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    AmplifyState,
    Spent,
    Status,
    accepted_status,
    best_proposal,
    fresh_state,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import listening, retry_index, step_key
from reflux.graphs.amplify.weighing import Candidate, Choice, Weighing, agree

NOT_DIVIDED = "the overseer does not divide it"
"""Why an attempt gives no candidate; the step's own note says more."""
UNCONFIRMED = "unconfirmed"
"""The rule that an answer breaks on which too few attempts agree."""
UNEXAMINED = "unexamined"
"""The rule that an answer breaks whose verifier's endpoint failed."""


async def judged(
    context: AmplifyContext,
    calls: ModelCalls,
    question: str,
    answer: str,
    transcript: Sequence[Exchange],
) -> tuple[Verdict, Spent]:
    """The verdict of rules and verifiers on an answer, and its cost.

    A verifier that cannot be asked, or raises, refuses the answer.
    """
    verdict = verdict_of(context.checker, question, answer)
    for verifier in context.verifiers:
        if not verdict.ok:
            break
        try:
            result = await verifier.verify(calls, question, answer, transcript)
            untested, verdict = verdict.reason, as_verdict(verifier, result)
            reasons = "; ".join(filter(None, (untested, verdict.reason)))
            verdict = replace(verdict, reason=reasons)
        except EndpointError as error:
            verdict = Verdict(False, UNEXAMINED, str(error))
        except RefluxError:
            raise
        except Exception as failure:  # noqa: BLE001 - a verifier is user code
            rule = f"{type(verifier).__name__} raised {type(failure).__name__}"
            verdict = Verdict(False, rule, str(failure))
    return verdict, calls.spent if context.verifiers else NOTHING_SPENT


async def check(state: AmplifyState, runtime: Runtime[AmplifyContext]) -> dict[str, Any]:
    """Test the proposal; a failure leads to another attempt while attempts and budget last."""
    if state["outcome"] is not None:
        return {}  # An endpoint failure interrupted a chain.
    context = listening(runtime).at(state["path"])
    proposal, passed, spent = state["proposal"], state["passed"], state["spent"]
    by_human, verdict = context.checks.by_human(state["attempt"]), Verdict(False, "no_answer")
    status: Status
    if proposal is not None:
        key, number = step_key(state), retry_index(state, context)
        if by_human:
            verdict = Verdict(True)
        else:
            labels = read_labels(state, context)
            left = left_of(state)
            calls = ModelCalls(context, key, number, left, "overseer.ask.check", labels=labels)
            transcript = transcript_of(state, context.policy)
            verdict, cost = await judged(context, calls, state["question"], proposal, transcript)
            spent = plus(spent, cost)
        if has_check := by_human or context.has_check:
            detail = {"answer": proposal, "rule": "" if verdict.ok else verdict.rule}
            detail |= {"reason": verdict.reason} if verdict.reason else {}
            attempt = tries(state["retries"], state["attempt"], state["depth"], context.limits)
            await context.recorded_client.store.add_judgement(
                key.question, key.path, "check", verdict.ok, detail, key=str(attempt)
            )
        weighs = context.weighs(state["depth"]) and context.tests_form_only and not by_human
        weighs = weighs and not state["weighed"].get("cascade", {}).get("sure", False)
        if verdict.ok and weighs:
            means, cost = await _meaning(state, context, proposal, spent)
            candidate = Candidate(
                answer=proposal,
                divided=state["attempt"] > 0,
                truncated=state["truncated"],
                means=means,
            )
            return _weigh({**state, "spent": plus(spent, cost)}, context, candidate)
        if verdict.ok and (by_human or context.checks.confirmed(passed, proposal)):
            status = accepted_status(has_check=has_check, truncated=state["truncated"])
            ended = {"answer": proposal, "status": status, "error": None, "spent": spent}
            return {"outcome": ended}
        if verdict.ok:
            passed, verdict = [*passed, proposal], Verdict(True, UNCONFIRMED)
    if state["candidates"]:
        return _weigh({**state, "spent": spent}, context, None)
    failed = [] if proposal is None or verdict.ok else [proposal]
    proposals = state["proposals"] + failed
    lacking, rule = context.spend_limit.lacks, verdict.rule
    if left_of({**state, "spent": spent}).empty:
        lacking = "calls" if spent["calls"] >= state["calls"] else "tokens"
    no_room = proposal is None and state["truncated"]  # Another attempt has no more.
    if lacking or no_room or state["attempt"] + 1 >= context.limits.attempts:
        best = best_proposal(passed or proposals)
        refused = best is not None and rule != UNEXAMINED  # An outage says nothing of an answer.
        status = "over_budget" if lacking else "rejected" if refused else "failed"
        status = "truncated" if no_room and not lacking else status
        short = f"no {lacking} left" if lacking and proposal is None else None
        failure = f"the check {rule!r} failed" + (f": {verdict.reason}" if verdict.reason else "")
        if rule == UNEXAMINED:
            failure = f"the answer could not be verified: {verdict.reason}"
        error = state["error"] or short or failure
        return {"outcome": {"answer": best, "status": status, "error": error, "spent": spent}}
    context.emit({"event": "retry", "path": state["path"], "rule": rule, "error": state["error"]})
    return {
        **fresh_state(state),
        "attempt": state["attempt"] + 1,
        "proposals": proposals,
        "passed": passed,
        "spent": spent,
    }


async def _meaning(
    state: AmplifyState, context: AmplifyContext, proposal: str, spent: Spent
) -> tuple[str, Spent]:
    """(the first candidate's answer that says the same, else the proposal itself, cost): where
    words alone do not tell, `context.same` does."""
    earlier = list(dict.fromkeys(each["answer"] for each in state["candidates"]))
    if context.same is None or any(agree(other, proposal) for other in earlier):
        return proposal, NOTHING_SPENT
    left = left_of({**state, "spent": spent})
    number = retry_index(state, context)
    labels = read_labels(state, context)
    calls = ModelCalls(context, step_key(state), number, left, "overseer.ask.same", labels=labels)
    try:
        for other in earlier:
            if await context.same.same(calls, state["question"], other, proposal):
                return other, calls.spent
    except EndpointError:  # Not known to be the same.
        pass
    return proposal, calls.spent


def _weigh(
    state: AmplifyState, context: AmplifyContext, candidate: Candidate | None
) -> dict[str, Any]:
    """Add a candidate, then end the question or have it divided another way."""
    weighing, attempt = cast(Weighing, context.weighing), state["attempt"]
    candidates, spent = state["candidates"], state["spent"]
    candidates = [*candidates, candidate] if candidate is not None else candidates
    # An overseer that does not divide, or fails, is not asked again.
    divides = attempt == 0 or candidate is not None
    exhausted = left_of(state).empty or context.spend_limit.lacks is not None
    left = 0 if exhausted or not divides else max(0, weighing.decompositions - attempt)
    choice = cast(Choice, weighing.choose(state["question"], candidates, left))
    if choice.settled:
        chosen = choice.candidate
        status = accepted_status(has_check=context.has_check, truncated=chosen["truncated"])
        answer = chosen["answer"]
        ended = {"answer": answer, "status": status, "error": None, "spent": spent}
        failure = None if state["error"] == NOT_DIVIDED else state["error"]
        note = "; ".join(filter(None, (choice.detail["note"], failure)))
        weighed = state["weighed"] | choice.detail | {"note": note}
        return {"outcome": ended, "candidates": candidates, "weighed": weighed}
    so_far = choice.detail["candidates"]
    context.emit({"event": "weighed", "path": state["path"], "candidates": so_far})
    again = {"attempt": attempt + 1, "candidates": candidates, "spent": spent}
    return {**fresh_state(state), **again}
