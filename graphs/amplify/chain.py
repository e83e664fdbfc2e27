"""A chain: each question is made of the last answer, for up to millions of links.

One graph node walks the whole chain, because a super-step costs more than a vote. Each link is
voted on as any other question is (MAKER, arXiv 2511.09030). A batch of votes is one row of the
table `links`, committed before it counts: a killed chain resumes at its last link and repeats only
the calls in flight, and a revision that asks the same chain copies its links. A row holds the
shared answer where all votes of the batch agreed, and otherwise every vote, without
log-probabilities and tokens. Only that table grows with the chain's length.

A link without an accepted vote is voted on again with fresh votes, up to `limits.attempts` times.
An endpoint failure ends the question, and the same command resumes it there later.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.clients.retries import time_left
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.overseers.protocol import Overseer, follow_of
from reflux.agents.policy.data import labels_in
from reflux.agents.policy.policy import joined, texts
from reflux.agents.prompts import question_problem
from reflux.agents.redaction import redact
from reflux.agents.types import Answer, Chain, ChatRequest, Completion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.direct_answer import (
    NodeRef,
    chain_link_request,
    record_answer,
    vote_of,
)
from reflux.graphs.amplify.flow import proposal
from reflux.graphs.amplify.model_calls import run_concurrently
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    AmplifyState,
    Outcome,
    Spent,
    Status,
    failed_outcome,
    is_accepted,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import node_of, overseer_at
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.store import CallKey, LinkKey, TraceStore, read_votes, write_votes
from reflux.graphs.voting.voting import Vote, next_votes, winner

UNSURE = -1.0
"""Stands for the unrecorded log-probability of a vote: one sure enough to stand alone has already
decided its link."""


@dataclass
class _Link:
    """The link that a chain has reached, and what the chain spent so far."""

    number: int
    question: str
    votes: list[Vote]
    batches: int
    spent: Spent
    decided: bool = False
    """The record says that these votes are enough."""


async def walk_chain(
    context: AmplifyContext, node: NodeRef, overseer: Overseer, chain: Chain, budget: Budget
) -> tuple[Outcome, bool]:
    """(how a chain ended, whether an endpoint failed, so that the same call, made later, resumes
    it); `budget` pays for all of it.

    A resumed chain calls the overseer's `follow` for the last link only, so it must depend on
    nothing but the last question and its answer.

    Raises:
        ReplayError: the chain was begun with another model, prompt or first question.
    """
    follow = follow_of(overseer)
    if follow is None:
        reason = f"{overseer.name} asked a chain but has no `follow` method: add one"
        return failed_outcome(reason), False
    key = LinkKey(node.question_id, node.path, node.retries)
    first = redact(chain.first)
    if (reason := question_problem(first, context.limits.question_chars)) is not None:
        return failed_outcome(f"link 0: {reason}"), False
    digest = await _record_start(context, key, first)
    link = await _resumed_link(context, key, first, digest)
    answer: str | None = None
    while True:
        chosen, status, error = await _vote_on_link(context, key, link, budget)
        interrupted = status == "failed"
        if chosen is None or status != "unchecked":
            break
        try:
            following = follow(link.question, chosen.text)
            answer = context.normalise(following.text) if isinstance(following, Answer) else None
            question = "" if isinstance(following, Answer) else redact(following)
        except Exception as failure:  # noqa: BLE001 - the overseer is user code: failures are values
            status = "failed"
            error = f"the overseer's follow failed: {type(failure).__name__}: {failure}"
            break
        if answer is not None:
            break
        if (reason := question_problem(question, context.limits.question_chars)) is not None:
            status, error = "failed", f"link {link.number + 1}: {reason}"
            break
        link = _Link(link.number + 1, question, [], 0, link.spent)
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": link.spent}
    disputed = context.recorded_client.store.chain_so_far(key)["disputed"]
    detail = {"links": link.number + 1, "disputed": disputed, "last": link.question}
    await record_answer(context, node, outcome, detail, ("chain",))
    return outcome, interrupted


async def _vote_on_link(
    context: AmplifyContext, key: LinkKey, link: _Link, budget: Budget
) -> tuple[Vote | None, Status, str | None]:
    """Vote on one link. `unchecked` means decided: the check tests the chain's answer later."""
    policy, recorded_client = context.votes, context.recorded_client
    first = _first_vote(context, key)
    while size := 0 if link.decided else next_votes(_current_try(context, link.votes), policy):
        left = budget.minus(link.spent["calls"], link.spent["tokens"])
        lacking = context.spend_limit.lacks
        if left.empty or lacking:
            return winner(link.votes), "over_budget", lacking and f"no {lacking} left"
        begin = first + len(link.votes)
        requests = [
            chain_link_request(context, link.question, number)
            for number in range(begin, begin + min(size, left.calls))
        ]
        replies, failure = await _replies(context, key, link.number, requests)
        votes = [vote_of(context, link.question, n, reply) for n, reply in replies]
        tokens = sum(reply.tokens for _, reply in replies)
        link.votes += votes
        enough = failure is None and next_votes(_current_try(context, link.votes), policy) == 0
        chosen = winner(link.votes) if enough else None
        if votes:
            await recorded_client.store.add_link(
                key,
                {
                    "number": link.number,
                    "batch": link.batches,
                    "asked": link.question if link.batches == 0 else None,
                    "votes": write_votes(votes),
                    "answer": chosen.text if chosen and chosen.ok else None,
                    "calls": len(votes),
                    "tokens": tokens,
                    "created": time.time(),
                },
            )
            link.batches += 1
        cached = sum(reply.cached for _, reply in replies)
        link.spent = plus(link.spent, {"calls": len(votes), "cached": cached, "tokens": tokens})
        if failure is not None:
            return winner(link.votes), "failed", str(failure)
    chosen = winner(link.votes)
    if chosen is None or not chosen.ok:
        return chosen, "rejected", f"no vote on link {link.number} passed the check"
    context.emit(
        {
            "event": "link",
            "path": key.path,
            "number": link.number,
            "question": link.question,
            "answer": chosen.text,
            "votes": len(link.votes),
        }
    )
    return chosen, "unchecked", None


