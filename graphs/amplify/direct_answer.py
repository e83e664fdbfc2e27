"""A question answered without the overseer: by a vote of copies, an expert, a panel, or a tool.

A vote is self-consistency (Wang et al. 2022) with a stopping rule: batches of copies until the
rule decides. A panel asks every expert once, side by side, and combines their answers. Each is one
function call inside `subtask`; no graph runs for a direct answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.policy.data import labels_in
from reflux.agents.policy.policy import as_values, joined
from reflux.agents.policy.typed import ValueType, type_of
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import ChatRequest, Completion, Sampling
from reflux.agents.verifiers import Equivalence, verdict_of
from reflux.graphs.amplify.context import AmplifyContext, Reply
from reflux.graphs.amplify.experts import combine_votes
from reflux.graphs.amplify.flow import labelled, permitted, quarantined
from reflux.graphs.amplify.model_calls import (
    ModelCalls,
    asked_tool,
    run_concurrently,
    run_tool_loop,
)
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    Outcome,
    Spent,
    Status,
    accepted_status,
    failed_outcome,
    is_accepted,
    plus,
    with_confidence,
)
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.store import CallKey
from reflux.graphs.voting.combiners import Expert
from reflux.graphs.voting.voting import Vote, is_truncated, next_votes, tally, winner

NO_ROOM = "the token limit cut every reply before its answer began: raise --max-tokens"
NO_ANSWER = {
    "unanswered": "the model replied nothing",
    "only_reasoned": "the model reasoned and gave no answer: try --thinking off, or raise "
    "--max-tokens",
    "filtered": "the endpoint's content filter cut the reply: reword the question, or take another "
    "model",
    "printed_call": "the reply is a tool call as text: have the endpoint read tool calls, or grant "
    "no tools",
}
"""Flags of replies that are no answer, and what the user is told where no other came."""
PLAIN = Expert("")
"""A plain copy of the agent."""


@dataclass(frozen=True)
class NodeRef:
    """A question that is answered directly, and its node in the tree."""

    question: str
    question_id: str
    path: str
    step: int = 0
    retries: int = 0
    labels: tuple[str, ...] = ()
    """Under a policy: what its question carries beside its blocks of data."""

    def labels_under(self, context: AmplifyContext) -> tuple[str, ...]:
        """All labels of its question; none without a policy."""
        return joined(self.labels, labels_in(self.question)) if context.policy else ()

    def key(self, role: str, vote: int = 0) -> CallKey:
        """The key of a call made for this node."""
        return CallKey(self.question_id, self.path, role, self.step, self.retries, vote)


async def answer_directly(
    context: AmplifyContext, node: NodeRef, budget: Budget, to: str = ""
) -> Outcome:
    """Answer one question without the overseer; `to` is as in `SubQuestion`."""
    if (problem := context.calls.problem(to)) is not None:
        outcome = failed_outcome(problem)
        await record_answer(context, node, outcome, {"votes": 0})
        return outcome
    if to.startswith("tool:"):
        return await _answer_by_tool(context, node, to.removeprefix("tool:"))
    context = context.at(node.path)
    if (kind := type_of(to)) is not None:
        return await _answer_by_votes(quarantined(context, kind), node, budget, PLAIN, kind)
    if to.split(":")[0] == "experts" or (not to and context.everyone and context.experts):
        names = to.partition(":")[2].split(",") if ":" in to else None
        panel = [e for e in context.experts if names is None or e.name in names]
        return await _answer_by_panel(context, node, budget, panel)
    by_name = {f"expert:{expert.name}": expert for expert in context.experts}
    return await _answer_by_votes(context, node, budget, by_name.get(to, PLAIN))


async def _answer_by_votes(
    context: AmplifyContext,
    node: NodeRef,
    budget: Budget,
    expert: Expert,
    kind: ValueType | None = None,
) -> Outcome:
    """Ask copies in batches until the stopping rule decides; of quarantined ones only a value of
    their `kind` is an answer.

    The first vote is greedy unless this is a retry; every other one is sampled with its own seed.
    A batch holds the fewest votes that could decide.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    compared, labels = 0, node.labels_under(context)
    while size := next_votes(votes, context.votes):
        left = budget.minus(spent["calls"], spent["tokens"])
        lacking = context.spend_limit.lacks
        if left.empty or lacking:
            status, error = "over_budget", lacking and f"no {lacking} left"
            break
        number = first_vote(context, node) + len(votes)
        shares = left.split(min(size, left.calls, left.tokens))
        replies, failure = await run_concurrently(
            [
                sample_answer(context, node, number + index, share, expert)
                for index, share in enumerate(shares)
            ]
        )
        spent = plus(spent, *(reply.spent for reply in replies.values()))
        labels = joined(labels, *(reply.labels for reply in replies.values()))
        batch = [
            vote_of(context, node.question, number + index, reply.completion)
            for index, reply in replies.items()
        ]
        if context.same is not None and failure is None:
            left = budget.minus(spent["calls"], spent["tokens"])
            calls = ModelCalls(
                context, node.key("same"), node.retries, left, "same", compared, labels
            )
            batch, failure = await _merge_equivalent(
                context.same, calls, node.question, votes, batch
            )
            compared, spent = calls.call_count, plus(spent, calls.spent)
        votes += batch
        if failure is not None:
            status, error = "failed", str(failure)
            break
    chosen = winner(votes)
    if status is None:
        status = "rejected"
        empty = [vote for vote in votes if vote.flag in NO_ANSWER]
        if empty and len(empty) == len(votes):
            cut = all(vote.truncated and vote.flag != "printed_call" for vote in votes)
            status = "truncated" if cut else "rejected"
            error = NO_ROOM if cut else NO_ANSWER[empty[0].flag]
        if chosen is not None and chosen.ok:
            cut = is_truncated(votes, chosen.text)
            status = accepted_status(has_check=context.has_rules, truncated=cut)
    answer = chosen.text if chosen and chosen.flag not in NO_ANSWER else None
    if kind is not None:
        answer = answer if chosen is not None and chosen.ok else None
        labels = as_values(labels) if kind.is_value else labels
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
    outcome = permitted(context, node.path, outcome, labels)
    refused = sum(not vote.ok for vote in votes)
    detail: dict[str, Any] = {"votes": len(votes), "refused": refused, "tally": tally(votes)}
    if flags := {vote.flag for vote in votes if vote.flag}:
        detail["flags"] = {name: sum(v.flag == name for v in votes) for name in sorted(flags)}
    await record_answer(context, node, outcome, detail)
    return with_confidence(outcome, detail, votes[-1].logprob if votes else None)


