"""The amplification graph as plain recursion: the oracle that tests compare the graph with.

No LangGraph, no parallel branches, no interrupts; the same calls, answers and budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from reflux.agents.budget import Budget
from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.prompts import is_unicode
from reflux.agents.types import Answer, Ask, Chain, Exchange, SubQuestion
from reflux.graphs.amplify.chain import walk_chain
from reflux.graphs.amplify.context import AmplifyContext, tries
from reflux.graphs.amplify.direct_answer import NodeRef, answer_directly
from reflux.graphs.amplify.model_calls import ModelCalls
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
from reflux.graphs.amplify.steps import StepContext, overseer_at
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
    for number in range(max(1, limits.attempts)):
        left = budget.minus(spent["calls"], spent["tokens"])
        retry_index = tries(retries, number, depth, limits)
        node = NodeRef(question, question_id, path, 0, retry_index)
        attempt = await _attempt(context, node, depth, ancestors, left, number)
        spent, unexamined = plus(spent, attempt.spent), False
        if attempt.direct is not None:  # A direct answer below the root is not tried again.
            return {**attempt.direct, "spent": spent}
        proposal = attempt.proposal
        if proposal is not None:
            key = CallKey(question_id, path, "overseer", attempt.steps, number)
            left = budget.minus(spent["calls"], spent["tokens"])
            calls = ModelCalls(context, key, retry_index, left, "overseer.ask.check")
            verdict, cost = await judged(context, calls, question, proposal, attempt.transcript)
            spent = plus(spent, cost)
            if verdict.ok and context.checks.confirmed(passed, proposal):
                status = accepted_status(has_check=context.has_check, truncated=attempt.truncated)
                return {"answer": proposal, "status": status, "error": None, "spent": spent}
            (passed if verdict.ok else proposals).append(proposal)
            unexamined = verdict.rule == UNEXAMINED
        if spent["calls"] >= budget.calls or spent["tokens"] >= budget.tokens:
            status = "over_budget"
            break
        if proposal is None and attempt.truncated:
            status = "truncated"
            break
        status = "rejected" if (passed or proposals) and not unexamined else "failed"
    best = best_proposal(passed or proposals)
    return {"answer": best, "status": status, "error": status, "spent": spent}


@dataclass
class _Attempt:
    """How one attempt ended."""

    proposal: str | None = None
    spent: Spent = field(default_factory=lambda: NOTHING_SPENT)
    direct: Outcome | None = None
    """The outcome of a direct answer below the root, or of a chain that an endpoint ended."""
    transcript: list[Exchange] = field(default_factory=list[Exchange])
    steps: int = 0
    truncated: bool = False
    """The token limit cut the proposal."""


async def _attempt(
    context: AmplifyContext,
    node: NodeRef,
    depth: int,
    ancestors: Sequence[str],
    budget: Budget,
    number: int,
) -> _Attempt:
    """Attempt `number` at a question; `node` holds its retry index."""
    question, path = node.question, node.path
    overseer = overseer_at(context, number)
    may_ask = depth < context.limits.depth
    result = _Attempt()

    def left() -> Budget:
        return budget.minus(result.spent["calls"], result.spent["tokens"])

    for step_number in range(context.limits.steps):
        first_below_root = path != "" and number == 0 and step_number == 0
        step_context = StepContext(
            context,
            CallKey(node.question_id, path, "overseer", step_number, number),
            node.retries,
            left(),
            "overseer.ask",
            question=question,
            transcript=result.transcript,
            may_ask=may_ask,
        )
        result.steps = step_number
        try:
            step = await overseer.act(step_context)
        except Exception:
            step = None
        result.spent = plus(result.spent, step_context.spent)
        if step is None:
            if first_below_root:
                failure = failed_outcome("the overseer failed")
                result.direct = {**failure, "spent": result.spent}
            return result
        result.steps += 1
        if isinstance(step, Answer):
            result.proposal = context.normalise(step.text)
            if first_below_root:
                result.direct = {
                    "answer": result.proposal,
                    "status": "unchecked",
                    "error": None,
                    "spent": result.spent,
                }
            return result
        if isinstance(step, Chain) and may_ask:
            chain_node = replace(node, step=step_number + 1)
            chain, interrupted = await walk_chain(context, chain_node, overseer, step, left())
            result.spent = plus(result.spent, chain["spent"])
            if is_accepted(chain["status"]):
                result.proposal = chain["answer"]
            if interrupted:
                result.direct = {**chain, "spent": result.spent}
            return result
        batch = step.subquestions if isinstance(step, Ask) else ()
        if not batch or not may_ask:
            step_node = replace(node, step=0 if first_below_root else step_number)
            reply = await answer_directly(context, step_node, left())
            result.spent = plus(result.spent, reply["spent"])
            result.proposal, result.truncated = reply["answer"], reply["status"] == "truncated"
            if first_below_root:
                result.direct = {**reply, "spent": result.spent}
            return result
        if len(batch) > context.limits.fanout or _has_forward_needs(batch):
            return result
        outcomes: list[Outcome] = []
        reserve = reserve_of(overseer)
        shares = left().minus(reserve.calls, reserve.tokens).split(len(batch))
        for index, (sub, share) in enumerate(zip(batch, shares, strict=True)):
            text = sub.filled({need: outcomes[need]["answer"] or "" for need in sub.needs})
            if any(outcomes[need]["answer"] is None for need in sub.needs):
                outcome = failed_outcome("needs a sub-question that failed")
            else:
                outcome = await amplify_reference(
                    context,
                    text,
                    node.question_id,
                    f"{path}/{number}.{step_number}.{index}",
                    depth + 1,
                    [*ancestors, question],
                    share,
                    node.retries,
                )
            outcomes.append(outcome)
            result.transcript.append(Exchange(text, outcome["answer"], exchange_error(outcome)))
        result.spent = plus(result.spent, *(outcome["spent"] for outcome in outcomes))
    return result


def _has_forward_needs(batch: Sequence[SubQuestion]) -> bool:
    return any(not 0 <= need < index for index, sub in enumerate(batch) for need in sub.needs)