def _current_try(context: AmplifyContext, votes: list[Vote]) -> list[Vote]:
    """The votes of a link's current try; the check refused all those of earlier tries."""
    max_votes, max_tries = context.votes.stopping.max_votes, max(1, context.limits.attempts)
    begin = 0
    while len(votes) >= begin + max_votes and begin < max_votes * (max_tries - 1):
        if any(vote.ok for vote in votes[begin : begin + max_votes]):
            break
        begin += max_votes
    return votes[begin:] if begin else votes


def _first_vote(context: AmplifyContext, key: LinkKey) -> int:
    """The number of a link's first vote; attempts at the chain draw disjoint votes."""
    return key.attempt * context.votes.stopping.max_votes * max(1, context.limits.attempts)


async def _replies(
    context: AmplifyContext, key: LinkKey, link: int, requests: Sequence[ChatRequest]
) -> tuple[list[tuple[int, Completion]], EndpointError | None]:
    """(vote, reply) of those before the first failure, and that failure.

    Later replies are dropped and asked again on resumption, so that votes keep their numbers.
    """
    recorded_client = context.recorded_client
    calls = [CallKey(key.question, key.path, "chain", link, vote=each.vote) for each in requests]
    with time_left(context.spend_limit.left().get("seconds")):
        replies, failure = await run_concurrently(
            [recorded_client.unrecorded(call, r) for call, r in zip(calls, requests, strict=True)]
        )
    for index, reply in replies.items():
        context.spend_limit.pay(requests[index].model, reply)
    end = next((index for index in range(len(requests)) if index not in replies), len(requests))
    if failure is not None:
        await recorded_client.record_failure(calls[end], requests[end], failure)
    return [
        (requests[index].vote, replace(replies[index], text=redact(replies[index].text)))
        for index in range(end)
    ], failure


