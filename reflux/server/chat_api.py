"""`/v1/models` and `/v1/chat/completions` in the OpenAI protocol."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from reflux.agents.errors import RefluxError
from reflux.graphs.traces.events import Event
from reflux.server.answers import ChatAnswer, DirectAnswer, TreeAnswer
from reflux.server.chat_reply import (
    AnswerPart,
    Reply,
    ReplyFormat,
    reasoning_line,
    to_json,
)
from reflux.server.chat_request import ChatRequest
from reflux.server.errors import as_api_error
from reflux.server.running_answer import ClientLeft, Put, RunningAnswer, while_connected
from reflux.server.served_models import OneModel
from reflux.server.state import ERRORS, ServerState, state_of

TRAJECTORY_HEADER = "x-reflux-trajectory"
"""Header with the id of the trajectory, for `reflux traces show`."""
PING_SECONDS = 15.0
"""A silent stream sends a comment this often, so that no proxy closes it."""

router = APIRouter(prefix="/v1", responses=ERRORS)


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the models that are served now."""
    models = state_of(request).models.listed()
    return {"object": "list", "data": [_model(model) for model in models]}


@router.get("/models/{name:path}")
async def show_model(name: str, request: Request) -> dict[str, Any]:
    """Show one model."""
    models = state_of(request).models
    models.find(name)
    return next((_model(m) for m in models.listed() if m.id == name), {"id": name})


def _model(listed: Any) -> dict[str, Any]:
    return {**asdict(listed), "object": "model", "owned_by": "reflux"}


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def complete_chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    state = state_of(request)
    model = state.models.find(body.model)
    answer: ChatAnswer
    if isinstance(model, OneModel):
        answer = DirectAnswer(state.run, state.settings, model.name, body)
    else:
        agent = state.models.agent()
        answer = TreeAnswer(state.run, state.settings, model, agent, body, state.waiting)
    if body.user is not None:
        detail = {"user": body.user}
        await state.run.store.add_judgement(answer.trajectory, "", "user", None, detail)
    reply_format = ReplyFormat(body, answer.trajectory)
    headers = {TRAJECTORY_HEADER: answer.trajectory}
    running = RunningAnswer[AnswerPart](
        lambda put: _run(state, body.model, answer, put), state.tasks
    )
    streamed = False
    try:
        if not body.stream:
            reply = await while_connected(request, _reply(running))
            whole = reply_format.whole(reply)
            return Response(whole, media_type="application/json", headers=headers)
        # An answer that fails before its first part still gets an error status.
        await while_connected(request, running.wait_started(PING_SECONDS))
        streamed = True
        return AnswerStream(_events(reply_format, running), running, headers)
    except ClientLeft:
        return Response(status_code=499)
    except RefluxError as error:
        failure = as_api_error(error)
        failure.headers = {**(failure.headers or {}), **headers}
        raise failure from error
    finally:
        if not streamed:
            running.stop()


async def _reply(running: RunningAnswer[AnswerPart]) -> Reply:
    async for part in running.parts():
        if isinstance(part, Reply):
            return part
    raise RefluxError("the answer ended without a reply; please report this")


class AnswerStream(EventSourceResponse):
    """An event stream that stops its answer when it ends, however it ends."""

    def __init__(
        self, events: AsyncGenerator[str], running: RunningAnswer[Any], headers: Mapping[str, str]
    ) -> None:
        super().__init__(events, headers=headers, ping=PING_SECONDS, sep="\n")
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.stop()


async def _events(
    reply_format: ReplyFormat, running: RunningAnswer[AnswerPart]
) -> AsyncGenerator[str]:
    try:
        for event in reply_format.first_events():
            yield event
        async with aclosing(running.parts()) as parts:
            async for part in parts:
                for event in reply_format.events(part):
                    yield event
    except RefluxError as error:
        yield to_json(as_api_error(error).body())


async def _run(state: ServerState, model: str, answer: ChatAnswer, put: Put[AnswerPart]) -> None:
    """Compute an answer: put its parts, log its events, and update the metrics."""
    metrics, start = state.metrics, time.perf_counter()
    log = state.logs.begin(answer.trajectory)
    started = False

    def put_part(part: AnswerPart) -> None:
        nonlocal started
        if not started:
            started = True
            metrics.first.labels(model).observe(time.perf_counter() - start)
        put(part)

    def emit(event: Event) -> None:
        log.add(event)
        if event["event"] == "called":
            metrics.calls.labels(str(event["cached"]).lower()).inc()
        if isinstance(answer, TreeAnswer) and (line := reasoning_line(event)):
            put_part(line)

    ended = "left"
    try:
        reply = await answer.answer(put_part, emit)
        metrics.tokens.labels(model, "prompt").inc(reply.prompt_tokens)
        metrics.tokens.labels(model, "completion").inc(reply.completion_tokens)
        ended = "ok"
        put_part(reply)
    except RefluxError as error:
        ended = as_api_error(error).detail.code or "failed"
        raise
    except Exception:
        ended = "failed"
        raise
    finally:
        metrics.answers.labels(model, ended).inc()
        metrics.seconds.labels(model).observe(time.perf_counter() - start)
        state.logs.end(answer.trajectory)
