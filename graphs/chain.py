"""A chain: question after question, each made of the last answer, a million of them if need be.

One node of the graph walks it whole, because a super-step costs more than a vote. Each link is
voted on by the rules that hold for every other question (MAKER, arXiv 2511.09030). A wave of votes
is one row of the table `links`, committed before it counts: a chain that was killed goes on at its
last link and asks again what was in flight. Nothing of a chain grows with its length but that
table.

What is kept of a wave: that its votes agreed, and on what; all of them where they did not, or where
one was refused. Log-probabilities and tokens of single votes are not kept.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.budget import Budget
from agents.errors import ReplayError
from agents.overseer import AnyOverseer
from agents.screen import redact
from agents.types import Answer, Chain, ChatRequest
from graphs.copies import Place, chain_request, record_leaf, side_by_side, vote_of
from graphs.state import NOTHING_SPENT, AmplifyContext, Outcome, Spent, Status, failed_outcome, plus
from graphs.traces import CallKey, LinkKey
from graphs.voting import Vote, wave, winner


@dataclass
class _Walk:
    """Where a chain stands."""

    number: int
    asked: str
    votes: list[Vote]
    waves: int
    spent: Spent


async def walk_chain(
    context: AmplifyContext, place: Place, overseer: AnyOverseer, chain: Chain, given: Budget
) -> Outcome:
    """Walk a chain to its end; `given` is for all of it.

    H's `follow` makes the next question of the last and its answer, or ends with an `Answer`. It is
    asked again for the last link alone when a chain goes on, so it must depend on nothing else.

    Raises:
        ReplayError: the chain was begun with another model, prompt or first question.
    """
    follow = getattr(overseer, "follow", None)
    if follow is None:
        return failed_outcome(f"{overseer.name} asked a chain, and has no `follow` to go on with")
    key = LinkKey(place.question_id, place.path, place.retries)
    frame = chain_request(context, "", 0)
    await _same_chain(context, key, chain, frame)
    at = _resumed(context, key, chain)
    status, error, answer = "ok", None, None
    while True:
        chosen, status, error = await _link(context, key, at, given)
        if chosen is None or status != "ok":
            answer = chosen.text if chosen else None
            break
        try:
            following = follow(at.asked, chosen.text)
        except Exception as failure:  # noqa: BLE001 - H is the user's code: its failures are values
            status, error = "failed", f"H could not follow: {type(failure).__name__}: {failure}"
            break
        if isinstance(following, Answer):
            answer = context.normalise(following.text)
            break
        at.number, at.asked, at.votes, at.waves = at.number + 1, redact(following), [], 0
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": at.spent}
    disputed = context.caller.store.disputed_links(key)
    told = {"links": at.number + 1, "disputed": disputed, "last": at.asked}
    await record_leaf(context, place, outcome, told, ("chain",))
    return outcome


async def _link(
    context: AmplifyContext, key: LinkKey, at: _Walk, given: Budget
) -> tuple[Vote | None, Status, str | None]:
    """Vote on one link."""
    policy, caller = context.votes, context.caller
    first = key.attempt * policy.stopping.most
    while more := wave(at.votes, policy):
        left = given.minus(at.spent["calls"], at.spent["tokens"])
        lacking = context.purse.lacks
        if left.empty or lacking:
            return winner(at.votes), "over_budget", lacking and f"no {lacking} left"
        numbers = range(first + len(at.votes), first + len(at.votes) + min(more, left.calls))
        asked = [chain_request(context, at.asked, number) for number in numbers]
        calls = [CallKey(key.question, key.path, "chain", at.number, vote=n) for n in numbers]
        came, failure = await side_by_side(
            [caller.unrecorded(call, each) for call, each in zip(calls, asked, strict=True)]
        )
        caller.outage = failure or caller.outage
        replies = {n: replace(reply, text=redact(reply.text)) for n, reply in came.items()}
        votes = [vote_of(context, at.asked, numbers[n], reply) for n, reply in replies.items()]
        tokens = sum(reply.tokens for reply in replies.values())
        for n, reply in replies.items():
            context.purse.pay(asked[n].model, reply)
        at.votes += votes
        decided = failure is None and wave(at.votes, policy) == 0
        chosen = winner(at.votes) if decided else None
        if votes:
            await caller.store.add_link(
                key,
                {
                    "number": at.number,
                    "wave": at.waves,
                    "asked": at.asked if at.waves == 0 else None,
                    "votes": _kept(votes),
                    "answer": chosen.text if chosen and chosen.ok else None,
                    "calls": len(votes),
                    "tokens": tokens,
                    "created": time.time(),
                },
            )
        at.waves += 1
        cached = sum(reply.cached for reply in replies.values())
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


def _kept(votes: Sequence[Vote]) -> str:
    """A wave as JSON: `[text, n]` where all agree, otherwise every vote, `[[text, ok, flag], …]`.

    `TraceStore.disputed_links` tells the two apart by their beginning.
    """
    one = votes[0]
    if one.ok and all(vote.ok and vote.text == one.text for vote in votes):
        return json.dumps([one.text, len(votes)])
    return json.dumps([[vote.text, vote.ok, vote.flag] for vote in votes])


def _votes(kept: str) -> list[Vote]:
    """The inverse of `_kept`, as far as a vote is kept."""
    body: list[Any] = json.loads(kept)
    if body and isinstance(body[0], str):
        return [Vote(body[0], True, -1.0)] * body[1]
    return [Vote(text, ok, -1.0, flag=flag) for text, ok, flag in body]


def _resumed(context: AmplifyContext, key: LinkKey, chain: Chain) -> _Walk:
    """Where the log leaves the chain: at the first link, or at the last one that was begun."""
    store = context.caller.store
    waves = store.last_link(key)
    if not waves:
        return _Walk(0, redact(chain.first), [], 0, NOTHING_SPENT)
    calls, tokens = store.spent_on_links(key)
    votes = [vote for row in waves for vote in _votes(row["votes"])]
    spent: Spent = {"calls": calls, "cached": 0, "tokens": tokens}
    return _Walk(waves[0]["number"], waves[0]["asked"], votes, len(waves), spent)


async def _same_chain(
    context: AmplifyContext, key: LinkKey, chain: Chain, frame: ChatRequest
) -> None:
    """Record what the chain is made of; one that goes on must be made of the same."""
    digest = await context.caller.client.model_digest(frame.model)
    made = json.dumps([frame.digest(digest), chain.first, context.seed])
    detail = {"digest": hashlib.sha256(made.encode()).hexdigest()[:32]}
    sql = "SELECT detail FROM judgements WHERE question=? AND path=? AND kind='chain_begun'"
    rows = context.caller.store.select(sql, (key.question, key.path))
    begun = [json.loads(row["detail"]) for row in rows]
    mine = [one for one in begun if one["attempt"] == key.attempt]
    if mine and mine[0]["digest"] != detail["digest"]:
        raise ReplayError(
            f"the chain at {key.path or 'the root'} was begun with another model, prompt, vote or "
            "first question; use a new --run"
        )
    await context.caller.store.add_judgement(
        key.question,
        key.path,
        "chain_begun",
        None,
        {**detail, "attempt": key.attempt, "first": redact(chain.first)},
        key=str(key.attempt),
    )
