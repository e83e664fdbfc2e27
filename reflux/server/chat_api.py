"""`/v1/models` and `/v1/chat/completions` in the OpenAI protocol, and answers while they run."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types import Model
from openai.types.chat import ChatCompletion
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from reflux.agents.errors import RefluxError
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.trajectories import redacted
from reflux.server.chat_reply import (
    AnswerPart,
    ChatFormat,
    Reply,
    ReplyFormat,
    StreamEvent,
    reasoning_line,
)
from reflux.server.chat_request import ChatRequest, RequestFields
from reflux.server.errors import as_api_error
from reflux.server.served_models import listed_model
from reflux.server.state import ERRORS, Log, ServerState, State
from reflux.server.tree_answers import ChatAnswer

TRAJECTORY_HEADER = "x-reflux-trajectory"
"""Header with the id of the trajectory, for `reflux traces show`."""
PING_SECONDS = 15.0
"""A silent stream sends a comment this often, so that no proxy closes it."""

router = APIRouter(prefix="/v1", responses=ERRORS)


@router.get("/models", response_model_exclude_none=True)
async def list_models(state: State) -> dict[str, Any]:
    """List the models that are served now."""
    return {"object": "list", "data": state.models.listed()}


@router.get("/models/{name:path}", response_model_exclude_none=True)
async def show_model(name: str, state: State) -> Model:
    """Show one model."""
    state.models.find(name)
    return next((each for each in state.models.listed() if each.id == name), listed_model(name))


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def complete_chat(body: ChatRequest, state: State, request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    answer = state.models.answer_to(body, state.run, state.waiting, request.headers)
    return await respond(request, state, body, answer, ChatFormat(body, answer.trajectory))


async def respond(
    request: Request,
    state: ServerState,
    body: RequestFields,
    answer: ChatAnswer,
    reply_format: ReplyFormat,
) -> Response:
    """Compute an answer for as long as its client is connected, and send it in its form."""
    names = ("user", "safety_identifier", "metadata")
    detail = {name: value for name in names if (value := getattr(body, name))}
    if detail and not answer.recorded_as:  # It stands with the trajectory there.
        await state.run.store.add_judgement(answer.trajectory, "", "user", None, redacted(detail))
    headers = {TRAJECTORY_HEADER: answer.recorded_as or answer.trajectory}
    running = RunningAnswer(state, body.model, answer)
    streamed = False
    try:
        if not body.stream:
            reply = await while_connected(request, running.reply())
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


class RunningAnswer:
    """A task that computes an answer, logs its events and counts it; a client reads its parts.

    The task, not the reader, holds the resources to clean up: a server may cancel a reader
    repeatedly, but it cancels the task once.
    """

    def __init__(self, state: ServerState, model: str, answer: ChatAnswer) -> None:
        self._state = state
        self._model = model
        self._answer = answer
        self._log = state.logs.begin(answer.trajectory)
        self._start = time.perf_counter()
        self._parts: Log[AnswerPart] = Log()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._end)
        state.tasks.add(self._task)

    async def wait_started(self, seconds: float) -> None:
        """Wait up to `seconds` for the first part; raise the error of a task that failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._parts.wait()
        if self._task.done():
            self._task.result()

    async def parts(self) -> AsyncGenerator[AnswerPart]:
        """Yield the parts until the task ends; raise its error."""
        async with aclosing(self._parts.follow()) as parts:
            async for _, part in parts:
                yield part
        self._task.result()

    async def reply(self) -> Reply:
        """Wait for the whole reply; raise the error of the task."""
        await asyncio.wait({self._task})
        return self._task.result()

    def stop(self) -> None:
        self._task.cancel()

    def _put(self, part: AnswerPart) -> None:
        if not self._parts.items:
            seconds = time.perf_counter() - self._start
            self._state.metrics.first.labels(self._model).observe(seconds)
        self._parts.add(part)

    def _end(self, task: asyncio.Task[Reply]) -> None:
        self._state.tasks.discard(task)
        self._state.logs.end(self._answer.trajectory)
        self._parts.end()

    def _emit(self, event: Event) -> None:
        self._log.add(event)
        if event["event"] == "called":
            self._state.metrics.calls.labels(str(event["cached"]).lower()).inc()
        if self._answer.grows_tree and (line := reasoning_line(event)):
            self._put(line)

    async def _run(self) -> Reply:
        metrics, model = self._state.metrics, self._model
        ended = "left"
        try:
            reply = await self._answer.compute(self._put, self._emit)
            for kind in ("prompt", "completion"):
                metrics.tokens.labels(model, kind).inc(reply.usage[f"{kind}_tokens"])
            ended = "ok"
            self._put(reply)
            return reply
        except Exception as error:
            ended = as_api_error(error).detail.code or "failed"
            raise
        finally:
            metrics.answers.labels(model, ended).inc()
            metrics.seconds.labels(model).observe(time.perf_counter() - self._start)


class AnswerStream(EventSourceResponse):
    """An event stream that stops its answer when it ends, however it ends."""

    def __init__(
        self,
        events: AsyncGenerator[StreamEvent],
        running: RunningAnswer,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(events, headers=headers, ping=PING_SECONDS, sep="\n")
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.stop()


async def _events(reply_format: ReplyFormat, running: RunningAnswer) -> AsyncGenerator[StreamEvent]:
    try:
        for event in reply_format.first_events():
            yield event
        async with aclosing(running.parts()) as parts:
            async for part in parts:
                for event in reply_format.events(part):
                    yield event
    except RefluxError as error:
        for event in reply_format.failure(as_api_error(error)):
            yield event


class ClientLeft(Exception):
    """The client closed its connection, so no reader waits for the answer."""


T = TypeVar("T")


async def while_connected(request: Request, awaitable: Coroutine[Any, Any, T]) -> T:
    """Await something for as long as the client stays connected.

    Raises:
        ClientLeft: the client disconnected; the awaitable is cancelled.
    """
    task, left = asyncio.create_task(awaitable), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        left.cancel()
        task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
