"""All experts on one question, side by side, and one answer of theirs; see `graphs.experts`."""

import asyncio
from dataclasses import replace

from agents.budget import Budget
from agents.errors import EndpointError
from agents.types import ChatRequest, Completion
from graphs.copies import Place, ask_copy, record_leaf, vote_of
from graphs.experts import Expert, Said, disagreement
from graphs.state import AmplifyContext, Outcome, Spent, Status, plus
from graphs.turns import Reply


async def answer_by_panel(
    context: AmplifyContext, place: Place, given: Budget, experts: tuple[Expert, ...]
) -> Outcome:
    """Ask every expert once and combine what they say.

    Each has a share of `given`, and the combiner another. An expert that fails leaves the others
    standing; nobody's answer is lost: all are in the judgement `panel`, with their disagreement.
    """
    number = place.retries * context.votes.stopping.most
    *shares, last = given.split(len(experts) + 1)
    replies = await asyncio.gather(
        *(
            _ask(context, place, number, share, expert)
            for share, expert in zip(shares, experts, strict=True)
        )
    )
    spent: Spent = plus(*(r.spent for r in replies if isinstance(r, Reply)))
    failures = {e.name: r for e, r in zip(experts, replies, strict=True) if isinstance(r, str)}
    said = [
        _said(context, place, number, expert, reply)
        for expert, reply in zip(experts, replies, strict=True)
        if isinstance(reply, Reply)
    ]

    async def ask(request: ChatRequest) -> Completion:
        nonlocal spent, last
        if last.empty or context.purse.lacks:
            raise EndpointError("nothing is left for the experts' consensus: raise limits.calls")
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, last.tokens),
            seed=context.seed + number,
        )
        model = request.model or context.model
        request = replace(request, model=model, sampling=sampling, vote=number)
        key = place.key("consensus", number)
        reply = await context.caller.ask(key, request)
        context.heard(key, model, reply)
        last = last.minus(1, reply.tokens)
        spent = plus(spent, {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens})
        return reply

    answer: str | None = None
    error = "; ".join(f"{name}: {why}" for name, why in failures.items()) or None
    try:
        found = await context.combiner.combine(place.question, said, ask)
        answer = None if found is None else context.normalise(found)
    except EndpointError as failure:
        error = str(failure)
    status: Status = "ok" if answer is not None else "rejected" if said else "failed"
    if answer is None and said:
        answer = said[0].text
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    await _record(context, place, said, failures, outcome)
    return outcome


async def _ask(
    context: AmplifyContext, place: Place, number: int, share: Budget, expert: Expert
) -> Reply | str:
    """What an expert replies, or why it does not."""
    if share.empty or context.purse.lacks:
        return "over budget"
    try:
        return await ask_copy(context, place, number, share, expert)
    except EndpointError as failure:
        return str(failure)


def _said(context: AmplifyContext, place: Place, number: int, expert: Expert, reply: Reply) -> Said:
    vote = vote_of(context, place.question, number, reply.completion)
    return Said(expert, vote.text, vote.ok)


async def _record(
    context: AmplifyContext,
    place: Place,
    said: list[Said],
    failures: dict[str, str],
    outcome: Outcome,
) -> None:
    more = {
        "answers": {one.expert.name: one.text for one in said},
        "refused": [one.expert.name for one in said if not one.ok],
        "failed": failures,
        "disagreement": round(disagreement(said), 4),
        "votes": len(said),
    }
    await record_leaf(context, place, outcome, more, ("panel", "leaf"))
