"""A question answered without the overseer: by a vote of copies, an expert, a panel, or a tool.

A vote is self-consistency (Wang et al. 2022) with a stopping rule: batches of copies until the
rule decides. A panel asks every expert once, side by side, and combines their answers. Each is one
function call inside `subtask`; no graph runs for a direct answer.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion
from reflux.agents.verifiers import Equivalence
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.experts import Expert, ExpertAnswer, disagreement
from reflux.graphs.amplify.sampling import (
    PLAIN,
    NodeRef,
    Reply,
    answer_by_tool,
    record_answer,
    run_concurrently,
    sample_answer,
    vote_of,
)
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    Outcome,
    Spent,
    Status,
    accepted_status,
    failed_outcome,
    plus,
)
from reflux.graphs.amplify.steps import ModelCalls
from reflux.graphs.voting.voting import Vote, is_truncated, next_votes, tally, winner


async def answer_directly(
    context: AmplifyContext,
    *,
    question: str,
    question_id: str,
    path: str,
    calls: int,
    tokens: int,
    retries: int = 0,
    step: int = 0,
    to: str = "",
) -> Outcome:
    """Answer one question without the overseer: by copies, an expert, a panel, or a tool.

    `calls` and `tokens` limit what it may spend; `to` is as in `SubQuestion`.
    """
    node = NodeRef(question, question_id, path, step, retries)
    if to.startswith("tool:"):
        return await answer_by_tool(context, node, to.removeprefix("tool:"))
    budget = Budget(calls, tokens)
    if to.split(":")[0] == "experts" or (not to and context.everyone):
        names = to.partition(":")[2].split(",") if ":" in to else None
        panel = [e for e in context.experts if names is None or e.name in names]
        if not panel or (names and len(panel) < len(names)):
            return await _unknown_expert(context, node, to)
        return await answer_by_panel(context, node, budget, tuple(panel))
    if not to:
        return await answer_by_votes(context, node, budget)
    expert = next((e for e in context.experts if f"expert:{e.name}" == to), None)
    if expert is None:
        return await _unknown_expert(context, node, to)
    return await answer_by_votes(context, node, budget, expert)


async def _unknown_expert(context: AmplifyContext, node: NodeRef, to: str) -> Outcome:
    names = ", ".join(f"expert:{expert.name}" for expert in context.experts) or "no expert"
    outcome = failed_outcome(f"the overseer asked {to!r}, which does not exist; there is {names}")
    await record_answer(context, node, outcome, {"votes": 0})
    return outcome


async def answer_by_votes(
    context: AmplifyContext, node: NodeRef, budget: Budget, expert: Expert = PLAIN
) -> Outcome:
    """Ask copies in batches until the stopping rule decides.

    The first vote is greedy unless this is a retry; every other one is sampled with its own seed.
    A batch holds the fewest votes that could decide.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    compared = 0
    first = node.retries * context.votes.stopping.max_votes
    while size := next_votes(votes, context.votes):
        left = budget.minus(spent["calls"], spent["tokens"])
        lacking = context.spend_limit.lacks
        if left.empty or lacking:
            status, error = "over_budget", lacking and f"no {lacking} left"
            break
        shares = left.split(min(size, left.calls, left.tokens))
        numbers = range(first + len(votes), first + len(votes) + len(shares))
        replies, failure = await run_concurrently(
            [
                sample_answer(context, node, number, share, expert)
                for number, share in zip(numbers, shares, strict=True)
            ]
        )
        spent = plus(spent, *(reply.spent for reply in replies.values()))
        batch = [
            vote_of(context, node.question, numbers[index], reply.completion)
            for index, reply in replies.items()
        ]
        if context.same is not None and failure is None:
            left = budget.minus(spent["calls"], spent["tokens"])
            calls = ModelCalls(
                context,
                node.key("same"),
                node.retries,
                left,
                role="same",
                calls_before=compared,
            )
            batch, failure = await merge_equivalent(
                context.same, calls, node.question, votes, batch
            )
            compared = calls.call_count
            spent = plus(spent, calls.spent)
        votes += batch
        if failure is not None:
            status, error = "failed", str(failure)
            break
    chosen = winner(votes)
    if status is None:
        status = "rejected"
        if chosen is not None and chosen.ok:
            cut = is_truncated(votes, chosen.text)
            status = accepted_status(has_check=context.has_rules, truncated=cut)
    answer = chosen.text if chosen else None
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    detail: dict[str, Any] = {
        "votes": len(votes),
        "refused": sum(not vote.ok for vote in votes),
        "tally": tally(votes),
    }
    if flags := {vote.flag for vote in votes if vote.flag}:
        detail["flags"] = {name: sum(v.flag == name for v in votes) for name in sorted(flags)}
    await record_answer(context, node, outcome, detail)
    return outcome


