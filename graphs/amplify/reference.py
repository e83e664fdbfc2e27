"""The amplification graph as plain recursion: the oracle that the tests hold the graph against.

No LangGraph, no parallel branches, no interrupts; the same calls, answers and budgets.
"""

from collections.abc import Sequence

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import reserve_of, seated
from reflux.agents.types import Answer, Chain, Exchange, SubQuestion
from reflux.graphs.amplify.chain import walk_chain
from reflux.graphs.amplify.context import AmplifyContext, tries
from reflux.graphs.amplify.sampling import NodeRef
from reflux.graphs.amplify.self_consistency import answer_directly
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    Outcome,
    Spent,
    Status,
    accepted_status,
    best_proposal,
    exchange_error,
    failed_outcome,
    is_accepted,
    plus,
)
from reflux.graphs.amplify.steps import StepDesk, overseer_at
from reflux.graphs.amplify.verify import UNEXAMINED, judged
from reflux.graphs.traces.store import CallKey


async def amplify_reference(
    context: AmplifyContext,
    question: str,
    question_id: str,
    path: str = "",
    depth: int = 0,
    ancestors: Sequence[str] = (),
    budget: Budget | None = None,
    retries: int = 0,
) -> Outcome:
    """Answer one question as `reflux.graphs.amplify.graph` does, one call after another."""
    limits = context.limits
    budget = budget or Budget(limits.calls, limits.tokens)
    if not question.strip() or len(question) > limits.question_chars or not _is_unicode(question):
        return failed_outcome("the question is empty, too long, or no Unicode")
    if context.canonical(question) in map(context.canonical, ancestors):
        return failed_outcome("CycleError")
    proposals: list[str] = []
    passed: list[str] = []
    spent = NOTHING_SPENT
    status: Status = "failed"
    for attempt in range(max(1, limits.attempts)):
        left = budget.minus(spent["calls"], spent["tokens"])
        proposal, used, direct, transcript, step, truncated = await _attempt(
            context, question, question_id, path, depth, ancestors, left, retries, attempt,
        )  # fmt: skip
        spent, unexamined = plus(spent, used), False
        if direct is not None:  # A direct answer below the root is not tried again.
            return {**direct, "spent": spent}
        if proposal is not None:
            key = CallKey(question_id, path, "overseer", step, attempt)
            left = budget.minus(spent["calls"], spent["tokens"])
            tried = tries(retries, attempt, depth, limits)
            desk = StepDesk(context, key, tried, left, ".check")
            verdict, used = await judged(context, desk, question, proposal, transcript)
            spent = plus(spent, used)
            if verdict.ok and context.checks.confirmed(passed, proposal):
                status = accepted_status(has_check=context.has_check, truncated=truncated)
                return {"answer": proposal, "status": status, "error": None, "spent": spent}
            (passed if verdict.ok else proposals).append(proposal)
            unexamined = verdict.rule == UNEXAMINED
        if spent["calls"] >= budget.calls or spent["tokens"] >= budget.tokens:
            status = "over_budget"
            break
        status = "rejected" if (passed or proposals) and not unexamined else "failed"
    best = best_proposal(passed or proposals)
    return {"answer": best, "status": status, "error": status, "spent": spent}


async def _attempt(
    context: AmplifyContext,
    question: str,
    question_id: str,
    path: str,
    depth: int,
    ancestors: Sequence[str],
    budget: Budget,
    retries: int,
    attempt: int,
) -> tuple[str | None, Spent, Outcome | None, list[Exchange], int, bool]:
    """One attempt: (proposal or None, spent, the outcome of a direct answer below the root,
    transcript, steps taken, whether the token limit cut the proposal)."""
    overseer = overseer_at(context, attempt)
    transcript: list[Exchange] = []
    spent = NOTHING_SPENT
    may_ask = depth < context.limits.depth
    tried = tries(retries, attempt, depth, context.limits)
    for step_number in range(context.limits.steps):
        first_below_root = path != "" and attempt == 0 and step_number == 0
        left = budget.minus(spent["calls"], spent["tokens"])
        key = CallKey(question_id, path, "overseer", step_number, attempt)
        desk = StepDesk(context, key, tried, left)
        try:
            step = await seated(overseer, desk).act(question, transcript, may_ask)
        except Exception:  # noqa: BLE001 - as in the graph, H's failures are values
            spent = plus(spent, desk.spent)
            failure: Outcome = {**failed_outcome("the overseer failed"), "spent": spent}
            return (
                None,
                spent,
                failure if first_below_root else None,
                transcript,
                step_number,
                False,
            )
        spent = plus(spent, desk.spent)
        if isinstance(step, Answer):
            text = context.normalise(step.text)
            primitive: Outcome = {
                "answer": text, "status": "unchecked", "error": None, "spent": spent
            }  # fmt: skip
            direct = primitive if first_below_root else None
            return text, spent, direct, transcript, step_number + 1, False
        if isinstance(step, Chain) and may_ask:
            node = NodeRef(question, question_id, path, step_number + 1, tried)
            left = budget.minus(spent["calls"], spent["tokens"])
            walked = await walk_chain(context, node, overseer, step, left)
            spent = plus(spent, walked.outcome["spent"])
            answer = walked.outcome["answer"] if is_accepted(walked.outcome["status"]) else None
            ended: Outcome | None = (
                {**walked.outcome, "spent": spent} if walked.interrupted else None
            )
            return answer, spent, ended, transcript, step_number + 1, False
        asked: tuple[SubQuestion, ...] = getattr(step, "subquestions", ())
        left = budget.minus(spent["calls"], spent["tokens"])
        if not asked or not may_ask:
            reply = await answer_directly(
                context, question=question, question_id=question_id, path=path,
                calls=left.calls, tokens=left.tokens, retries=tried,
                step=0 if first_below_root else step_number,
            )  # fmt: skip
            spent = plus(spent, reply["spent"])
            whole: Outcome = {**reply, "spent": spent}
            direct = whole if first_below_root else None
            truncated = reply["status"] == "truncated"
            return reply["answer"], spent, direct, transcript, step_number + 1, truncated
        if len(asked) > context.limits.fanout or _needs_later_ones(asked):
            return None, spent, None, transcript, step_number + 1, False
        outcomes: list[Outcome] = []
        kept = reserve_of(overseer)
        for index, share in enumerate(left.minus(kept.calls, kept.tokens).split(len(asked))):
            failed = [n for n in asked[index].needs if outcomes[n]["answer"] is None]
            answers = {n: outcomes[n]["answer"] or "" for n in asked[index].needs}
            text = asked[index].filled(answers)
            outcome = failed_outcome("needs a sub-question that failed") if failed else (
                await amplify_reference(
                    context, text, question_id, f"{path}/{attempt}.{step_number}.{index}",
                    depth + 1, [*ancestors, question], share,
                    tried,
                )
            )  # fmt: skip
            outcomes.append(outcome)
            transcript.append(Exchange(text, outcome["answer"], exchange_error(outcome)))
        spent = plus(spent, *(o["spent"] for o in outcomes))
    return None, spent, None, transcript, context.limits.steps, False


def _needs_later_ones(asked: Sequence[SubQuestion]) -> bool:
    return any(not 0 <= need < index for index, s in enumerate(asked) for need in s.needs)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
