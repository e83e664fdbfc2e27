"""A panel: several models, adapters or personas answer one question; a combiner makes one answer.

Implements section 8.4.1 of the AI Safety Atlas (aggregation). The record holds every expert's
answer and their disagreement, because a vote cannot correct errors that experts share.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, Spent, Status, accepted_status, plus
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.voting.combiners import Expert, ExpertAnswer, disagreement
from reflux.graphs.voting.voting import Vote, is_truncated


async def combine_votes(
    context: AmplifyContext,
    key: CallKey,
    question: str,
    replies: Sequence[tuple[Expert, Vote | str]],
    left: Budget,
    spent: Spent,
) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of a panel, and the detail of its record.

    Args:
        key: of the combiner's calls; their vote number, too.
        replies: each expert's vote, or why it gave none.
        left: pays for the combiner.
        spent: what the experts spent.
    """
    votes = [(expert, vote) for expert, vote in replies if isinstance(vote, Vote)]
    failures = {expert.name: reason for expert, reason in replies if isinstance(reason, str)}
    answers = [ExpertAnswer(expert, vote.text, vote.ok) for expert, vote in votes]
    cut = False

    async def ask(request: ChatRequest) -> Completion:
        nonlocal spent, left, cut
        if left.empty or context.spend_limit.lacks:
            raise EndpointError("nothing is left for the experts' consensus: raise limits.calls")
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, left.tokens),
            seed=context.seed + key.vote,
        )
        model = request.model or context.model
        request = replace(request, model=model, sampling=sampling, vote=key.vote)
        reply = await context.ask(key, request)
        left, spent = left.minus(1, reply.completion.tokens), plus(spent, reply.spent)
        cut = reply.completion.truncated
        return reply.completion

    answer: str | None = None
    error = "; ".join(f"{name}: {reason}" for name, reason in failures.items()) or None
    try:
        combined = await context.combiner.combine(question, answers, ask)
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
    return outcome, {
        "answers": {each.expert.name: each.text for each in answers},
        "refused": [each.expert.name for each in answers if not each.ok],
        "failed": failures,
        "disagreement": round(disagreement(answers), 4),
        "votes": len(answers),
    }


PAST_PANELS = (
    "SELECT j.detail FROM judgements j JOIN questions q ON q.id = j.question"
    " WHERE j.kind='panel' AND q.revises IS NULL ORDER BY j.id"
)
"""Excludes revisions, whose panels repeat those of the trajectory that they revise."""


def past_answers(store: TraceStore) -> Iterator[tuple[str, Mapping[str, str], str | None]]:
    """(question, answers by expert, combined answer) of every recorded panel, in order."""
    for row in store.select(PAST_PANELS):
        detail: dict[str, Any] = json.loads(row["detail"])
        yield detail["question"], detail["answers"], detail["answer"]