async def merge_equivalent(
    same: Equivalence,
    calls: ModelCalls,
    question: str,
    known: Sequence[Vote],
    batch: Sequence[Vote],
) -> tuple[list[Vote], EndpointError | None]:
    """The batch with one text for each answer: the text that an equivalent earlier vote has.

    Known votes are not compared again. The error, if any, ended the comparison early.
    """
    texts = list(dict.fromkeys(vote.text for vote in known if vote.ok))
    merged: list[Vote] = []
    for number, vote in enumerate(batch):
        text = vote.text
        if vote.ok and text not in texts:
            for other in texts:
                try:
                    if await same.same(calls, question, other, text):
                        text = other
                        break
                except EndpointError as failure:
                    return [*merged, *batch[number:]], failure
            else:
                texts.append(text)
        merged.append(replace(vote, text=text))
    return merged, None


async def answer_by_panel(
    context: AmplifyContext, node: NodeRef, budget: Budget, experts: tuple[Expert, ...]
) -> Outcome:
    """Ask every expert once and combine their answers.

    The experts and the combiner share `budget` equally. A failed expert does not stop the others;
    the judgement `panel` records every answer and their disagreement.
    """
    number = node.retries * context.votes.stopping.max_votes
    *shares, left = budget.split(len(experts) + 1)
    replies = await asyncio.gather(
        *(
            _ask_expert(context, node, number, share, expert)
            for share, expert in zip(shares, experts, strict=True)
        )
    )
    spent: Spent = plus(*(r.spent for r in replies if isinstance(r, Reply)))
    failures = {e.name: r for e, r in zip(experts, replies, strict=True) if isinstance(r, str)}
    votes = [
        (expert, vote_of(context, node.question, number, reply.completion))
        for expert, reply in zip(experts, replies, strict=True)
        if isinstance(reply, Reply)
    ]
    answers = [ExpertAnswer(expert, vote.text, vote.ok) for expert, vote in votes]
    cut = False

    async def ask(request: ChatRequest) -> Completion:
        nonlocal spent, left, cut
        if left.empty or context.spend_limit.lacks:
            raise EndpointError("nothing is left for the experts' consensus: raise limits.calls")
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, left.tokens),
            seed=context.seed + number,
        )
        model = request.model or context.model
        request = replace(request, model=model, sampling=sampling, vote=number)
        key = node.key("consensus", number)
        reply = await context.recorded_client.ask(key, request)
        context.heard(key, model, reply)
        left = left.minus(1, reply.tokens)
        spent = plus(spent, {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens})
        cut = reply.truncated
        return reply

    answer: str | None = None
    error = "; ".join(f"{name}: {why}" for name, why in failures.items()) or None
    try:
        combined = await context.combiner.combine(node.question, answers, ask)
        answer = None if combined is None else context.normalise(combined)
    except EndpointError as failure:
        error = str(failure)
    status: Status = "rejected" if answers else "failed"
    if answer is not None:
        cut = cut or is_truncated([vote for _, vote in votes], answer)
        status = accepted_status(has_check=context.has_rules, truncated=cut)
    elif answers:
        answer = answers[0].text
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    detail = {
        "answers": {each.expert.name: each.text for each in answers},
        "refused": [each.expert.name for each in answers if not each.ok],
        "failed": failures,
        "disagreement": round(disagreement(answers), 4),
        "votes": len(answers),
    }
    await record_answer(context, node, outcome, detail, ("panel", "direct"))
    return outcome


async def _ask_expert(
    context: AmplifyContext, node: NodeRef, number: int, share: Budget, expert: Expert
) -> Reply | str:
    """An expert's reply, or why there is none."""
    if share.empty or context.spend_limit.lacks:
        return "over budget"
    try:
        return await sample_answer(context, node, number, share, expert)
    except EndpointError as failure:
        return str(failure)
