"""One model's reply in as many turns as its tools take (seed 8.4.1, assistants).

Without tools it is one model call. With tools a model may ask for calls, whose replies it is shown,
until it answers or its turns end; each of its calls, and each tool's, is a row of the call log.

One copy's answer to one question, with the tools that it was granted, or a tool's to H.
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
from reflux.graphs.amplify.state import NOTHING_SPENT, Outcome, Spent, Status, plus
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.store import CallKey
from reflux.graphs.voting.voting import Vote


@dataclass(frozen=True)
class Reply:
    """What a model said in the end, and what all its turns cost."""

    completion: Completion
    spent: Spent


async def run_tool_loop(
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
    reply = await context.recorded_client.ask(key, request)
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
        said = await context.recorded_client.tool(
            place, wish.name, wish.arguments, lambda wish=wish: run_call(tools, wish)
        )
        turns.append(("tool", said.text, json.dumps({"tool_call_id": wish.id})))
    return tuple(turns)


PLAIN = Expert("")
"""A plain copy of X."""


@dataclass(frozen=True)
class NodeRef:
    """Where in which tree a question is answered directly."""

    question: str
    question_id: str
    path: str
    step: int = 0
    retries: int = 0

    def key(self, role: str, vote: int = 0) -> CallKey:
        """The key of a call made here."""
        return CallKey(self.question_id, self.path, role, self.step, self.retries, vote)


async def sample_answer(
    context: AmplifyContext, place: NodeRef, number: int, left: Budget, expert: Expert = PLAIN
) -> Reply:
    """Have one copy answer. `number` is its vote, and 0 is greedy; `left` is for all its turns.

    Raises:
        EndpointError: a call failed for good.
    """
    role = f"answer:{expert.name}" if expert.name else "answer"
    request = _request(context, place.question, number, left.tokens, expert)
    tools = context.grants.get("answer", ())
    return await run_tool_loop(context, tools, place.key(role, number), request, left)


def first_request(context: AmplifyContext, question: str) -> ChatRequest:
    """The first call that a plain copy makes on a question, where its budget does not pinch."""
    request = _request(context, question, 0, context.limits.tokens, PLAIN)
    return replace(request, tools=tuple(tool.spec for tool in context.grants.get("answer", ())))


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
    asked = variant.wording.replace("{question}", wordings[number % len(wordings)])
    prompt = context.prompt(asked, expert.system or variant.system)
    model = expert.model or variant.model or context.model
    return ChatRequest(model, prompt, sampling, vote=number)


def chain_link_request(context: AmplifyContext, question: str, number: int) -> ChatRequest:
    """The call of vote `number` on a link of a chain; copies on a chain have no tools."""
    return _request(context, question, number, context.limits.tokens, PLAIN)


def vote_of(context: AmplifyContext, question: str, number: int, reply: Completion) -> Vote:
    """A copy's reply as a vote, which flags and check may refuse."""
    text = context.normalise(reply.text)
    weight = context.votes.variant(number).weight
    if not text:  # Of tools, its turns or its budget may have ended before it said anything.
        return Vote(text, False, reply.min_logprob, weight, "unanswered")
    if flag := context.flags.of(reply):
        return Vote(text, False, reply.min_logprob, weight, flag)
    verdict = context.checker.check(question, text)
    return Vote(text, verdict.ok, reply.min_logprob, weight, verdict.rule)


T = TypeVar("T")


async def run_concurrently(
    asked: Sequence[Coroutine[Any, Any, T]],
) -> tuple[dict[int, T], EndpointError | None]:
    """What came of several calls, by position, and the first failure; the others go on beside it.

    Raises:
        Exception: anything but an `EndpointError` that one of them raises.
    """
    if len(asked) == 1:  # Most waves are: no task is made for it.
        try:
            return {0: await asked[0]}, None
        except EndpointError as failure:
            return {}, failure
    came = await asyncio.gather(*asked, return_exceptions=True)
    replies: dict[int, T] = {}
    failure: EndpointError | None = None
    for at, reply in enumerate(came):
        if isinstance(reply, EndpointError):
            failure = failure or reply
        elif isinstance(reply, BaseException):
            raise reply
        else:
            replies[at] = reply
    return replies, failure


async def answer_by_tool(context: AmplifyContext, place: NodeRef, name: str) -> Outcome:
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
        said = await context.recorded_client.tool(place.key("tool"), name, asked, work)
    answer = context.normalise(said.text) if said.ok else None
    status: Status = "ok" if said.ok else "failed"
    error = None if said.ok else said.text
    outcome: Outcome = {"answer": answer, "status": status, "error": error, "spent": NOTHING_SPENT}
    await record_answer(context, place, outcome, {"votes": 0})
    return outcome


async def record_answer(
    context: AmplifyContext,
    place: NodeRef,
    outcome: Outcome,
    more: Mapping[str, Any],
    kinds: Sequence[str] = ("leaf",),
) -> None:
    """Judge a question that was answered without H, and tell the listeners."""
    detail: dict[str, Any] = {
        "question": place.question,
        "answer": outcome["answer"],
        "status": outcome["status"],
        "error": outcome["error"],
        **more,
    }
    ok, key = outcome["status"] == "ok", f"{place.step}.{place.retries}"
    for kind in kinds:
        await context.recorded_client.store.add_judgement(
            place.question_id, place.path, kind, ok, detail, key=key
        )
    context.emit(answered(place.path, True, detail))


def node_of_key(key: str) -> tuple[int, int]:
    """The step and the try of a leaf, out of the key of its judgement; see `record_answer`."""
    step, tried = key.rsplit(":", 2)[1].split(".")
    return int(step), int(tried)


async def guarded_answer(tool: Tool, question: str) -> ToolReply:
    """A tool's answer to H, within the limits of every call."""
    return await guarded(tool.answer(question), CALL_SECONDS)
