"""One copy's answer to one question, with the tools that it was granted (seed 8.4.1, assistants).

A copy without tools is one model call. With tools it may ask for calls, whose replies it is shown,
until it answers or its turns end; each of its calls, and each tool's, is a row of the call log.
"""

import json
from dataclasses import dataclass, replace
from functools import partial

from agents.budget import Budget
from agents.tool_calls import CALL_SECONDS, guarded, run_call
from agents.tools import Tool, ToolReply
from agents.types import ChatRequest, Completion, Sampling, ToolCall, Turn
from graphs.experts import Expert
from graphs.state import NOTHING_SPENT, AmplifyContext, Outcome, Spent, Status, plus
from graphs.traces import CallKey

PLAIN = Expert("")
"""A plain copy of X."""


@dataclass(frozen=True)
class Place:
    """Where in which tree a question is answered directly."""

    question: str
    question_id: str
    path: str
    step: int = 0
    retries: int = 0

    def key(self, role: str, vote: int = 0) -> CallKey:
        """The key of a call made here."""
        return CallKey(self.question_id, self.path, role, self.step, self.retries, vote)


@dataclass(frozen=True)
class CopyReply:
    """What a copy said in the end, and what that cost."""

    completion: Completion
    spent: Spent


async def ask_copy(
    context: AmplifyContext, place: Place, number: int, left: Budget, expert: Expert = PLAIN
) -> CopyReply:
    """Have one copy answer. `number` is its vote, and 0 is greedy; `left` is for all its turns.

    Raises:
        EndpointError: a call failed for good.
    """
    tools = context.grants.get("answer", ())
    messages: tuple[Turn, ...] = context.prompt(place.question, expert.system)
    model = expert.model or context.model
    role = f"answer:{expert.name}" if expert.name else "answer"
    spent: Spent = NOTHING_SPENT
    turn = 0
    while True:
        may_call = bool(tools) and turn < context.limits.tool_turns
        request = replace(
            _request(context, place.question, model, number, left.tokens),
            messages=messages,
            tools=tuple(tool.spec for tool in tools) if may_call else (),
        )
        key = place.key(f"{role}.{turn}" if turn else role, number)
        reply = await context.caller.ask(key, request)
        context.purse.pay(model, reply)
        cost: Spent = {"calls": 1, "cached": int(reply.cached), "tokens": reply.tokens}
        spent, left = plus(spent, cost), left.minus(1, reply.tokens)
        if not reply.tool_calls or not may_call or left.empty:
            return CopyReply(reply, spent)
        messages += await _called(context, place, f"{role}.{turn}", number, reply)
        turn += 1


def first_request(context: AmplifyContext, question: str) -> ChatRequest:
    """The first call that a plain copy makes on a question, where its budget does not pinch."""
    request = _request(context, question, context.model, 0, context.limits.tokens)
    return replace(request, tools=tuple(tool.spec for tool in context.grants.get("answer", ())))


def _request(
    context: AmplifyContext, question: str, model: str, number: int, tokens: int
) -> ChatRequest:
    sampling = Sampling(
        temperature=context.votes.temperature if number else 0.0,
        max_tokens=min(context.answer_tokens(question), tokens),
        top_logprobs=context.top_logprobs,
        seed=context.seed + number,
        stop=context.stop,
    )
    return ChatRequest(model, context.prompt(question), sampling, vote=number)


async def _called(
    context: AmplifyContext, place: Place, role: str, number: int, reply: Completion
) -> tuple[Turn, ...]:
    """The turns that a model's wish for tools adds: its own, and each tool's reply."""
    wishes = reply.tool_calls[: context.limits.fanout]
    own = [
        {"id": wish.id, "type": "function"}
        | {"function": {"name": wish.name, "arguments": wish.arguments}}
        for wish in wishes
    ]
    turns: list[Turn] = [("assistant", reply.text, json.dumps({"tool_calls": own}))]
    for index, wish in enumerate(wishes):
        said = await _call(context, place.key(f"{role}.tool{index}", number), wish)
        turns.append(("tool", said.text, json.dumps({"tool_call_id": wish.id})))
    return tuple(turns)


async def _call(context: AmplifyContext, key: CallKey, wish: ToolCall) -> ToolReply:
    tools = context.grants.get("answer", ())
    emitted = {"event": "tool", "path": key.path, "tool": wish.name, "arguments": wish.arguments}
    context.emit(emitted)
    return await context.caller.tool(key, wish.name, wish.arguments, lambda: run_call(tools, wish))


async def answer_by_tool(context: AmplifyContext, place: Place, name: str) -> Outcome:
    """H's sub-question to a tool, `to="tool:NAME"`: its reply is the answer, a refusal a failure.

    It costs no model call.
    """
    tool = context.tools.get(name)
    asked = place.question
    context.emit({"event": "tool", "path": place.path, "tool": name, "arguments": asked})
    if tool is None:
        there = ", ".join(sorted(context.tools)) or "no tool"
        said = ToolReply(
            f"H asked the tool {name!r}, which it was not given; it has {there}", False
        )
    else:
        work = partial(guarded_answer, tool, asked)
        said = await context.caller.tool(place.key("tool"), name, asked, work)
    answer = context.normalise(said.text) if said.ok else None
    status: Status = "ok" if said.ok else "failed"
    error = None if said.ok else said.text
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": NOTHING_SPENT}
    detail = {"question": asked, "answer": answer, "status": status, "error": error, "votes": 0}
    key = f"{place.step}.{place.retries}"
    await context.caller.store.add_judgement(
        place.question_id, place.path, "leaf", said.ok, detail, key=key
    )
    context.emit({"event": "answered", "path": place.path, "leaf": True, **detail})
    return outcome


async def guarded_answer(tool: Tool, question: str) -> ToolReply:
    """A tool's answer to H, within the limits of every call."""
    return await guarded(tool.answer(question), CALL_SECONDS)