def first_vote(context: AmplifyContext, node: NodeRef) -> int:
    """The number of a node's first vote: retries draw votes that no earlier attempt drew."""
    return node.retries * context.votes.stopping.max_votes


async def sample_answer(
    context: AmplifyContext, node: NodeRef, number: int, left: Budget, expert: Expert = PLAIN
) -> Reply:
    """Ask one copy. `number` is its vote, and 0 is greedy; `left` pays for all its turns.

    Raises:
        EndpointError: a call failed for good.
    """
    key = node.key(f"answer:{expert.name}" if expert.name else "answer", number)
    request = _request(context, node.question, number, left.tokens, expert)
    tools, labels = context.grants.get("answer", ()), node.labels_under(context)
    return await run_tool_loop(context, tools, key, request, left, labels)


def first_request(context: AmplifyContext, question: str) -> ChatRequest:
    """The first call that a plain copy makes on a question with an unspent budget."""
    request = chain_link_request(context, question, 0)
    return replace(request, tools=tuple(tool.spec for tool in context.grants.get("answer", ())))


def chain_link_request(context: AmplifyContext, question: str, number: int) -> ChatRequest:
    """The call of vote `number` on a link of a chain, where copies have no tools."""
    return _request(context, question, number, context.limits.tokens, PLAIN)


def _request(
    context: AmplifyContext, question: str, number: int, tokens: int, expert: Expert
) -> ChatRequest:
    variant, max_tokens = context.votes.variant(number), context.max_tokens
    max_tokens = max_tokens if isinstance(max_tokens, int) else max_tokens(question)
    sampling = Sampling(
        temperature=context.votes.warmth(number),
        max_tokens=min(max_tokens, tokens),
        top_logprobs=context.top_logprobs,
        seed=context.seed + number,
        stop=context.stop,
    )
    wordings = context.wordings(question) or (question,)
    wording = variant.wording.replace("{question}", wordings[number % len(wordings)])
    system = expert.system or variant.system or context.system_prompt
    prompt = answer_prompt(wording, system)
    model = expert.model or variant.model or context.model
    return ChatRequest(model, prompt, sampling, vote=number)


