"""`/v1/models` and `/v1/chat/completions`, as clients of the OpenAI protocol know them."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from reflux.agents.errors import RefluxError
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.traces.events import Event
from reflux.server.chat_reply import ChatCompletion, Form, Reply, Said, as_event
from reflux.server.chat_request import ChatRequest
from reflux.server.direct_answer import DirectAnswer
from reflux.server.errors import ErrorBody, as_api_error
from reflux.server.event_log import EventLogs, thought
from reflux.server.jobs import ClientLeft, Put, Tasks, Work, unless_left
from reflux.server.metrics import Metrics
from reflux.server.pending import Waiting
from reflux.server.served_models import OneModel, ServedModels
from reflux.server.settings import ServeSettings
from reflux.server.tree_answer import TreeAnswer

TRACE = "x-reflux-trajectory"
"""Header with the id of the trajectory, for `reflux traces show`."""
PING_SECONDS = 15.0
"""Of silence, after which a stream says that it is still there."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 422, 429, 502, 503)
}


@dataclass(frozen=True)
class Served:
    """All that the routes of a server share."""

    run: OpenRun
    settings: ServeSettings
    models: ServedModels
    logs: EventLogs
    metrics: Metrics
    waiting: Waiting
    tasks: Tasks


def served(request: Request) -> Served:
    """What the request's server shares."""
    return request.app.state.served


router = APIRouter(prefix="/v1", responses=ERRORS)


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that are served at this moment."""
    return {"object": "list", "data": [_model(m) for m in served(request).models.listed()]}


@router.get("/models/{name:path}")
async def show_model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    models = served(request).models
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
    shared = served(request)
    found = shared.models.find(body.model)
    answer: DirectAnswer | TreeAnswer
    if isinstance(found, OneModel):
        answer = DirectAnswer(shared.run, shared.settings, found.name, body)
    else:
        x = shared.models.x()
        answer = TreeAnswer(shared.run, shared.settings, found, x, body, shared.waiting)
    if body.user is not None:
        told = {"user": body.user}
        await shared.run.store.add_judgement(answer.trajectory, "", "user", None, told)
    form = Form(body, answer.trajectory)
    headers = {TRACE: answer.trajectory}
    work = Work[Said](lambda put: _recorded(shared, body.model, answer, put), shared.tasks)
    said = work.said(PING_SECONDS)
    streamed = False
    try:
        # Before its first piece a failure still has a status of its own.
        first = await unless_left(request, _first(said, body.stream))
        if isinstance(first, Reply) and not body.stream:
            return Response(form.whole(first), media_type="application/json", headers=headers)
        streamed = True
        return StreamedWork(_chunks(form, first, said), work, headers)
    except ClientLeft:
        return Response(status_code=499)
    except RefluxError as error:
        failed = as_api_error(error)
        failed.headers = {**(failed.headers or {}), **headers}
        raise failed from error
    finally:
        if not streamed:
            work.stop()


async def _first(said: AsyncGenerator[Said | None], streamed: bool) -> Said | None:
    """What is said first, or where nothing is streamed the reply."""
    async for piece in said:
        if streamed or isinstance(piece, Reply):
            return piece
    raise RefluxError("an answer ended without a reply; please report this")


class StreamedWork(StreamingResponse):
    """A stream that ends its work when it ends, in whatever way."""

    def __init__(
        self, chunks: AsyncGenerator[bytes], work: Work[Any], headers: Mapping[str, str]
    ) -> None:
        more = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers={**headers, **more})
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._work.stop()


async def _recorded(
    shared: Served, model: str, answer: DirectAnswer | TreeAnswer, put: Put[Said]
) -> None:
    """Have an answer made: what it says is put, its events are kept, and all of it is counted."""
    metrics, begun = shared.metrics, time.perf_counter()
    log = shared.logs.begin(answer.trajectory)
    heard = False

    def hear(said: Said) -> None:
        nonlocal heard
        if not heard:
            heard = True
            metrics.first.labels(model).observe(time.perf_counter() - begun)
        put(said)

    def emit(event: Event) -> None:
        log.add(event)
        if event["event"] == "called":
            metrics.calls.labels(str(event["cached"]).lower()).inc()
        if isinstance(answer, TreeAnswer) and (words := thought(event)):
            hear(words)

    ended = "left"
    try:
        reply = await answer.answer(hear, emit)
        metrics.tokens.labels(model, "prompt").inc(reply.prompt_tokens)
        metrics.tokens.labels(model, "completion").inc(reply.completion_tokens)
        ended = "ok"
        hear(reply)
    except RefluxError as error:
        ended = as_api_error(error).detail.code or "failed"
        raise
    except Exception:
        ended = "failed"
        raise
    finally:
        metrics.answers.labels(model, ended).inc()
        metrics.seconds.labels(model).observe(time.perf_counter() - begun)
        shared.logs.end(answer.trajectory)


async def _chunks(
    form: Form, first: Said | None, rest: AsyncGenerator[Said | None]
) -> AsyncGenerator[bytes]:
    try:
        yield form.begin() + form.chunk(first)
        async with aclosing(rest) as pieces:
            async for said in pieces:
                yield form.chunk(said)
    except RefluxError as error:
        yield as_event(as_api_error(error).body())
