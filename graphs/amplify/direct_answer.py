"""A question answered without the overseer: by a vote of copies, an expert, a panel, or a tool.

A vote is self-consistency (Wang et al. 2022) with a stopping rule: batches of copies until the
rule decides. A panel asks every expert once, side by side, and combines their answers. Each is one
function call inside `subtask`; no graph runs for a direct answer.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.prompts import answer_prompt
from reflux.agents.tools.protocol import CALL_SECONDS, ToolReply, guarded
from reflux.agents.types import ChatRequest, Completion, Sampling
from reflux.agents.verifiers import Equivalence, verdict_of
from reflux.graphs.amplify.context import AmplifyContext, Reply
from reflux.graphs.amplify.experts import combine_votes
from reflux.graphs.amplify.model_calls import ModelCalls, run_tool_loop
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

    def key(self, role: str, vote: int = 0) -> CallKey:
        """The key of a call made for this node."""
        return CallKey(self.question_id, self.path, role, self.step, self.retries, vote)


async def answer_directly(
    context: AmplifyContext, node: NodeRef, budget: Budget, to: str = ""
) -> Outcome:
    """Answer one question without the overseer; `to` is as in `SubQuestion`."""
    if to.startswith("tool:"):
        return await _answer_by_tool(context, node, to.removeprefix("tool:"))
    context = context.at(node.path)
    by_name = {f"expert:{expert.name}": expert for expert in context.experts}
    if to.split(":")[0] == "experts" or (not to and context.everyone):
        names = to.partition(":")[2].split(",") if ":" in to else None
        panel = [e for e in context.experts if names is None or e.name in names]
        if panel and len(panel) >= len(names or ()):
            return await _answer_by_panel(context, node, budget, panel)
    elif not to or to in by_name:
        return await _answer_by_votes(context, node, budget, by_name.get(to, PLAIN))
    known = ", ".join(by_name) or "no expert"
    outcome = failed_outcome(f"the overseer asked {to!r}, which does not exist; there is {known}")
    await record_answer(context, node, outcome, {"votes": 0})
    return outcome


async def _answer_by_votes(
    context: AmplifyContext, node: NodeRef, budget: Budget, expert: Expert
) -> Outcome:
    """Ask copies in batches until the stopping rule decides.

    The first vote is greedy unless this is a retry; every other one is sampled with its own seed.
    A batch holds the fewest votes that could decide.
    """
    votes: list[Vote] = []
    spent: Spent = NOTHING_SPENT
    status: Status | None = None
    error: str | None = None
    compared = 0
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
        batch = [
            vote_of(context, node.question, number + index, reply.completion)
            for index, reply in replies.items()
        ]
        if context.same is not None and failure is None:
            left = budget.minus(spent["calls"], spent["tokens"])
            calls = ModelCalls(context, node.key("same"), node.retries, left, "same", compared)
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
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": spent}
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
    return await run_tool_loop(context, context.grants.get("answer", ()), key, request, left)


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
    prompt = answer_prompt(wording, expert.system or variant.system or context.system_prompt)
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


T = TypeVar("T")


async def run_concurrently(
    calls: Sequence[Coroutine[Any, Any, T]],
) -> tuple[dict[int, T], EndpointError | None]:
    """Results by position, and the first failure, which does not stop the other calls.

    Raises:
        Exception: anything but an `EndpointError` that one of them raises.
    """
    if len(calls) == 1:  # The usual batch; it needs no task.
        try:
            return {0: await calls[0]}, None
        except EndpointError as failure:
            return {}, failure
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, EndpointError):
            raise result
    replies = {i: each for i, each in enumerate(results) if not isinstance(each, BaseException)}
    failures = (each for each in results if isinstance(each, EndpointError))
    return replies, next(failures, None)


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
    number = first_vote(context, node)
    *shares, left = budget.split(len(experts) + 1)

    async def ask(expert: Expert, share: Budget) -> tuple[Vote | str, Spent]:
        if share.empty or context.spend_limit.lacks:
            return "over budget", NOTHING_SPENT
        try:
            reply = await sample_answer(context, node, number, share, expert)
        except EndpointError as failure:
            return str(failure), NOTHING_SPENT
        return vote_of(context, node.question, number, reply.completion), reply.spent

    results = await asyncio.gather(*map(ask, experts, shares))
    votes = list(zip(experts, (vote for vote, _ in results), strict=True))
    spent, key = plus(*(cost for _, cost in results)), node.key("consensus", number)
    outcome, detail = await combine_votes(context, key, node.question, votes, left, spent)
    await record_answer(context, node, outcome, detail, ("panel", "direct"))
    return with_confidence(outcome, detail, None)


async def _answer_by_tool(context: AmplifyContext, node: NodeRef, name: str) -> Outcome:
    """The tool's reply is the answer, a refusal is a failure. It costs no model call."""
    tool = context.tools.get(name)
    context.emit({"event": "tool", "path": node.path, "tool": name, "arguments": node.question})
    if tool is None:
        names = ", ".join(sorted(context.tools)) or "no tool"
        reply = ToolReply(
            f"the overseer asked the tool {name!r}, which it was not given; it has {names}", False
        )
    else:
        reply = await context.recorded_client.tool(
            node.key("tool"),
            name,
            node.question,
            lambda: guarded(lambda: tool.answer(node.question), CALL_SECONDS),
        )
    outcome: Outcome = failed_outcome(reply.text)
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
