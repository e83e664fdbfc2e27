"""Model and tool calls that are replayed from the call log, or made and then committed to it.

The call log is the one way to resume: a recorded key with the same request replays its reply, and
with another request is an error.
"""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from reflux.agents.clients.chat_protocol import Pieces, in_one_piece, stream_of
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.prompts import redact
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import (
    Answer,
    Ask,
    Chain,
    ChatClient,
    ChatRequest,
    Completion,
    Step,
    TokenLogprob,
    ToolCall,
    step_to_json,
)
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.traces.telemetry import NO_SPANS, Spans, process_spans

FAILED = ("error", "refused")
"""How the `finish_reason` of a call begins that failed at its endpoint."""


def redacted_step(step: Step) -> Step:
    """A step without secrets."""
    if isinstance(step, Answer):
        return Answer(redact(step.text))
    if isinstance(step, Chain):
        return Chain(redact(step.first))
    if isinstance(step, Ask):
        asked = tuple(replace(s, text=redact(s.text)) for s in step.subquestions)
        return Ask(asked, redact(step.note))
    return step


def row_of(reply: Completion) -> dict[str, object]:
    """The columns of a reply."""
    return {
        "completion": reply.text,
        "logprobs": json.dumps([[t.token, t.logprob, t.top] for t in reply.logprobs])
        if reply.logprobs
        else None,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "seconds": reply.seconds,
        "cached": int(reply.cached),
        "retries": json.dumps(reply.retries) if reply.retries else None,
        "tool_calls": json.dumps([[c.id, c.name, c.arguments] for c in reply.tool_calls])
        if reply.tool_calls
        else None,
    }


def tool_reply_of(row: sqlite3.Row) -> ToolReply:
    """A tool's reply from its row."""
    return ToolReply(row["completion"], row["finish_reason"] != "refused")


