"""A question that is answered directly: one call, or a vote where the first call is in doubt.

One function call inside `subtask`; no graph runs for a leaf.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from agents.budget import Budget
from agents.errors import EndpointError
from agents.types import Completion
from graphs.copies import PLAIN, Place, answer_by_tool, ask_copy, record_leaf
from graphs.experts import Expert
from graphs.panel import answer_by_panel
from graphs.state import (
    NOTHING_SPENT,
    AmplifyContext,
    Outcome,
    Spent,
    Status,
    failed_outcome,
    plus,
)
from graphs.turns import Reply
from graphs.voting import Vote, tally, wave, winner


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
    place = Place(question, question_id, path, step, retries)
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


async def _nobody(context: AmplifyContext, place: Place, reason: str) -> Outcome:
    """A question to somebody who is not there: it has ended, and is recorded so."""
    outcome = failed_outcome(reason)
    await record_leaf(context, place, outcome, {"votes": 0})
    return outcome


def _known(context: AmplifyContext) -> str:
    return ", ".join(f"expert:{expert.name}" for expert in context.experts) or "no expert"


async def answer_by_votes(
    context: AmplifyContext, place: Place, given: Budget, expert: Expert = PLAIN
) -> Outcome:
    """Ask copies, and ask again while the rule of the votes leaves doubt.

    The first vote is greedy unless this is a retry; every other is sampled with a seed of its own.
    Votes come in waves, each the fewest that could decide.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    first = place.retries * context.votes.stopping.most
    while more := wave(votes, context.votes):
        left = given.minus(spent["calls"], spent["tokens"])
        lacking = context.purse.lacks
        if left.empty or lacking:
            status, error = "over_budget", lacking and f"no {lacking} left"
            break
        shares = left.split(min(more, left.calls, left.tokens))
        numbers = range(first + len(votes), first + len(votes) + len(shares))
        asked = [
            ask_copy(context, place, number, share, expert)
            for number, share in zip(numbers, shares, strict=True)
        ]
        replies, failure = await _all(asked)
        spent = plus(spent, *(reply.spent for reply in replies.values()))
        votes += [
            _vote(context, place.question, numbers[at], reply.completion)
            for at, reply in replies.items()
        ]
        if failure is not None:
            status, error = "failed", str(failure)
            break
    chosen = winner(votes)
    answer = chosen.text if chosen else None
    if status is None:
        status = "ok" if chosen and chosen.ok else "rejected"
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    counted = {
        "votes": len(votes),
        "refused": sum(not vote.ok for vote in votes),
        "tally": tally(votes),
    }
    if flags := {vote.flag for vote in votes if vote.flag}:
        counted["flags"] = {name: sum(v.flag == name for v in votes) for name in sorted(flags)}
    await record_leaf(context, place, outcome, counted)
    return outcome


async def _all(
    asked: Sequence[Coroutine[Any, Any, Reply]],
) -> tuple[dict[int, Reply], EndpointError | None]:
    """The replies that came, by position, and the first failure; the others go on beside it."""
    if len(asked) == 1:  # Most waves are: no task is made for it.
        try:
            return {0: await asked[0]}, None
        except EndpointError as failure:
            return {}, failure
    came = await asyncio.gather(*asked, return_exceptions=True)
    replies: dict[int, Reply] = {}
    failure: EndpointError | None = None
    for at, reply in enumerate(came):
        if isinstance(reply, EndpointError):
            failure = failure or reply
        elif isinstance(reply, BaseException):
            raise reply
        else:
            replies[at] = reply
    return replies, failure


def _vote(context: AmplifyContext, question: str, number: int, reply: Completion) -> Vote:
    text = context.normalise(reply.text)
    if reply.tool_calls and not text:  # Its turns or its budget ended before it said anything.
        return Vote(text, False, reply.min_logprob, flag="unanswered")
    weight = context.votes.variant(number).weight
    if flag := context.flags.of(reply):
        return Vote(text, False, reply.min_logprob, weight, flag)
    verdict = context.checker.check(question, text)
    return Vote(text, verdict.ok, reply.min_logprob, weight, verdict.rule)
