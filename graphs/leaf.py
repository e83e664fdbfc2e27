"""A question that is answered directly: one call, or a vote where the first call is in doubt.

One function call inside `subtask`; no graph runs for a leaf.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.budget import Budget
from agents.errors import EndpointError
from agents.judge import Equivalence
from graphs.copies import PLAIN, Place, answer_by_tool, ask_copy, record_leaf, side_by_side, vote_of
from graphs.desk import StepDesk
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
    compared = 0
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
        replies, failure = await side_by_side(asked)
        spent = plus(spent, *(reply.spent for reply in replies.values()))
        new = [
            vote_of(context, place.question, numbers[at], reply.completion)
            for at, reply in replies.items()
        ]
        if context.same is not None and failure is None:
            left = given.minus(spent["calls"], spent["tokens"])
            role, made = "same", compared
            desk = StepDesk(context, place.key(role), place.retries, left, role=role, made=made)
            new, failure = await one_text_each(context.same, desk, place.question, votes, new)
            compared = desk.made
            spent = plus(spent, desk.spent)
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
    await record_leaf(context, place, outcome, counted)
    return outcome


async def one_text_each(
    same: Equivalence, desk: StepDesk, question: str, known: Sequence[Vote], new: Sequence[Vote]
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
                    if await same.same(desk, question, other, text):
                        text = other
                        break
                except EndpointError as failure:
                    return [*merged, *new[number:]], failure
            else:
                texts.append(text)
        merged.append(replace(vote, text=text))
    return merged, None
