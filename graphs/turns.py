"""One model's reply in as many turns as its tools take (seed 8.4.1, assistants).

Without tools it is one model call. With tools a model may ask for calls, whose replies it is shown,
until it answers or its turns end; each of its calls, and each tool's, is a row of the call log.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agents.budget import Budget
from agents.tool_calls import run_call
from agents.tools import Tool
from agents.types import ChatRequest, Completion, Turn
from graphs.state import AmplifyContext, Spent, plus
from graphs.traces import CallKey


@dataclass(frozen=True)
class Reply:
    """What a model said in the end, and what all its turns cost."""

    completion: Completion
    spent: Spent


async def reply_in_turns(
    context: AmplifyContext,
    tools: Sequence[Tool],
    key: CallKey,
    request: ChatRequest,
    left: Budget,
) -> Reply:
    """Ask for one reply. `left` is for all its turns; later ones have `~turn` behind their role.

    Raises:
        EndpointError: a call failed for good.
    """
    if context.limits.tool_turns == 0:
        tools = ()
    reply, spent = await _ask(context, key, _with(request, tools))
    for turn in range(1, context.limits.tool_turns + 1):
        left = left.minus(1, reply.tokens)
        if not tools or not reply.tool_calls or left.empty:
            break
        said = await _called(context, tools, key, turn, reply)
        request = replace(
            request,
            messages=request.messages + said,
            sampling=replace(
                request.sampling, max_tokens=min(request.sampling.max_tokens, left.tokens)
            ),
        )
        # In its last turn a model is given no tools, so it must answer.
        offered = tools if turn < context.limits.tool_turns else ()
        reply, cost = await _ask(
            context, replace(key, role=f"{key.role}~{turn}"), _with(request, offered)
        )
        spent = plus(spent, cost)
    return Reply(reply, spent)


def _with(request: ChatRequest, tools: Sequence[Tool]) -> ChatRequest:
    """Tools and a schema for the reply exclude one another at many endpoints."""
    if not tools:
        return request
    return replace(request, tools=tuple(tool.spec for tool in tools), schema="")


async def _ask(
    context: AmplifyContext, key: CallKey, request: ChatRequest
) -> tuple[Completion, Spent]:
    reply = await context.caller.ask(key, request)
    context.heard(key, request.model, reply)
    return reply, {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens}


async def _called(
    context: AmplifyContext, tools: Sequence[Tool], key: CallKey, turn: int, reply: Completion
) -> tuple[Turn, ...]:
    """The turns that a model's wishes add: its own, and each tool's reply."""
    wishes = reply.tool_calls[: context.limits.fanout]
    own = [
        {"id": wish.id, "type": "function"}
        | {"function": {"name": wish.name, "arguments": wish.arguments}}
        for wish in wishes
    ]
    turns: list[Turn] = [("assistant", reply.text, json.dumps({"tool_calls": own}))]
    for index, wish in enumerate(wishes):
        context.emit(
            {"event": "tool", "path": key.path, "tool": wish.name, "arguments": wish.arguments}
        )
        place = replace(key, role=f"{key.role}~{turn}.tool{index}")
        said = await context.caller.tool(
            place, wish.name, wish.arguments, lambda wish=wish: run_call(tools, wish)
        )
        turns.append(("tool", said.text, json.dumps({"tool_call_id": wish.id})))
    return tuple(turns)
