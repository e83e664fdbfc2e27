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
from dataclasses import replace
from typing import Any

from reflux.agents.clients.reasoning import apart
from reflux.agents.errors import EndpointError, ReplayError
from reflux.agents.redaction import redact
from reflux.agents.tools.protocol import ToolReply
from reflux.agents.types import (
    Answer,
    Ask,
    Chain,
    ChatClient,
    ChatRequest,
    Completion,
    Pieces,
    Step,
    TokenLogprob,
    ToolCall,
    in_one_piece,
    step_to_json,
    stream_of,
)
from reflux.graphs.traces.losses import check_loss, note_loss
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.traces.telemetry import NO_SPANS, Spans, process_spans


def redacted_step(step: Step) -> Step:
    """A step without secrets."""
    if isinstance(step, Answer):
        return Answer(redact(step.text), redact(step.reason))
    if isinstance(step, Chain):
        return Chain(redact(step.first))
    if isinstance(step, Ask):
        subquestions = tuple(replace(s, text=redact(s.text)) for s in step.subquestions)
        return Ask(subquestions, redact(step.note))
    return step


def row_of(reply: Completion) -> dict[str, Any]:
    """The columns of a reply; an empty list is NULL."""
    logprobs = [[token.token, token.logprob, token.top] for token in reply.logprobs]
    tool_calls = [[call.id, call.name, call.arguments] for call in reply.tool_calls]
    return {
        "completion": reply.text,
        "logprobs": json.dumps(logprobs) if logprobs else None,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "seconds": reply.seconds,
        "cached": int(reply.cached),
        "retries": json.dumps(reply.retries) if reply.retries else None,
        "tool_calls": json.dumps(tool_calls) if tool_calls else None,
        "reasoning": reply.reasoning or None,
        "notes": json.dumps(reply.notes) if reply.notes else None,
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
        retries=tuple(json.loads(row["retries"] or "[]")),
        cached=bool(row["cached"]),
        tool_calls=tuple(ToolCall(*call) for call in json.loads(row["tool_calls"] or "[]")),
        reasoning=row["reasoning"] or "",
        notes=tuple(json.loads(row["notes"] or "[]")),
    )


