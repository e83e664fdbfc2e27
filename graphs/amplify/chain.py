"""A chain: question after question, each made of the last answer, a million of them if need be.

One node of the graph walks it whole, because a super-step costs more than a vote. Each link is
voted on by the rules that hold for every other question (MAKER, arXiv 2511.09030). A wave of votes
is one row of the table `links`, committed before it counts: a chain that was killed goes on at its
last link and asks again what was in flight, and a revision of its trajectory that asks the same
chain takes its links as they are. Nothing of a chain grows with its length but that table.

What is kept of a wave: that its votes agreed, and on what; all of them where they did not, or where
one was refused. Log-probabilities and tokens of single votes are not kept.

A link of which no vote is accepted is voted on again with fresh votes, as often as a question has
attempts. An endpoint that fails ends the question, and with it this session's walk: to begin at the
first link again, as after an answer that a check refuses, would throw the way so far away.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.overseers.protocol import Overseer, follow_of
from reflux.agents.redaction import redact, unaskable
from reflux.agents.types import Answer, Chain, ChatRequest, Completion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.sampling import (
    NodeRef,
    chain_link_request,
    record_answer,
    run_concurrently,
    vote_of,
)
from reflux.graphs.amplify.state import NOTHING_SPENT, Outcome, Spent, Status, failed_outcome, plus
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.store import CallKey, LinkKey, TraceStore, read_votes, write_votes
from reflux.graphs.voting.voting import Vote, next_votes, winner

UNSURE = -1.0
"""Stands for the log-probability of a vote on record: one that was sure enough to stand alone has
decided its link."""


@dataclass
class _Walk:
    """Where a chain stands."""

    number: int
    asked: str
    votes: list[Vote]
    waves: int
    spent: Spent
    decided: bool = False
    """The record says that these votes are enough."""


@dataclass(frozen=True)
class Walked:
    """How a chain ended."""

    outcome: Outcome
    broke_off: bool = False
    """At the endpoint: the same call, made later, goes on from here."""


async def walk_chain(
    context: AmplifyContext, place: NodeRef, overseer: Overseer, chain: Chain, given: Budget
) -> Walked:
    """Walk a chain to its end; `given` is for all of it.

    H's `follow` makes the next question of the last and its answer, or ends with an `Answer`. It is
    asked again for the last link alone when a chain goes on, so it must depend on nothing else.

    Raises:
        ReplayError: the chain was begun with another model, prompt or first question.
    """
    follow = follow_of(overseer)
    if follow is None:
        reason = f"{overseer.name} asked a chain, and has no `follow` to go on with"
        return Walked(failed_outcome(reason))
    key = LinkKey(place.question_id, place.path, place.retries)
    first = redact(chain.first)
    if (reason := unaskable(first, context.limits.question_chars)) is not None:
        return Walked(failed_outcome(f"link 0: {reason}"))
    digest = await _same_chain(context, key, first)
    known = await _walked_before(context, key, digest)
    at = _resumed(context, key, first)
    if known:
        at.spent = {**at.spent, "cached": at.spent["calls"]}
    broke_off = False
    status: Status = "ok"
    error: str | None = None
    answer: str | None = None
    while True:
        chosen, status, error = await _link(context, key, at, given)
        if chosen is None or status != "ok":
            broke_off = status == "failed"
            break
        try:
            following = follow(at.asked, chosen.text)
            answer = context.normalise(following.text) if isinstance(following, Answer) else None
            asked = "" if isinstance(following, Answer) else redact(following)
        except Exception as failure:  # noqa: BLE001 - H is the user's code: its failures are values
            status, error = "failed", f"H could not follow: {type(failure).__name__}: {failure}"
            break
        if answer is not None:
            break
        if (reason := unaskable(asked, context.limits.question_chars)) is not None:
            status, error = "failed", f"link {at.number + 1}: {reason}"
            break
        at = _Walk(at.number + 1, asked, [], 0, at.spent)
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": at.spent}
    disputed = context.recorded_client.store.disputed_links(key)
    told = {"links": at.number + 1, "disputed": disputed, "last": at.asked}
    await record_answer(context, place, outcome, told, ("chain",))
    return Walked(outcome, broke_off)


async def _link(
    context: AmplifyContext, key: LinkKey, at: _Walk, given: Budget
) -> tuple[Vote | None, Status, str | None]:
    """Vote on one link."""
    policy, recorded_client = context.votes, context.recorded_client
    first = _first_vote(context, key)
    while more := 0 if at.decided else next_votes(_fresh(context, at.votes), policy):
        left = given.minus(at.spent["calls"], at.spent["tokens"])
        lacking = context.spend_limit.lacks
        if left.empty or lacking:
            return winner(at.votes), "over_budget", lacking and f"no {lacking} left"
        numbers = range(first + len(at.votes), first + len(at.votes) + min(more, left.calls))
        asked = [chain_link_request(context, at.asked, number) for number in numbers]
        replies, failure = await _replies(context, key, at.number, asked)
        votes = [vote_of(context, at.asked, n, reply) for n, reply in replies]
        tokens = sum(reply.tokens for _, reply in replies)
        at.votes += votes
        enough = failure is None and next_votes(_fresh(context, at.votes), policy) == 0
        chosen = winner(at.votes) if enough else None
        if votes:
            await recorded_client.store.add_link(
                key,
                {
                    "number": at.number,
                    "wave": at.waves,
                    "asked": at.asked if at.waves == 0 else None,
                    "votes": write_votes(votes),
                    "answer": chosen.text if chosen and chosen.ok else None,
                    "calls": len(votes),
                    "tokens": tokens,
                    "created": time.time(),
                },
            )
            at.waves += 1
        cached = sum(reply.cached for _, reply in replies)
        at.spent = plus(at.spent, {"calls": len(votes), "cached": cached, "tokens": tokens})
        if failure is not None:
            return winner(at.votes), "failed", str(failure)
    chosen = winner(at.votes)
    if chosen is None or not chosen.ok:
        return chosen, "rejected", f"no vote on link {at.number} passed the check"
    context.emit(
        {
            "event": "link",
            "path": key.path,
            "number": at.number,
            "question": at.asked,
            "answer": chosen.text,
            "votes": len(at.votes),
        }
    )
    return chosen, "ok", None


def _fresh(context: AmplifyContext, votes: list[Vote]) -> list[Vote]:
    """The votes of a link's current try; all those of the tries before it were refused."""
    max_votes, tries = context.votes.stopping.max_votes, max(1, context.limits.attempts)
    begun = 0
    while len(votes) >= begun + max_votes and begun < max_votes * (tries - 1):
        if any(vote.ok for vote in votes[begun : begun + max_votes]):
            break
        begun += max_votes
    return votes[begun:] if begun else votes


