"""The model calls of one step, check or comparison: recorded, charged, and with granted tools.

With tools the model may ask for tool calls, read their replies, and continue until it answers or
its turns end (AI Safety Atlas 8.4.1, assistants). Each model call and each tool call is a row of
the call log.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError
from reflux.agents.tools.protocol import Tool, run_call
from reflux.agents.types import ChatRequest, Completion, Turn
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
) -> Reply:
    """Ask for one reply. `left` pays for all turns; later turns append `~turn` to their role.

    Raises:
        EndpointError: a call failed for good.
    """
    max_turns = context.limits.tool_turns
    if not tools or max_turns == 0:
        return await context.ask(key, request)
    # Many endpoints refuse tools together with a schema.
    offer = {"tools": tuple(tool.spec for tool in tools), "schema": ""}
    reply = await context.ask(key, replace(request, **offer))
    spent = reply.spent
    for turn in range(1, max_turns + 1):
        left = left.minus(1, reply.completion.tokens)
        if not reply.completion.tool_calls or left.empty:
            break
        added = await _run_calls(context, tools, key, turn, reply.completion)
        max_tokens = min(request.sampling.max_tokens, left.tokens)
        request = replace(
            request,
            messages=request.messages + added,
            sampling=replace(request.sampling, max_tokens=max_tokens),
        )
        # The last turn offers no tools, so the model must answer.
        turn_request = replace(request, **offer) if turn < max_turns else request
        reply = await context.ask(replace(key, role=f"{key.role}~{turn}"), turn_request)
        spent = plus(spent, reply.spent)
    return Reply(reply.completion, spent)


async def _run_calls(
    context: AmplifyContext, tools: Sequence[Tool], key: CallKey, turn: int, reply: Completion
) -> tuple[Turn, ...]:
    """The messages that tool calls add: the model's own, and each tool's reply."""
    calls = reply.tool_calls[: context.limits.fanout]
    fields = [call.to_json() for call in calls]
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
        reply = await run_tool_loop(self.amplify, tools, key, request, budget)
        self.own_spent = plus(self.own_spent, reply.spent)
        return reply.completion
