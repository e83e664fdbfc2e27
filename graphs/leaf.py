"""A sub-question that X answers directly: one call, or a vote where the first call is in doubt.

One function call inside `subtask`; no graph runs for a leaf.
"""

from typing import Any

from agents.errors import EndpointError
from agents.types import ChatRequest, Completion, Sampling
from graphs.state import NOTHING_SPENT, AmplifyContext, Outcome, Spent, Status, plus
from graphs.traces import CallKey
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
) -> Outcome:
    """Ask X, and ask again while the check or the log-probability leaves doubt.

    The first vote is greedy unless this is a retry; every other is sampled with a seed of its
    own. `calls` and `tokens` are the most it may spend.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    while not settled(votes, context.votes):
        if spent["calls"] >= calls or spent["tokens"] >= tokens:
            status = "over_budget"
            break
        number = retries * context.votes.most + len(votes)
        request = ChatRequest(
            context.model,
            context.prompt(question),
            Sampling(
                temperature=context.votes.temperature if number else 0.0,
                max_tokens=min(context.answer_tokens(question), tokens - spent["tokens"]),
                top_logprobs=context.top_logprobs,
                seed=context.seed + number,
                stop=context.stop,
            ),
            vote=number,
        )
        key = CallKey(question_id, path, "answer", step, retries, number)
        try:
            reply = await context.caller.ask(key, request)
        except EndpointError as failure:
            status, error = "failed", str(failure)
            break
        spent = plus(spent, {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens})
        votes.append(_vote(context, question, reply))
    chosen = winner(votes)
    answer = chosen.text if chosen else None
    if status is None:
        status = "ok" if chosen and chosen.ok else "rejected"
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    await _judge(context, question, question_id, path, f"{step}.{retries}", votes, outcome)
    return outcome


def _vote(context: AmplifyContext, question: str, reply: Completion) -> Vote:
    text = context.normalise(reply.text)
    return Vote(text, context.checker.check(question, text).ok, reply.min_logprob)


async def _judge(
    context: AmplifyContext,
    question: str,
    question_id: str,
    path: str,
    key: str,
    votes: list[Vote],
    outcome: Outcome,
) -> None:
    detail: dict[str, Any] = {
        "question": question,
        "answer": outcome["answer"],
        "status": outcome["status"],
        "error": outcome["error"],
        "votes": len(votes),
        "refused": sum(not vote.ok for vote in votes),
        "tally": tally(votes),
    }
    ok = outcome["status"] == "ok"
    await context.caller.store.add_judgement(question_id, path, "leaf", ok, detail, key=key)
    context.emit({"event": "answered", "path": path, "leaf": True, **detail})