def vote_of(context: AmplifyContext, question: str, number: int, reply: Completion) -> Vote:
    """A copy's reply as a vote, which red flags and the check may refuse."""
    text, weight = context.normalise(reply.text), context.votes.variant(number).weight
    if reply.filtered:
        ok, flag = False, "filtered"
    elif not text:  # Its tool turns or its budget may end before it says anything.
        ok, flag = False, "only_reasoned" if reply.reasoning.strip() else "unanswered"
    elif reply.prints_call:
        ok, flag = False, "printed_call"
    elif flag := context.flags.of(reply):
        ok = False
    else:
        verdict = verdict_of(context.checker, question, text)
        ok, flag = verdict.ok, verdict.rule
    return Vote(text, ok, reply.min_logprob, weight, flag, reply.truncated)


async def _merge_equivalent(
    same: Equivalence,
    calls: ModelCalls,
    question: str,
    known: Sequence[Vote],
    batch: Sequence[Vote],
) -> tuple[list[Vote], EndpointError | None]:
    """The batch with one text for each answer: the text that an equivalent earlier vote has.

    Known votes are not compared again. The error, if any, ended the comparison early.
    """
    texts = list(dict.fromkeys(vote.text for vote in known if vote.ok))
    merged: list[Vote] = []
    for number, vote in enumerate(batch):
        text = vote.text
        if vote.ok and text not in texts:
            for other in texts:
                try:
                    if await same.same(calls, question, other, text):
                        text = other
                        break
                except EndpointError as failure:
                    return [*merged, *batch[number:]], failure
            else:
                texts.append(text)
        merged.append(replace(vote, text=text))
    return merged, None


async def _answer_by_panel(
    context: AmplifyContext, node: NodeRef, budget: Budget, experts: Sequence[Expert]
) -> Outcome:
    """Ask every expert once and combine their answers.

    The experts and the combiner share `budget` equally. A failed expert does not stop the others.
    """
    number, read = first_vote(context, node), set[str]()
    *shares, left = budget.split(len(experts) + 1)

    async def ask(expert: Expert, share: Budget) -> tuple[Vote | str, Spent]:
        if share.empty or context.spend_limit.lacks:
            return "over budget", NOTHING_SPENT
        try:
            reply = await sample_answer(context, node, number, share, expert)
        except EndpointError as failure:
            return str(failure), NOTHING_SPENT
        read.update(reply.labels)
        return vote_of(context, node.question, number, reply.completion), reply.spent

    results = await asyncio.gather(*map(ask, experts, shares))
    votes = list(zip(experts, (vote for vote, _ in results), strict=True))
    spent, key = plus(*(cost for _, cost in results)), node.key("consensus", number)
    outcome, detail = await combine_votes(context, key, node.question, votes, left, spent)
    labels = joined(node.labels_under(context), read)
    outcome = permitted(context, node.path, outcome, labels)
    await record_answer(context, node, outcome, detail, ("panel", "direct"))
    return with_confidence(outcome, detail, None)


async def _answer_by_tool(context: AmplifyContext, node: NodeRef, name: str) -> Outcome:
    """The tool's reply is the answer, a refusal is a failure. It costs no model call."""
    labels = node.labels_under(context)
    reply, labels = await asked_tool(context, node.key("tool"), name, node.question, labels)
    outcome: Outcome = labelled(failed_outcome(reply.text), labels)
    if reply.ok:
        answer = context.normalise(reply.text)
        outcome = {**outcome, "answer": answer, "status": "unchecked", "error": None}
    await record_answer(context, node, outcome, {"votes": 0})
    return outcome


async def record_answer(
    context: AmplifyContext,
    node: NodeRef,
    outcome: Outcome,
    more: Mapping[str, Any],
    kinds: Sequence[str] = ("direct",),
) -> None:
    """Record a question that was answered without the overseer, and emit the event."""
    ending = {name: outcome[name] for name in ("answer", "status", "error")}
    detail: dict[str, Any] = {"question": node.question, **ending, **more}
    if labels := outcome.get("labels"):
        detail["labels"] = labels
    ok, key = is_accepted(outcome["status"]), f"{node.step}.{node.retries}"
    for kind in kinds:
        await context.recorded_client.store.add_judgement(
            node.question_id, node.path, kind, ok, detail, key=key
        )
    context.emit(answered(node.path, True, detail))


def step_and_retries(key: str) -> tuple[int, int]:
    """A direct answer's step and retries, from the key of its judgement; see `record_answer`."""
    step, retries = key.rsplit(":", 2)[1].split(".")
    return int(step), int(retries)
