"""The model calls of one step, check or comparison: recorded, charged, and with granted tools.

With tools the model may ask for tool calls, read their replies, and continue until it answers or
its turns end (AI Safety Atlas 8.4.1, assistants). Each model call and each tool call is a row of
the call log.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.policy.data import NOTE, block_of, plain
from reflux.agents.policy.policy import joined
from reflux.agents.tools.protocol import CALL_SECONDS, Tool, ToolReply, guarded, run_call
from reflux.agents.types import ChatRequest, Completion, ToolCall, Turn
from reflux.graphs.amplify.context import AmplifyContext, Reply
from reflux.graphs.amplify.state import NOTHING_SPENT, Spent, plus
from reflux.graphs.traces.store import CallKey

RETRY_STRIDE = 1_000
"""Distance between the seeds and votes of one retry of a question and those of the next."""


async def run_tool_loop(
    context: AmplifyContext,
    tools: Sequence[Tool],
    key: CallKey,
    request: ChatRequest,
    left: Budget,
    labels: tuple[str, ...] = (),
) -> Reply:
    """Ask for one reply. `left` pays for all turns; later turns append `~turn` to their role.

    Under a policy `labels` are those of what the request holds, and the reply has those of the
    tools' replies as well.

    Raises:
        EndpointError: a call failed for good.
    """
    max_turns, policy = context.limits.tool_turns, context.policy
    tools = tools if policy is None else policy.offered(labels, tools)
    if not tools or max_turns == 0:
        return replace(await context.ask(key, request), labels=labels)
    # Many endpoints refuse tools together with a schema.
    offer = {"tools": tuple(tool.spec for tool in tools), "schema": ""}
    reply = await context.ask(key, replace(request, **offer))
    spent = reply.spent
    for turn in range(1, max_turns + 1):
        left = left.minus(1, reply.completion.tokens)
        if not reply.completion.tool_calls or left.empty:
            break
        added, labels = await _run_calls(context, tools, key, turn, reply.completion, labels)
        max_tokens = min(request.sampling.max_tokens, left.tokens)
        request = replace(
            request,
            messages=request.messages + added,
            sampling=replace(request.sampling, max_tokens=max_tokens),
        )
        # The last turn offers no tools, so the model must answer.
        offered = tools if policy is None else policy.offered(labels, tools)
        offer["tools"] = tuple(tool.spec for tool in offered)
        turn_request = replace(request, **offer) if turn < max_turns else request
        reply = await context.ask(replace(key, role=f"{key.role}~{turn}"), turn_request)
        spent = plus(spent, reply.spent)
    return Reply(reply.completion, spent, labels)


async def _run_calls(
    context: AmplifyContext,
    tools: Sequence[Tool],
    key: CallKey,
    turn: int,
    reply: Completion,
    labels: tuple[str, ...],
) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """(the messages that tool calls add: the model's own, and each tool's reply; the labels of all
    that the model has read then)."""
    policy, read = context.policy, labels
    calls = reply.tool_calls[: context.limits.fanout]
    fields = [call.to_json() for call in calls]
    turns: list[Turn] = [("assistant", reply.text, json.dumps({"tool_calls": fields}))]
    for index, call in enumerate(calls):
        context.emit(
            {"event": "tool", "path": key.path, "tool": call.name, "arguments": call.arguments}
        )
        tool = next((tool for tool in tools if tool.spec.name == call.name), None)
        refusal = policy.tool_problem(labels, call.name, tool) if policy and tool else None
        tool_reply = await context.recorded_client.tool(
            replace(key, role=f"{key.role}~{turn}.tool{index}"),
            call.name,
            call.arguments,
            lambda call=call, refusal=refusal: _reply_to(tools, call, refusal),
        )
        text = tool_reply.text
        if policy and tool and not refusal:
            added = policy.labels_of_reply(call.name, tool)
            text = f"{block_of(text, added)}\n{NOTE}" if added else text
            read = joined(read, added)
        turns.append(("tool", text, json.dumps({"tool_call_id": call.id})))
    return tuple(turns), read


async def _reply_to(tools: Sequence[Tool], call: ToolCall, refusal: str | None) -> ToolReply:
    """The reply to a model's call, or why the policy refuses it."""
    return ToolReply(refusal, ok=False) if refusal else await run_call(tools, call)


async def asked_tool(
    context: AmplifyContext, key: CallKey, name: str, question: str, labels: Sequence[str]
) -> tuple[ToolReply, tuple[str, ...]]:
    """(the reply of a tool that a sub-question goes to, its labels); a refusal, too, is a reply."""
    policy, tool = context.policy, context.tools[name]
    if policy and (refusal := policy.tool_problem(labels, name, tool)) is not None:
        return ToolReply(refusal, ok=False), ()
    argument = plain(question) if policy else question
    context.emit({"event": "tool", "path": key.path, "tool": name, "arguments": argument})
    reply = await context.recorded_client.tool(
        key, name, argument, lambda: guarded(lambda: tool.answer(argument), CALL_SECONDS)
    )
    return reply, joined(labels, policy.labels_of_reply(name, tool)) if policy else ()


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


@dataclass(eq=False)
class ModelCalls:
    """The model calls of one step, check or comparison: a `ModelContext`."""

    amplify: AmplifyContext
    key: CallKey
    """The step's key in the log."""
    retry_index: int
    """Numbers the retries that lead here."""
    limit: Budget
    role: str
    """The calls' role in the log."""
    call_count: int = 0
    """Calls under this key and role, earlier ones included."""
    labels: tuple[str, ...] = ()
    """Of what the calls' prompts hold, and of what their tools replied so far."""
    own_spent: Spent = field(init=False, default_factory=lambda: NOTHING_SPENT)

    @property
    def spent(self) -> Spent:
        return self.own_spent

    @property
    def model(self) -> str:
        return self.amplify.model

    @property
    def path(self) -> str:
        return self.key.path

    @property
    def budget(self) -> Budget:
        return self.limit.minus(self.spent["calls"], self.spent["tokens"])

    async def complete(self, request: ChatRequest) -> Completion:
        """Make one call; a retry of the question uses other seeds."""
        budget = self.budget
        if (lacking := self.amplify.spend_limit.lacks) is not None:
            raise EndpointError(f"no {lacking} left for this step: raise limits.{lacking}")
        if budget.empty:
            raise EndpointError(
                f"{budget.calls} calls and {budget.tokens} tokens are left for this step: raise "
                "limits.calls or limits.tokens"
            )
        self.call_count += 1
        shift = RETRY_STRIDE * self.retry_index
        sampling = replace(
            request.sampling,
            max_tokens=min(request.sampling.max_tokens, budget.tokens),
            seed=request.sampling.seed + shift,
        )
        if self.retry_index:
            temperature = max(sampling.temperature, self.amplify.votes.temperature)
            sampling = replace(sampling, temperature=temperature)
        request = replace(request, sampling=sampling, vote=request.vote + shift)
        key = replace(self.key, role=self.role, vote=self.call_count)
        tools = self.amplify.grants.get("overseer", ())
        reply = await run_tool_loop(self.amplify, tools, key, request, budget, self.labels)
        self.labels = reply.labels
        self.own_spent = plus(self.own_spent, reply.spent)
        return reply.completion