def _decided(text: str) -> dict[str, Any]:
    """What a recorded step asks or answers: its reason may be put into other words."""
    return {name: value for name, value in json.loads(text).items() if name != "reason"}


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
        request, columns = await self._without_secrets(request)
        if (known := await self._replayed(key, columns)) is not None:
            return known
        check_loss()
        with self.spans.call(key, request, columns["model_digest"]) as span:
            try:
                reply = await self.client.complete(request)
            except EndpointError as error:
                await self._add_failure(key, columns, error)
                raise
            reply = await self._add_reply(key, columns, reply)
            span.replied(reply)
        return reply

    async def record_failure(
        self, key: CallKey, request: ChatRequest, error: EndpointError
    ) -> None:
        """Record the failure of a call that `unrecorded` made."""
        _, columns = await self._without_secrets(request)
        await self._add_failure(key, columns, error)

    async def unrecorded(self, key: CallKey, request: ChatRequest) -> Completion:
        """Answer one request whose reply the caller records, together with others.

        Raises:
            EndpointError: no reply.
        """
        check_loss()
        if self.spans is NO_SPANS:
            return apart(await self.client.complete(request))
        digest = await self.client.model_digest(request.model)
        with self.spans.call(key, request, digest) as span:
            reply = apart(await self.client.complete(request))
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
        request, columns = await self._without_secrets(request)
        if (known := await self._replayed(key, columns)) is not None:
            for piece in in_one_piece(known):
                yield piece
            return
        texts: list[str] = []
        whole: Completion | None = None
        with self.spans.call(key, request, columns["model_digest"], streamed=True) as span:
            try:
                async with aclosing(stream_of(self.client, request)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Completion):
                            whole = piece
                        else:
                            texts.append(piece.text)
                            yield piece
            except EndpointError as error:
                await self._add_failure(key, columns, error, "".join(texts))
                raise
            except (asyncio.CancelledError, GeneratorExit):
                lost = Completion(redact("".join(texts)), finish_reason="cancelled")
                reason = f"the reader left after {len(texts)} pieces"
                await self.store.add_call(key, {**columns, **row_of(lost), "error": reason})
                raise
            if whole is not None:
                whole = await self._add_reply(key, columns, whole)
                span.replied(whole)
        if whole is not None:
            yield whole

    async def tool(
        self, key: CallKey, name: str, arguments: str, work: Callable[[], Awaitable[ToolReply]]
    ) -> ToolReply:
        """Call a tool once: its reply is recorded, and replayed afterwards.

        Raises:
            ReplayError: the log holds a call with other arguments under this key.
        """
        arguments = redact(arguments)
        digest = hashlib.sha256(json.dumps([name, arguments]).encode()).hexdigest()[:32]
        columns = {"kind": "tool", "model": name, "request_digest": digest, "messages": arguments}
        if (row := self.find(key, columns)) is not None:
            return tool_reply_of(row)
        check_loss()
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
        row = await self.add(key, columns | row_of(completion))
        return reply if row is None else tool_reply_of(row)

    def find(self, key: CallKey, columns: Mapping[str, Any]) -> sqlite3.Row | None:
        """The row under this key, if recorded.

        Raises:
            ReplayError: it is that of another request.
        """
        row = self.store.find_call(key)
        if row is None or row["request_digest"] == columns["request_digest"]:
            return row
        said = f"call {key} was recorded with another request ({row['request_digest']}, now "
        said += f"{columns['request_digest']}): the model, prompt or config changed"
        if columns["kind"] == "graph":
            said = f"{key} was answered by another graph"
        if columns["kind"] == "tool":
            said = f"the tool call {key} was recorded with other arguments than {columns['model']}("
            said += f"{columns['messages'][:80]}): the model, prompt or tools changed"
        raise ReplayError(f"{said}; use a new --run")

    async def add(self, key: CallKey, columns: Mapping[str, Any]) -> sqlite3.Row | None:
        """Record a call. Where another process on this folder recorded it first, return its row:
        its answer counts.

        Raises:
            ReplayError: the other process recorded another request.
        """
        try:
            await self.store.add_call(key, columns)
        except ReplayError:
            if (row := self.find(key, columns)) is None:
                raise
            return row
        return None

    async def _without_secrets(self, request: ChatRequest) -> tuple[ChatRequest, dict[str, str]]:
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

    async def _replayed(self, key: CallKey, columns: Mapping[str, str]) -> Completion | None:
        """The recorded reply; that of an earlier revision to the same request is recorded anew."""
        if (row := self.find(key, columns)) is not None:
            return completion_of(row)
        if (row := self._earlier(key, columns["request_digest"])) is None:
            return None
        reply = replace(completion_of(row), cached=True, seconds=0.0, retries=())
        return await self._add_reply(key, columns, reply)

    async def _add_reply(
        self, key: CallKey, columns: Mapping[str, str], reply: Completion
    ) -> Completion:
        """The reply as it stands on the record."""
        reply = apart(reply)
        tool_calls = tuple(replace(c, arguments=redact(c.arguments)) for c in reply.tool_calls)
        reply = replace(
            reply,
            text=redact(reply.text),
            tool_calls=tool_calls,
            reasoning=redact(reply.reasoning),
        )
        row = await self.add(key, {**columns, **row_of(reply)})
        return reply if row is None else completion_of(row)

    async def _add_failure(
        self, key: CallKey, columns: Mapping[str, str], error: EndpointError, text: str = ""
    ) -> None:
        note_loss(error)
        reason = "refused" if error.refused else "error"
        reason += f" {error.status}" if error.status else ""
        lost = Completion(redact(text), cached=error.cached, finish_reason=reason)
        await self.store.add_call(key, {**columns, **row_of(lost), "error": redact(str(error))})

    def _earlier(self, key: CallKey, digest: str) -> sqlite3.Row | None:
        """The row of the same request in the newest earlier revision that has it."""
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
            EndpointError: the question has lost a call.
        """
        check_loss()
        step = redacted_step(step)
        text = json.dumps(step_to_json(step))
        if (row := self.store.find_call(key)) is None:
            columns = {"kind": "script", "model": overseer, "request_digest": shown}
            try:
                await self.store.add_call(key, columns | row_of(Completion(text)))
                return step
            except ReplayError:  # Another process recorded it first.
                if (row := self.store.find_call(key)) is None:
                    raise
        if _decided(row["completion"]) != _decided(text):
            raise ReplayError(
                f"{overseer} took another step at {key} than the log holds; an overseer must "
                "be deterministic, or its step must come from the log; use a new --run"
            )
        return step
