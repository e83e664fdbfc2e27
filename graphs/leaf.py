"""A question that is answered directly: one call, or a vote where the first call is in doubt.

One function call inside `subtask`; no graph runs for a leaf.
"""

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
from graphs.voting import Vote, settled, tally, winner


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
            return failed_outcome(f"H asked {to!r}; there is {_known(context)}")
        return await answer_by_panel(context, place, given, tuple(panel))
    if not to:
        return await answer_by_votes(context, place, given)
    expert = next((e for e in context.experts if f"expert:{e.name}" == to), None)
    if expert is None:
        return failed_outcome(f"H asked {to!r}, whom nobody knows; there is {_known(context)}")
    return await answer_by_votes(context, place, given, expert)


def _known(context: AmplifyContext) -> str:
    return ", ".join(f"expert:{expert.name}" for expert in context.experts) or "no expert"


async def answer_by_votes(
    context: AmplifyContext, place: Place, given: Budget, expert: Expert = PLAIN
) -> Outcome:
    """Ask copies, and ask again while the check or the log-probability leaves doubt.

    The first vote is greedy unless this is a retry; every other is sampled with a seed of its own.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    while not settled(votes, context.votes):
        left = given.minus(spent["calls"], spent["tokens"])
        lacking = context.purse.lacks
        if left.empty or lacking:
            status, error = "over_budget", lacking and f"no {lacking} left"
            break
        number = place.retries * context.votes.most + len(votes)
        try:
            reply = await ask_copy(context, place, number, left, expert)
        except EndpointError as failure:
            status, error = "failed", str(failure)
            break
        spent = plus(spent, reply.spent)
        votes.append(_vote(context, place.question, reply.completion))
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
    await record_leaf(context, place, outcome, counted)
    return outcome


def _vote(context: AmplifyContext, question: str, reply: Completion) -> Vote:
    text = context.normalise(reply.text)
    return Vote(text, context.checker.check(question, text).ok, reply.min_logprob)
