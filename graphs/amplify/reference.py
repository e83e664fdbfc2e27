"""The amplification graph as plain recursion: the oracle that tests compare the graph with.

No LangGraph, no parallel branches, no interrupts; the same calls, answers and budgets.
"""

from collections.abc import Sequence

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.prompts import is_unicode
from reflux.agents.types import Answer, Ask, Chain, Exchange, SubQuestion
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
from reflux.graphs.amplify.steps import ModelCalls, StepContext, overseer_at
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
    if not question.strip() or len(question) > limits.question_chars or not is_unicode(question):
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
            retry_index = tries(retries, attempt, depth, limits)
            calls = ModelCalls(context, key, retry_index, left, role="overseer.ask.check")
            verdict, used = await judged(context, calls, question, proposal, transcript)
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
    retry_index = tries(retries, attempt, depth, context.limits)
    for step_number in range(context.limits.steps):
        first_below_root = path != "" and attempt == 0 and step_number == 0
        left = budget.minus(spent["calls"], spent["tokens"])
        key = CallKey(question_id, path, "overseer", step_number, attempt)
        step_context = StepContext(context, key, retry_index, left, question, transcript, may_ask)
        try:
            step = await overseer.act(step_context)
        except Exception:  # noqa: BLE001 - an overseer is the user's code
            spent = plus(spent, step_context.spent)
            failure: Outcome = {**failed_outcome("the overseer failed"), "spent": spent}
            return (
                None,
                spent,
                failure if first_below_root else None,
                transcript,
                step_number,
                False,
            )
        spent = plus(spent, step_context.spent)
        if isinstance(step, Answer):
            text = context.normalise(step.text)
            primitive: Outcome = {
                "answer": text, "status": "unchecked", "error": None, "spent": spent
            }  # fmt: skip
            direct = primitive if first_below_root else None
            return text, spent, direct, transcript, step_number + 1, False
        if isinstance(step, Chain) and may_ask:
            node = NodeRef(question, question_id, path, step_number + 1, retry_index)
            left = budget.minus(spent["calls"], spent["tokens"])
            chain = await walk_chain(context, node, overseer, step, left)
            spent = plus(spent, chain.outcome["spent"])
            answer = chain.outcome["answer"] if is_accepted(chain.outcome["status"]) else None
            ended: Outcome | None = {**chain.outcome, "spent": spent} if chain.interrupted else None
            return answer, spent, ended, transcript, step_number + 1, False
        batch = step.subquestions if isinstance(step, Ask) else ()
        left = budget.minus(spent["calls"], spent["tokens"])
        if not batch or not may_ask:
            reply = await answer_directly(
                context, question=question, question_id=question_id, path=path,
                calls=left.calls, tokens=left.tokens, retries=retry_index,
                step=0 if first_below_root else step_number,
            )  # fmt: skip
            spent = plus(spent, reply["spent"])
            whole: Outcome = {**reply, "spent": spent}
            direct = whole if first_below_root else None
            truncated = reply["status"] == "truncated"
            return reply["answer"], spent, direct, transcript, step_number + 1, truncated
        if len(batch) > context.limits.fanout or _has_forward_needs(batch):
            return None, spent, None, transcript, step_number + 1, False
        outcomes: list[Outcome] = []
        reserve = reserve_of(overseer)
        shares = left.minus(reserve.calls, reserve.tokens).split(len(batch))
        for index, (sub, share) in enumerate(zip(batch, shares, strict=True)):
            text = sub.filled({need: outcomes[need]["answer"] or "" for need in sub.needs})
            if any(outcomes[need]["answer"] is None for need in sub.needs):
                outcome = failed_outcome("needs a sub-question that failed")
            else:
                outcome = await amplify_reference(
                    context, text, question_id, f"{path}/{attempt}.{step_number}.{index}",
                    depth + 1, [*ancestors, question], share, retry_index,
                )  # fmt: skip
            outcomes.append(outcome)
            transcript.append(Exchange(text, outcome["answer"], exchange_error(outcome)))
        spent = plus(spent, *(o["spent"] for o in outcomes))
    return None, spent, None, transcript, context.limits.steps, False


def _has_forward_needs(batch: Sequence[SubQuestion]) -> bool:
    return any(not 0 <= need < index for index, sub in enumerate(batch) for need in sub.needs)