def _first_vote(context: AmplifyContext, key: LinkKey) -> int:
    """The number of a link's first vote: no try of a link draws the votes of another attempt's."""
    return key.attempt * context.votes.stopping.max_votes * max(1, context.limits.attempts)


async def _replies(
    context: AmplifyContext, key: LinkKey, link: int, asked: Sequence[ChatRequest]
) -> tuple[list[tuple[int, Completion]], EndpointError | None]:
    """(vote, reply) of those that came before the first failure, and that failure.

    What came after it is asked again when the chain goes on, so that votes keep their numbers.
    """
    recorded_client = context.recorded_client
    calls = [CallKey(key.question, key.path, "chain", link, vote=each.vote) for each in asked]
    came, failure = await run_concurrently(
        [recorded_client.unrecorded(call, each) for call, each in zip(calls, asked, strict=True)]
    )
    for at, reply in came.items():
        context.spend_limit.pay(asked[at].model, reply)
    first_lost = next((at for at in range(len(asked)) if at not in came), len(asked))
    if failure is not None:
        await recorded_client.record_failure(calls[first_lost], asked[first_lost], failure)
    kept = range(first_lost)
    return [(asked[at].vote, replace(came[at], text=redact(came[at].text))) for at in kept], failure


def _resumed(context: AmplifyContext, key: LinkKey, first: str) -> _Walk:
    """Where the log leaves the chain: at the first link, or at the last one that was begun."""
    store = context.recorded_client.store
    waves = store.last_link(key)
    if not waves:
        return _Walk(0, first, [], 0, NOTHING_SPENT)
    calls, tokens = store.spent_on_links(key)
    votes: list[Vote] = []
    for text, ok, flag in (vote for row in waves for vote in read_votes(row["votes"])):
        weight = context.votes.variant(_first_vote(context, key) + len(votes)).weight
        votes.append(Vote(text, ok, UNSURE, weight, flag))
    spent: Spent = {"calls": calls, "cached": 0, "tokens": tokens}
    number, asked, answer = waves[0]["number"], waves[0]["asked"], waves[-1]["answer"]
    return _Walk(number, asked, votes, len(waves), spent, decided=answer is not None)


async def _walked_before(context: AmplifyContext, key: LinkKey, digest: str) -> bool:
    """Give a revision's chain the links that an earlier revision walked, where it is made of the
    same; false where there are none, or it has links of its own."""
    store = context.recorded_client.store
    if store.last_link(key):
        return False
    for question in before(key.question):
        earlier = replace(key, question=question)
        if digest in _begun(store, earlier):
            await store.copy_links(earlier, key)
            return bool(store.last_link(key))
    return False


def _begun(store: TraceStore, key: LinkKey) -> set[str]:
    """Digests of what the chain was made of whenever it was begun."""
    sql = "SELECT detail FROM judgements WHERE question=? AND path=? AND kind='chain_begun'"
    rows = [json.loads(row["detail"]) for row in store.select(sql, (key.question, key.path))]
    return {row["digest"] for row in rows if row["attempt"] == key.attempt}


async def _same_chain(context: AmplifyContext, key: LinkKey, first: str) -> str:
    """Record what the chain is made of, and return its digest; one that goes on must be made of the
    same.

    Raises:
        ReplayError: it is not.
    """
    request = chain_link_request(context, first, 0)
    model_digest = await context.recorded_client.client.model_digest(request.model)
    made = json.dumps([request.digest(model_digest), repr(context.votes), repr(context.flags)])
    digest = hashlib.sha256(made.encode()).hexdigest()[:32]
    detail = {"attempt": key.attempt, "digest": digest, "first": first}
    detail |= {"model": request.model, "model_digest": model_digest}
    store = context.recorded_client.store
    if _begun(store, key) - {digest}:
        raise ReplayError(
            f"the chain at {key.path or 'the root'} was begun with another model, prompt, vote "
            "or first question; use a new --run"
        )
    await store.add_judgement(
        key.question, key.path, "chain_begun", None, detail, key=str(key.attempt)
    )
    return digest