async def _resumed_link(context: AmplifyContext, key: LinkKey, first: str, digest: str) -> _Link:
    """The last link on record, or the first one of a new chain; the links of an earlier revision's
    identical chain are copied, and cost nothing."""
    store, copied = context.recorded_client.store, False
    if (so_far := store.chain_so_far(key))["last"] is None:
        earlier = (replace(key, question=question) for question in before(key.question))
        same = next((each for each in earlier if digest in _start_digests(store, each)), None)
        if copied := same is not None:
            await store.copy_links(same, key)
            so_far = store.chain_so_far(key)
    if so_far["last"] is None:
        return _Link(0, first, [], 0, NOTHING_SPENT)
    batches = list(store.batches(key, so_far["last"]))
    votes: list[Vote] = []
    for text, ok, flag in (vote for row in batches for vote in read_votes(row["votes"])):
        weight = context.votes.variant(_first_vote(context, key) + len(votes)).weight
        votes.append(Vote(text, ok, UNSURE, weight, flag))
    calls, cached = so_far["calls"], so_far["calls"] if copied else 0
    spent: Spent = {"calls": calls, "cached": cached, "tokens": so_far["tokens"]}
    is_decided = batches[-1]["answer"] is not None
    return _Link(so_far["last"], batches[0]["asked"], votes, len(batches), spent, is_decided)


def _start_digests(store: TraceStore, key: LinkKey) -> set[str]:
    """Digests that the chain was begun with, one per `_record_start`."""
    sql = "SELECT detail FROM judgements WHERE question=? AND path=? AND kind='chain_begun'"
    rows = [json.loads(row["detail"]) for row in store.select(sql, (key.question, key.path))]
    return {row["digest"] for row in rows if row["attempt"] == key.attempt}


async def _record_start(context: AmplifyContext, key: LinkKey, first: str) -> str:
    """Record a digest of the chain's model, prompt, votes and first question, and return it.

    Raises:
        ReplayError: the chain was begun with another one.
    """
    request = chain_link_request(context, first, 0)
    model_digest = await context.recorded_client.client.model_digest(request.model)
    parts = json.dumps([request.digest(model_digest), repr(context.votes), repr(context.flags)])
    digest = hashlib.sha256(parts.encode()).hexdigest()[:32]
    detail = {"attempt": key.attempt, "digest": digest, "first": first}
    detail |= {"model": request.model, "model_digest": model_digest}
    store = context.recorded_client.store
    if _start_digests(store, key) - {digest}:
        raise ReplayError(
            f"the chain at {key.path or 'the root'} was begun with another model, prompt, vote "
            "or first question; use a new --run"
        )
    await store.add_judgement(
        key.question, key.path, "chain_begun", None, detail, key=str(key.attempt)
    )
    return digest


async def chained(
    state: AmplifyState, context: AmplifyContext, chain: Chain, labels: Sequence[str]
) -> dict[str, Any]:
    """Walk a chain within this graph node; its end is the overseer's answer. Code makes each
    question of the last answer, so under a policy no untrusted text starts one."""
    if context.policy is not None and texts(joined(labels, labels_in(chain.first))):
        return {"error": "the policy lets no untrusted text start a chain"}
    overseer = overseer_at(context, state["attempt"])
    node, left = node_of(state, context), left_of(state)
    outcome, interrupted = await walk_chain(context, node, overseer, chain, left)
    spent = plus(state["spent"], outcome["spent"])
    accepted = outcome["answer"] if is_accepted(outcome["status"]) else None
    return {
        "error": outcome["error"],
        **proposal(state, context, accepted, labels),
        "spent": spent,
        "outcome": {**outcome, "spent": spent} if interrupted else None,
    }
