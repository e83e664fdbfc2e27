"""One copy's answer to one question, with the tools that it is granted, and its record.

Without tools an answer is one model call. With tools the model may ask for tool calls, read their
replies, and go on until it answers or its turns end (seed 8.4.1, assistants). Each model call and
each tool call is a row of the call log.
"""

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.tools.protocol import CALL_SECONDS, Tool, ToolReply, guarded, run_call
from reflux.agents.types import ChatRequest, Completion, Sampling, Turn
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.experts import Expert
from reflux.graphs.amplify.state import NOTHING_SPENT, Outcome, Spent, Status, is_accepted, plus
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.store import CallKey
from reflux.graphs.voting.voting import Vote

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


@dataclass(frozen=True)
class Reply:
    """A model's last completion, and the cost of all its turns."""

    completion: Completion
    spent: Spent


async def run_tool_loop(
    context: AmplifyContext,
    tools: Sequence[Tool],
    key: CallKey,
    request: ChatRequest,
    left: Budget,
) -> Reply:
    """Ask for one reply. `left` pays for all turns; later turns append `~turn` to their role.

    Raises:
        EndpointError: a call failed for good.
    """
    if context.limits.tool_turns == 0:
        tools = ()
    reply, spent = await _ask(context, key, request, tools)
    for turn in range(1, context.limits.tool_turns + 1):
        left = left.minus(1, reply.tokens)
        if not tools or not reply.tool_calls or left.empty:
            break
        added = await _run_calls(context, tools, key, turn, reply)
        max_tokens = min(request.sampling.max_tokens, left.tokens)
        request = replace(
            request,
            messages=request.messages + added,
            sampling=replace(request.sampling, max_tokens=max_tokens),
        )
        # The last turn offers no tools, so the model must answer.
        offered = tools if turn < context.limits.tool_turns else ()
        turn_key = replace(key, role=f"{key.role}~{turn}")
        reply, cost = await _ask(context, turn_key, request, offered)
        spent = plus(spent, cost)
    return Reply(reply, spent)


async def _ask(
    context: AmplifyContext, key: CallKey, request: ChatRequest, tools: Sequence[Tool]
) -> tuple[Completion, Spent]:
    if tools:  # Many endpoints refuse tools together with a schema.
        request = replace(request, tools=tuple(tool.spec for tool in tools), schema="")
    reply = await context.recorded_client.ask(key, request)
    context.heard(key, request.model, reply)
    return reply, {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens}


async def _run_calls(
    context: AmplifyContext, tools: Sequence[Tool], key: CallKey, turn: int, reply: Completion
) -> tuple[Turn, ...]:
    """The messages that tool calls add: the model's own, and each tool's reply."""
    calls = reply.tool_calls[: context.limits.fanout]
    fields = [
        {"id": call.id, "type": "function"}
        | {"function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    turns: list[Turn] = [("assistant", reply.text, json.dumps({"tool_calls": fields}))]
    for index, call in enumerate(calls):
        context.emit(
            {"event": "tool", "path": key.path, "tool": call.name, "arguments": call.arguments}
        )
        tool_reply = await context.recorded_client.tool(
            replace(key, role=f"{key.role}~{turn}.tool{index}"),
            call.name,
            call.arguments,
            lambda call=call: run_call(tools, call),
        )
        turns.append(("tool", tool_reply.text, json.dumps({"tool_call_id": call.id})))
    return tuple(turns)


async def sample_answer(
    context: AmplifyContext, node: NodeRef, number: int, left: Budget, expert: Expert = PLAIN
) -> Reply:
    """Ask one copy. `number` is its vote, and 0 is greedy; `left` pays for all its turns.

    Raises:
        EndpointError: a call failed for good.
    """
    role = f"answer:{expert.name}" if expert.name else "answer"
    request = _request(context, node.question, number, left.tokens, expert)
    tools = context.grants.get("answer", ())
    return await run_tool_loop(context, tools, node.key(role, number), request, left)


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
    variant = context.votes.variant(number)
    sampling = Sampling(
        temperature=context.votes.warmth(number),
        max_tokens=min(context.answer_tokens(question), tokens),
        top_logprobs=context.top_logprobs,
        seed=context.seed + number,
        stop=context.stop,
    )
    wordings = context.wordings(question) or (question,)
    wording = variant.wording.replace("{question}", wordings[number % len(wordings)])
    prompt = context.prompt(wording, expert.system or variant.system)
    model = expert.model or variant.model or context.model
    return ChatRequest(model, prompt, sampling, vote=number)


def vote_of(context: AmplifyContext, question: str, number: int, reply: Completion) -> Vote:
    """A copy's reply as a vote, which red flags and the check may refuse."""
    text = context.normalise(reply.text)
    weight = context.votes.variant(number).weight
    if not text:  # Its tool turns or its budget may end before it says anything.
        ok, flag = False, "unanswered"
    elif flag := context.flags.of(reply):
        ok = False
    else:
        verdict = context.checker.check(question, text)
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
    replies: dict[int, T] = {}
    failure: EndpointError | None = None
    for index, result in enumerate(results):
        if isinstance(result, EndpointError):
            failure = failure or result
        elif isinstance(result, BaseException):
            raise result
        else:
            replies[index] = result
    return replies, failure


async def answer_by_tool(context: AmplifyContext, node: NodeRef, name: str) -> Outcome:
    """Answer `to="tool:NAME"`: the tool's reply is the answer, a refusal is a failure.

    It costs no model call.
    """
    tool = context.tools.get(name)
    context.emit({"event": "tool", "path": node.path, "tool": name, "arguments": node.question})
    if tool is None:
        names = ", ".join(sorted(context.tools)) or "no tool"
        reply = ToolReply(
            f"the overseer asked the tool {name!r}, which it was not given; it has {names}", False
        )
    else:
        work = partial(guarded_answer, tool, node.question)
        reply = await context.recorded_client.tool(node.key("tool"), name, node.question, work)
    status: Status = "unchecked" if reply.ok else "failed"
    outcome: Outcome = {
        "answer": context.normalise(reply.text) if reply.ok else None,
        "status": status,
        "error": None if reply.ok else reply.text,
        "spent": NOTHING_SPENT,
    }
    await record_answer(context, node, outcome, {"votes": 0})
    return outcome


async def guarded_answer(tool: Tool, question: str) -> ToolReply:
    """A tool's answer to the overseer, within the limits of every tool call."""
    return await guarded(tool.answer(question), CALL_SECONDS)


async def record_answer(
    context: AmplifyContext,
    node: NodeRef,
    outcome: Outcome,
    more: Mapping[str, Any],
    kinds: Sequence[str] = ("direct",),
) -> None:
    """Record a question that was answered without the overseer, and emit the event."""
    detail: dict[str, Any] = {
        "question": node.question,
        "answer": outcome["answer"],
        "status": outcome["status"],
        "error": outcome["error"],
        **more,
    }
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
