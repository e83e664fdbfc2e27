"""All experts on one question, side by side, and one answer of theirs; see
`reflux.graphs.amplify.experts`.

A question that is answered directly: one call, or a vote where the first call is in doubt.

One function call inside `subtask`; no graph runs for a leaf.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion
from reflux.agents.verifiers.verifier import Equivalence
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.experts import Expert, Said, disagreement
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
from reflux.graphs.amplify.state import NOTHING_SPENT, Outcome, Spent, Status, failed_outcome, plus
from reflux.graphs.amplify.steps import ModelCalls
from reflux.graphs.voting.voting import Vote, next_votes, tally, winner


async def answer_by_panel(
    context: AmplifyContext, place: NodeRef, given: Budget, experts: tuple[Expert, ...]
) -> Outcome:
    """Ask every expert once and combine what they say.

    Each has a share of `given`, and the combiner another. An expert that fails leaves the others
    standing; nobody's answer is lost: all are in the judgement `panel`, with their disagreement.
    """
    number = place.retries * context.votes.stopping.max_votes
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
        if last.empty or context.spend_limit.lacks:
            raise EndpointError("nothing is left for the experts' consensus: raise limits.calls")
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, last.tokens),
            seed=context.seed + number,
        )
        model = request.model or context.model
        request = replace(request, model=model, sampling=sampling, vote=number)
        key = place.key("consensus", number)
        reply = await context.recorded_client.ask(key, request)
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
    context: AmplifyContext, place: NodeRef, number: int, share: Budget, expert: Expert
) -> Reply | str:
    """What an expert replies, or why it does not."""
    if share.empty or context.spend_limit.lacks:
        return "over budget"
    try:
        return await sample_answer(context, place, number, share, expert)
    except EndpointError as failure:
        return str(failure)


def _said(
    context: AmplifyContext, place: NodeRef, number: int, expert: Expert, reply: Reply
) -> Said:
    vote = vote_of(context, place.question, number, reply.completion)
    return Said(expert, vote.text, vote.ok)


async def _record(
    context: AmplifyContext,
    place: NodeRef,
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
    await record_answer(context, place, outcome, more, ("panel", "leaf"))


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
    """Have one question answered without H: by a copy of X, an expert, all of them, or a tool.

    `calls` and `tokens` are the most it may spend; `to` is as in `SubQuestion`.
    """
    place = NodeRef(question, question_id, path, step, retries)
    if to.startswith("tool:"):
        return await answer_by_tool(context, place, to.removeprefix("tool:"))
    given = Budget(calls, tokens)
    if to.split(":")[0] == "experts" or (not to and context.everyone):
        named = to.partition(":")[2].split(",") if ":" in to else None
        panel = [e for e in context.experts if named is None or e.name in named]
        if not panel or (named and len(panel) < len(named)):
            return await _nobody(context, place, f"H asked {to!r}; there is {_known(context)}")
        return await answer_by_panel(context, place, given, tuple(panel))
    if not to:
        return await answer_by_votes(context, place, given)
    expert = next((e for e in context.experts if f"expert:{e.name}" == to), None)
    if expert is None:
        reason = f"H asked {to!r}, whom nobody knows; there is {_known(context)}"
        return await _nobody(context, place, reason)
    return await answer_by_votes(context, place, given, expert)


async def _nobody(context: AmplifyContext, place: NodeRef, reason: str) -> Outcome:
    """A question to somebody who is not there: it has ended, and is recorded so."""
    outcome = failed_outcome(reason)
    await record_answer(context, place, outcome, {"votes": 0})
    return outcome


def _known(context: AmplifyContext) -> str:
    return ", ".join(f"expert:{expert.name}" for expert in context.experts) or "no expert"


async def answer_by_votes(
    context: AmplifyContext, place: NodeRef, given: Budget, expert: Expert = PLAIN
) -> Outcome:
    """Ask copies, and ask again while the rule of the votes leaves doubt.

    The first vote is greedy unless this is a retry; every other is sampled with a seed of its own.
    Votes come in waves, each the fewest that could decide.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    compared = 0
    first = place.retries * context.votes.stopping.max_votes
    while more := next_votes(votes, context.votes):
        left = given.minus(spent["calls"], spent["tokens"])
        lacking = context.spend_limit.lacks
        if left.empty or lacking:
            status, error = "over_budget", lacking and f"no {lacking} left"
            break
        shares = left.split(min(more, left.calls, left.tokens))
        numbers = range(first + len(votes), first + len(votes) + len(shares))
        asked = [
            sample_answer(context, place, number, share, expert)
            for number, share in zip(numbers, shares, strict=True)
        ]
        replies, failure = await run_concurrently(asked)
        spent = plus(spent, *(reply.spent for reply in replies.values()))
        new = [
            vote_of(context, place.question, numbers[at], reply.completion)
            for at, reply in replies.items()
        ]
        if context.same is not None and failure is None:
            left = given.minus(spent["calls"], spent["tokens"])
            calls = ModelCalls(
                context,
                place.key("same"),
                place.retries,
                left,
                role="same",
                calls_before=compared,
            )
            new, failure = await one_text_each(context.same, calls, place.question, votes, new)
            compared = calls.call_count
            spent = plus(spent, calls.spent)
        votes += new
        if failure is not None:
            status, error = "failed", str(failure)
            break
    chosen = winner(votes)
    answer = chosen.text if chosen else None
    if status is None:
        status = "ok" if chosen and chosen.ok else "rejected"
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    counted: dict[str, Any] = {
        "votes": len(votes),
        "refused": sum(not vote.ok for vote in votes),
        "tally": tally(votes),
    }
    if flags := {vote.flag for vote in votes if vote.flag}:
        counted["flags"] = {name: sum(v.flag == name for v in votes) for name in sorted(flags)}
    await record_answer(context, place, outcome, counted)
    return outcome


async def one_text_each(
    same: Equivalence, calls: ModelCalls, question: str, known: Sequence[Vote], new: Sequence[Vote]
) -> tuple[list[Vote], EndpointError | None]:
    """New votes, those for an answer that was given before under the text that it has already;
    what is known is not compared again. With the failure that ended the comparing, if one did."""
    texts = list(dict.fromkeys(vote.text for vote in known if vote.ok))
    merged: list[Vote] = []
    for number, vote in enumerate(new):
        text = vote.text
        if vote.ok and text not in texts:
            for other in texts:
                try:
                    if await same.same(calls, question, other, text):
                        text = other
                        break
                except EndpointError as failure:
                    return [*merged, *new[number:]], failure
            else:
                texts.append(text)
        merged.append(replace(vote, text=text))
    return merged, None
