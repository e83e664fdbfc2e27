"""Models under the names that an agent asks for: a student in the place of the model it learned
from.

    alias: {gpt-5: student}       who asks for gpt-5 is answered by the student
    split: {student: 0.1}         in one of ten trajectories; the endpoint gpt-5 answers the others
    fallback: {min_logprob: -3}   and where a reply of the student breaks a rule

A trajectory is answered by one model throughout, which its key decides, or its first message. Each
answer is recorded as a call of the agent's trajectory, those that broke a rule with the reason.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from reflux.agents.answer_checks import schema_problem
from reflux.agents.clients.reasoning import apart
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.types import ChatRequest as ModelRequest
from reflux.agents.types import Completion, Delta, ToolSpec, stream_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.ask import join
from reflux.graphs.traces.recording.placing import Place, Places
from reflux.graphs.traces.recording.recorder import node_named
from reflux.graphs.traces.recording.replies import ReplyBody
from reflux.graphs.traces.recording.requests import read_request
from reflux.graphs.traces.store import CallKey
from reflux.graphs.traces.trajectories import RecordedCall
from reflux.graphs.voting.confidence import Cascade, Scaling, confidence_of
from reflux.models import STUDENT
from reflux.routing import scaling_of
from reflux.server.chat_reply import Emit, Put, Reply, usage_of
from reflux.server.chat_request import ChatRequest
from reflux.server.settings import Fallback, ServeSettings

SOURCE = "serve"
Find = Callable[[str], Any]
"""The model of a name, or its tree; raises where there is none."""


@dataclass(frozen=True)
class Route:
    """Who answers a trajectory: a model, and another where it breaks a rule; None for neither."""

    first: str | None
    other: str | None


def check_aliases(settings: ServeSettings, find: Find, taken: Callable[[str], bool]) -> None:
    """Check the aliases of a server.

    Args:
        taken: whether a name is that of a model of the run.

    Raises:
        UsageError: a name has two meanings, or leads nowhere; a share or a rule has no other model.
    """
    for name, target in settings.alias.items():
        has_other = name in settings.endpoints
        if taken(name):
            raise UsageError(f"`alias` holds {name!r}, a model of this run: take another name")
        if target in settings.alias:
            raise UsageError(f"`alias` leads {name} to the alias {target}: name the model itself")
        try:
            find(target)
        except RefluxError as error:
            if not (has_other and target == STUDENT):  # Until a student is promoted.
                raise UsageError(f"`alias` leads {name} to {target!r}: {error}") from error
        if not has_other and settings.split.get(target, 1.0) < 1:
            raise UsageError(
                f"`split` sends {1 - settings.split[target]:.0%} of {name} elsewhere: add {name} "
                "to `endpoints`, which then answers them, or leave it out"
            )
        if not has_other and settings.fallback is not None:
            raise UsageError(
                f"`fallback` has no other model for {name}: add {name} to `endpoints`, or leave "
                "it out"
            )
    for target in settings.split:
        if target not in settings.alias.values():
            known = ", ".join(dict.fromkeys(settings.alias.values())) or "no model"
            raise UsageError(f"`split` holds {target!r}, and `alias` leads to {known}")
    if settings.fallback is not None and not settings.alias:
        raise UsageError("`fallback` needs `alias`, the names that it is for")


def route(place: Place, name: str, settings: ServeSettings, find: Find) -> Route:
    """Who answers a trajectory that asks for an alias."""
    target, other = settings.alias[name], name if name in settings.endpoints else None
    digest = hashlib.blake2b(place.opening, digest_size=8, person=b"split").digest()
    if int.from_bytes(digest) / 2**64 >= settings.split.get(target, 1.0):
        return Route(None, other)
    try:
        return Route(find(target), other)
    except RefluxError:
        if other is None:
            raise
        return Route(None, other)


def problem_of(
    reply: Completion,
    tools: Sequence[ToolSpec],
    schema: str,
    rules: Fallback,
    scaling: Scaling | None = None,
) -> str:
    """The rule that a reply breaks, in words; empty where it breaks none.

    `scaling` is that of the model's confidence.
    """
    if rules.min_confidence is not None and reply.min_logprob is not None:
        cascade = Cascade(rules.min_confidence, scaling or Scaling())
        found = cascade.probability(confidence_of({"votes": 1}, reply.min_logprob)) or 0.0
        if found < rules.min_confidence:
            return f"the model is sure to {found:.2f}, below {rules.min_confidence:g}"
    if rules.min_logprob is not None:
        least = reply.min_logprob
        if least is not None and least < rules.min_logprob:
            return f"a token has log-probability {least:.3g}, below {rules.min_logprob:g}"
    if not rules.schema:
        return ""
    if reply.prints_call:
        return "a tool call came as text"
    known = {tool.name: json.loads(tool.parameters) for tool in tools}
    for call in reply.tool_calls:
        if call.name not in known:
            return f"the tool {call.name[:80]!r} was not offered"
        if reason := schema_problem(call.arguments, known[call.name]):
            return f"the arguments of {call.name} break its schema: {reason}"
    if (
        schema
        and not reply.tool_calls
        and (reason := schema_problem(reply.text, json.loads(schema)))
    ):
        return f"the reply breaks the schema: {reason}"
    if not (reply.text or reply.tool_calls):
        return "the reply is empty"
    return ""


class AliasAnswer:
    """The answer to one request for an alias, not yet computed."""

    def __init__(
        self,
        run: OpenRun,
        places: Places,
        place: Place,
        taken: Route,
        requests: Callable[[str], list[ModelRequest]],
        rules: Fallback | None,
        headers: Mapping[str, str],
        streams: bool,
    ) -> None:
        """`requests` are those to a model, one for each choice."""
        self.id = f"{place.id}.{uuid.uuid4().hex[:8]}"
        """Of this answer alone; that of its trajectory is `place.id`."""
        self.place = place
        self._run, self._places, self._route, self._requests = run, places, taken, requests
        self._rules = rules
        """Of replies that are judged whole; None: each piece goes to the client as it comes."""
        self._node, self._streams = node_named(headers), streams
        self._has_begun = False
        """The client has a piece of the reply, so that no other model can answer."""
        self._calls: list[RecordedCall] = []

    async def compute(self, put: Put, emit: Emit) -> Reply:
        """Ask the first model, and the other where it must; record what both said."""
        try:
            replies = await self._replies(put)
        except asyncio.CancelledError:
            lost = Completion("", finish_reason="cancelled")
            self._add(lost, self._route.first or self._route.other, "the client left")
            await self._record(())
            raise
        except EndpointError:
            await self._record(())
            raise
        await self._record(replies)
        usage = usage_of(
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.completion_tokens for reply in replies),
        )
        return Reply(replies, usage, self._streams and self._rules is None)

    async def _replies(self, put: Put) -> list[Completion]:
        first, other = self._route.first, self._route.other
        if first is not None:
            requests = self._requests(first)
            if self._rules is not None and self._rules.needs_logprobs:
                requests = [_with_logprobs(request) for request in requests]
            try:
                async with asyncio.timeout(self._rules.seconds if self._rules else None):
                    replies = await self._ask(requests, put)
                problem = self._problem(requests, replies)
            except TimeoutError:
                replies = [Completion("", finish_reason="error")]
                problem = f"no reply within {self._rules.seconds if self._rules else 0:g} s"
            except EndpointError as error:
                replies, problem = [Completion("", finish_reason="error")], str(error)
                if other is None or self._has_begun:
                    self._add(replies[0], first, problem)
                    raise
            for vote, reply in enumerate(replies):
                self._add(reply, first, problem, vote)
            if not problem or other is None:
                return replies
        try:
            replies = await self._ask(self._requests(other or ""), put)
        except EndpointError as error:
            self._add(Completion("", finish_reason="error"), other, str(error))
            raise
        for vote, reply in enumerate(replies):
            self._add(reply, other, "", vote)
        return replies

    def _problem(self, requests: Sequence[ModelRequest], replies: Sequence[Completion]) -> str:
        if self._rules is None:
            return ""
        rules, request, registry = self._rules, requests[0], self._run.folder.registry
        scaling = scaling_of(registry, request.model) if rules.min_confidence is not None else None
        problems = (
            problem_of(reply, request.tools, request.schema, rules, scaling) for reply in replies
        )
        return next(filter(None, problems), "")

    async def _ask(self, requests: Sequence[ModelRequest], put: Put) -> list[Completion]:
        """The replies; streamed where no rule has to see them whole."""
        client = self._run.recorded_client

        async def ask(vote: int, request: ModelRequest) -> Completion:
            start = time.perf_counter()
            if self._streams and self._rules is None:
                async with aclosing(stream_of(client.client, request)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Delta):
                            self._has_begun = True
                            put((vote, piece))
                        else:
                            return replace(apart(piece), seconds=time.perf_counter() - start)
                raise RefluxError("a stream ended without its reply; please report this")
            key = CallKey(self.place.id, "", self._node, vote=vote)
            return await client.unrecorded(key, request)

        return await join([ask(vote, request) for vote, request in enumerate(requests)])

    def _add(self, reply: Completion, model: str | None, problem: str, vote: int = 0) -> None:
        request = self.place.request
        notes = (*reply.notes, *filter(None, (self.place.note,)))
        call = RecordedCall(
            messages=request.messages,
            reply=replace(reply, notes=notes),
            node=self._node,
            vote=vote,
            model=model or "",
            tools=request.tools,
            sampling=request.sampling,
            error=problem or None,
        )
        self._calls.append(call)

    async def _record(self, replies: Sequence[Completion]) -> None:
        """Record the calls: what the client got is committed before its end is sent."""
        texts = tuple(reply.text for reply in replies)
        error = "" if replies else self._calls[-1].error or ""
        body = ReplyBody(tuple(replies), error=error, raw_texts=texts)
        future = self._places.add(self.place, self._calls, body)
        await asyncio.shield(asyncio.wrap_future(future))


def _with_logprobs(request: ModelRequest) -> ModelRequest:
    sampling = request.sampling
    return replace(request, sampling=replace(sampling, top_logprobs=sampling.top_logprobs or 1))


def placed(places: Places, request: ChatRequest, headers: Mapping[str, str]) -> Place:
    """Where a request belongs."""
    body = request.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return places.find(read_request("chat", body), headers)
