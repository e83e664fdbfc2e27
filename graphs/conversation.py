"""A conversation that one model goes on with: no tree, and on the record all the same."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from reflux.agents.clients.streaming import Delta
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.amplify.context import silent
from reflux.graphs.amplify.state import Status, accepted_status, is_accepted
from reflux.graphs.ask import Asked
from reflux.graphs.traces.events import Event, answered
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.store import CallKey

Listener = Callable[[int, Delta], None]
"""Hears each piece of each reply, by the reply's position."""


async def answer_chat(
    recorded_client: RecordedClient,
    asked: Asked,
    text: str,
    requests: Sequence[ChatRequest],
    *,
    hear: Listener | None = None,
    emit: Callable[[Event], None] = silent,
) -> list[Completion]:
    """One reply to each request, side by side; the first is the answer that the record names.

    Args:
        text: the conversation as one question, under which it is recorded.
        requests: the same conversation with other seeds; at least one.
        hear: hears the pieces as they come; None where nobody listens.

    Raises:
        EndpointError: a reply did not come; the others were stopped.
    """
    text = redact(text)
    question_id = asked.question_id(text)
    await recorded_client.store.add_question({"id": question_id, "text": text, **vars(asked)})

    async def one(at: int, request: ChatRequest) -> Completion:
        key = CallKey(question_id, "", "answer", vote=at)
        reply = await _reply(recorded_client, key, request, at, hear)
        emit(
            {
                "event": "called",
                "path": "",
                "role": "answer",
                "model": request.model,
                "tokens": reply.tokens,
                "cached": reply.cached,
                "seconds": reply.seconds,
                "left": {},
            }
        )
        return reply

    async def judge(answer: str | None, status: Status, error: str | None) -> None:
        detail: dict[str, Any] = {"question": text, "answer": answer, "status": status}
        detail |= {"error": error, "votes": len(requests)}
        ok = is_accepted(status)
        await recorded_client.store.add_judgement(question_id, "", "direct", ok, detail, key="0.0")
        emit(answered("", True, detail))

    with recorded_client.spans.run(question_id, vars(asked)) as span:
        try:
            async with marked_when_stopped(recorded_client.store, question_id):
                replies = await _together([one(at, said) for at, said in enumerate(requests)])
        except EndpointError as error:
            await judge(None, "failed", str(error))
            raise
        status = accepted_status(has_check=False, truncated=replies[0].truncated)
        await judge(replies[0].text, status, None)
        span.ended(status)
    return replies


async def _together(asked: Sequence[Coroutine[Any, Any, Completion]]) -> list[Completion]:
    if len(asked) == 1:  # Nearly always: no task is made for it.
        return [await asked[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in asked]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


async def _reply(
    recorded_client: RecordedClient,
    key: CallKey,
    request: ChatRequest,
    at: int,
    hear: Listener | None,
) -> Completion:
    # An endpoint that refuses a schema is asked without it for a whole reply, never for a stream.
    if hear is None and not request.schema:
        return await recorded_client.ask(key, request)
    whole: Completion | None = None
    async with aclosing(recorded_client.stream(key, request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Completion):
                whole = piece
            elif hear is not None:
                hear(at, piece)
    if whole is None:
        raise RefluxError("a stream ended without its reply; please report this")
    return whole