def completion_of(row: sqlite3.Row) -> Completion:
    """A model's reply from its row."""
    logprobs: list[tuple[str, float, list[tuple[str, float]]]] = json.loads(row["logprobs"] or "[]")
    return Completion(
        text=row["completion"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        seconds=row["seconds"],
        finish_reason=row["finish_reason"],
        logprobs=tuple(
            TokenLogprob(token, logprob, tuple((t, p) for t, p in top))
            for token, logprob, top in logprobs
        ),
        retries=tuple(json.loads(row["retries"])) if row["retries"] else (),
        cached=bool(row["cached"]),
        tool_calls=tuple(ToolCall(*call) for call in json.loads(row["tool_calls"] or "[]")),
    )


@dataclass(frozen=True)
class CallFailure:
    """A model call of one question that got no reply."""

    message: str
    refused: bool
    """The endpoint answered, and would refuse the same request again."""
    status: int | None
    """The HTTP status of the refusal."""
    is_last: bool
    """No later call of the question got a reply."""

    def error(self) -> EndpointError:
        """The failure as the error that a caller raises."""
        error = EndpointError(self.message)
        error.refused, error.status = self.refused, self.status
        return error


def _reason(error: EndpointError) -> str:
    """The `finish_reason` of a failed call: `error`, or `refused` and the HTTP status."""
    if not error.refused:
        return "error"
    return f"refused {error.status}" if error.status else "refused"


def last_call_id(store: TraceStore) -> int:
    """The number of the newest call on record; 0 before the first."""
    ((number,),) = store.select("SELECT coalesce(max(id), 0) FROM calls")
    return number


def find_failure(store: TraceStore, question: str, after: int = 0) -> CallFailure | None:
    """The newest failure of a question's calls after a call's number; None if all got replies.

    A failure that may pass goes before a refusal: the question may end otherwise next time.
    """
    calls = list(
        store.select(
            "SELECT error, finish_reason FROM calls"
            " WHERE question=? AND id > ? AND kind IN ('model', 'graph') ORDER BY id",
            (question, after),
        )
    )
    failures = [row for row in calls if (row["finish_reason"] or "").startswith(FAILED)]
    if not failures:
        return None
    transient = [row for row in failures if row["finish_reason"] == "error"]
    row = (transient or failures)[-1]
    _, _, status = row["finish_reason"].partition(" ")
    return CallFailure(
        row["error"], not transient, int(status) if status else None, calls[-1] is failures[-1]
    )


class RecordedClient:
    """The calls of one run: replayed, or made and recorded before the reply is used."""

    def __init__(self, client: ChatClient, store: TraceStore, spans: Spans | None = None) -> None:
        """`spans` are those of the environment where None.

        Raises:
            MissingError, UsageError: see `reflux.graphs.traces.telemetry.spans_from_env`.
        """
        self.client = client
        self.store = store
        self.spans = process_spans() if spans is None else spans

    async def ask(self, key: CallKey, request: ChatRequest) -> Completion:
        """Answer one request under its key.

        Raises:
            ReplayError: the log holds another request under this key.
            EndpointError: no reply; the failure is recorded, too.
        """
        request, asked = await self._asked(request)
        if (known := self._recorded(key, asked["request_digest"])) is not None:
            return known
        if (earlier := self._before(key, asked["request_digest"])) is not None:
            return await self._replied(key, asked, earlier)
        with self.spans.call(key, request, asked["model_digest"]) as span:
            try:
                reply = await self.client.complete(request)
            except EndpointError as error:
                lost = Completion("", cached=error.cached, finish_reason=_reason(error))
                await self._failed(key, asked, lost, str(error))
                raise
            reply = await self._replied(key, asked, reply)
            span.replied(reply)
        return reply

    async def record_failure(
        self, key: CallKey, request: ChatRequest, error: EndpointError
    ) -> None:
        """Record the failure of a call that `unrecorded` made."""
        request, asked = await self._asked(request)
        lost = Completion("", cached=error.cached, finish_reason=_reason(error))
        await self._failed(key, asked, lost, str(error))

    async def unrecorded(self, key: CallKey, request: ChatRequest) -> Completion:
        """Answer one request whose reply the caller records, together with others.

        Raises:
            EndpointError: no reply.
        """
        if self.spans is NO_SPANS:
            return await self.client.complete(request)
        digest = await self.client.model_digest(request.model)
        with self.spans.call(key, request, digest) as span:
            reply = await self.client.complete(request)
            span.replied(replace(reply, text=redact(reply.text)))
        return reply

    async def stream(self, key: CallKey, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; the last piece is the recorded completion.

        The pieces are neither redacted nor recorded before they are used. A stream that breaks off,
        or whose reader leaves, is recorded as an error with the text so far.

        Raises:
            ReplayError: the log holds another request under this key.
            EndpointError: no reply, or half of one.
        """
        request, asked = await self._asked(request)
        if (known := self._recorded(key, asked["request_digest"])) is not None:
            for piece in in_one_piece(known):
                yield piece
            return
        if (earlier := self._before(key, asked["request_digest"])) is not None:
            for piece in in_one_piece(await self._replied(key, asked, earlier)):
                yield piece
            return
        came: list[str] = []
        whole: Completion | None = None
        with self.spans.call(key, request, asked["model_digest"], streamed=True) as span:
            try:
                async with aclosing(stream_of(self.client, request)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Completion):
                            whole = piece
                        else:
                            came.append(piece.text)
                            yield piece
            except EndpointError as error:
                lost = Completion("".join(came), finish_reason=_reason(error))
                await self._failed(key, asked, lost, str(error))
                raise
            except (asyncio.CancelledError, GeneratorExit):
                left = f"the reader left after {len(came)} pieces"
                lost = Completion("".join(came), finish_reason="cancelled")
                await self._failed(key, asked, lost, left)
                raise
            if whole is not None:
                whole = await self._replied(key, asked, whole)
                span.replied(whole)
        if whole is not None:
            yield whole

    async def _asked(self, request: ChatRequest) -> tuple[ChatRequest, dict[str, str]]:
        """The request without secrets, and its columns."""
        request = replace(
            request, messages=tuple(tuple(map(redact, turn)) for turn in request.messages)
        )
        model_digest = await self.client.model_digest(request.model)
        return request, {
            "kind": "model",
            "model": request.model,
            "model_digest": model_digest,
            "request_digest": request.digest(model_digest),
            "messages": json.dumps(request.payload()),
            "sampling": json.dumps(vars(request.sampling)),
        }

    async def _failed(
        self, key: CallKey, asked: Mapping[str, str], reply: Completion, error: str
    ) -> None:
        reply = replace(reply, text=redact(reply.text))
        await self.store.add_call(key, {**asked, **row_of(reply), "error": redact(error)})

    async def _replied(
        self, key: CallKey, asked: Mapping[str, str], reply: Completion
    ) -> Completion:
        """The reply as it stands on the record."""
        wishes = tuple(replace(c, arguments=redact(c.arguments)) for c in reply.tool_calls)
        reply = replace(reply, text=redact(reply.text), tool_calls=wishes)
        try:
            await self.store.add_call(key, {**asked, **row_of(reply)})
        except ReplayError:
            # Another process on this folder was the first to record the call: its answer counts.
            if (known := self._recorded(key, asked["request_digest"])) is None:
                raise
            return known
        return reply

    async def tool(
        self, key: CallKey, name: str, arguments: str, work: Callable[[], Awaitable[ToolReply]]
    ) -> ToolReply:
        """Call a tool once: its reply is recorded, and replayed afterwards.

        Raises:
            ReplayError: the log holds a call with other arguments under this key.
        """
        arguments = redact(arguments)
        digest = hashlib.sha256(json.dumps([name, arguments]).encode()).hexdigest()[:32]
        if (recorded := self._recorded_tool(key, digest, name, arguments)) is not None:
            return recorded
        start = time.perf_counter()
        if (row := self._earlier(key, digest)) is not None:
            reply = tool_reply_of(row)
        else:
            with self.spans.tool(key, name, arguments) as span:
                reply = await work()
                reply = ToolReply(redact(reply.text), reply.ok)
                span.tool_replied(reply)
        completion = Completion(
            reply.text,
            seconds=time.perf_counter() - start,
            finish_reason="stop" if reply.ok else "refused",
        )
        columns = {"kind": "tool", "model": name, "request_digest": digest, "messages": arguments}
        try:
            await self.store.add_call(key, columns | row_of(completion))
        except ReplayError:  # Another process was first, as in `_replied`.
            if (recorded := self._recorded_tool(key, digest, name, arguments)) is None:
                raise
            return recorded
        return reply

    def _recorded_tool(
        self, key: CallKey, digest: str, name: str, arguments: str
    ) -> ToolReply | None:
        if (row := self.store.find_call(key)) is None:
            return None
        if row["request_digest"] != digest:
            raise ReplayError(
                f"the tool call {key} was recorded with other arguments than {name}("
                f"{arguments[:80]}): the model, prompt or tools changed; use a new --run"
            )
        return tool_reply_of(row)

    def _recorded(self, key: CallKey, digest: str) -> Completion | None:
        if (row := self.store.find_call(key)) is None:
            return None
        if row["request_digest"] != digest:
            raise ReplayError(
                f"call {key} was recorded with another request ({row['request_digest']}, now "
                f"{digest}): the model, prompt or config changed; use a new --run"
            )
        return completion_of(row)

    def _before(self, key: CallKey, digest: str) -> Completion | None:
        """The reply to the same request in an earlier revision of this trajectory."""
        if (row := self._earlier(key, digest)) is None:
            return None
        return replace(completion_of(row), cached=True, seconds=0.0, retries=())

    def _earlier(self, key: CallKey, digest: str) -> sqlite3.Row | None:
        for question in before(key.question):
            row = self.store.find_call(replace(key, question=question))
            if row is not None and row["request_digest"] == digest:
                return row
        return None

    def human_step(self, key: CallKey, shown: str) -> Mapping[str, Any] | None:
        """A human's step under this key as JSON, also that of an earlier revision where the digest
        of the form that was `shown` is the same."""
        row = self.store.find_call(key) or self._earlier(key, shown)
        return json.loads(row["completion"]) if row else None

    async def step(self, key: CallKey, overseer: str, step: Step, shown: str | None = None) -> Step:
        """Record a step that the overseer took without a model, and return it redacted.

        `shown` is the digest of the form that a human saw.

        Raises:
            ReplayError: the log holds another step.
        """
        step = redacted_step(step)
        text = json.dumps(step_to_json(step))
        if self._taken(key, overseer, text):
            return step
        columns = {"kind": "script", "model": overseer, "request_digest": shown}
        try:
            await self.store.add_call(key, columns | row_of(Completion(text)))
        except ReplayError:
            if not self._taken(key, overseer, text):
                raise
        return step

    def _taken(self, key: CallKey, overseer: str, text: str) -> bool:
        """True where the log holds this step."""
        if (row := self.store.find_call(key)) is None:
            return False
        if row["completion"] != text:
            raise ReplayError(
                f"{overseer} took another step at {key} than the log holds; an overseer must "
                "be deterministic, or its step must come from the log; use a new --run"
            )
        return True
