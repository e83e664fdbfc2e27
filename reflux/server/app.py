"""The server of one run folder: an app of routers behind one guard, the page's static files, and
limits on connections.

The OpenAI protocol is in `reflux.server.chat_api`; the routes of the page are in `reflux.web`.
"""

import asyncio
import logging
import resource
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reflux import web
from reflux.agents.clients.endpoints import Endpoints
from reflux.agents.clients.llama_cpp import LlamaCppClient
from reflux.agents.errors import RefluxError
from reflux.agents.overseers.protocol import Overseer
from reflux.ask_context import open_tools
from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.engines import Engine
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.garbage import settled
from reflux.graphs.traces.recording.placing import Places
from reflux.graphs.traces.recording.recorder import ExchangeRecorder
from reflux.graphs.traces.telemetry import process_spans
from reflux.overseers import OVERSEERS
from reflux.server import chat_api, responses_api
from reflux.server.aliases import SOURCE
from reflux.server.errors import HANDLERS
from reflux.server.guards import UNGUARDED_PATHS, Guard
from reflux.server.pending import Waiting
from reflux.server.recording.proxy import RecordingProxy, RecordRoute, Upstream
from reflux.server.served_models import ServedModels
from reflux.server.settings import ServeSettings, check_exposure
from reflux.server.state import EventLogs, Metrics, ServerState, State
from reflux.web import jobs, review_api, runs_api

STATIC = Path(web.__file__).parent / "static"
HEAD_BYTES = 65_536
"""Maximum size of a request's line and headers."""
HEAD_SECONDS = 20.0
"""Maximum time for a head, from the connection's start or the head's first byte."""
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
OPEN_FILES = 16_384
"""Open files that the server asks for: its clients and its connections to endpoints."""

LOG = logging.getLogger("uvicorn.error")
router = APIRouter()


@router.get("/healthz")
async def check_health() -> dict[str, str]:
    """Report that the server answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def show_metrics(state: State) -> Response:
    """Show the metrics in the Prometheus text format."""
    return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def show_page() -> FileResponse:
    """Show the page, which holds nothing of any run and so needs no key."""
    return FileResponse(STATIC / "index.html")


def create_app(
    folder: RunFolder,
    settings: ServeSettings | None = None,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> FastAPI:
    """Create the app of a run folder; the app opens the folder when it starts.

    Args:
        overseers: overseers by name; each is served as `amplified:NAME`.

    Raises:
        UsageError: the settings contradict each other, or expose the server without a key.
        MissingError: the base is not there, or spans are configured, but the OpenTelemetry
            packages are not installed.
    """
    settings = settings or ServeSettings()
    check_exposure(settings)
    models = ServedModels(folder, settings, overseers)
    upstream = Upstream(settings.upstream, settings.upstream) if settings.upstream else None
    metrics, is_gguf = Metrics(), folder.base.gguf is not None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        client: Engine | Endpoints = LlamaCppClient(folder.models, settings.engine)
        if not is_gguf:  # Which llama.cpp runs alone.
            client = BatchedClient(folder.models, BatchedConfig())
        if settings.endpoints:
            client = Endpoints(settings.endpoints, client)
        run = OpenRun(folder, client=client, warm=False)
        waiting, tasks = Waiting(run, overseers), set[asyncio.Task[Any]]()
        logs = EventLogs(settings.kept_events)
        app.state.server = ServerState(run, settings, models, logs, metrics, waiting, tasks)
        app.state.jobs = page_jobs = jobs.Jobs()
        async with AsyncExitStack() as stack:  # Closes in reverse order.
            stack.push_async_callback(client.close)
            stack.push_async_callback(asyncio.to_thread, run.recorded_client.spans.flush)
            await stack.enter_async_context(run)
            models.places = Places(run.store, SOURCE)
            stack.push_async_callback(asyncio.to_thread, models.places.close)
            if upstream is not None:
                recorder = ExchangeRecorder(Places(run.store, "url"), LOG.warning)
                stack.push_async_callback(asyncio.to_thread, recorder.close)
                proxy = RecordingProxy(upstream, recorder, settings)
                app.state.proxy = await stack.enter_async_context(proxy)
            stack.push_async_callback(waiting.close)
            if models.task is not None:
                try:
                    tools = open_tools(models.task.tool_names)
                    models.grants = waiting.grants = await stack.enter_async_context(tools)
                except RefluxError as error:  # The other models answer without them.
                    models.grants = error
            stack.push_async_callback(_cancel_all, tasks)
            stack.push_async_callback(page_jobs.stop)
            stack.enter_context(settled())
            yield

    app = FastAPI(
        title="Reflux",
        summary="The amplified agent, its students and its base, in the OpenAI protocol.",
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        docs_url=None,  # FastAPI's documentation pages load scripts of another origin.
        redoc_url=None,
        redirect_slashes=False,  # A proxy may not know the address that a redirect would name.
        # A request's span is the parent of its run's span. Request logs would hold the questions.
        telemetry={
            "tracer_provider": process_spans().provider,
            "operation_spans": False,
            "logs": False,
            "exclude": lambda scope: scope.get("path") in UNGUARDED_PATHS,
        },
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # The SDKs send their own headers.
            expose_headers=[chat_api.TRAJECTORY_HEADER],
        )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if settings.proxies:
        app.add_middleware(cast(Any, ProxyHeadersMiddleware), trusted_hosts=list(settings.proxies))
    if upstream is not None:
        app.add_middleware(cast(Any, RecordRoute), find=lambda: app.state.proxy)
    app.mount("/page", StaticFiles(directory=STATIC), name="page")
    for module in (chat_api, responses_api, runs_api, review_api, jobs):
        app.include_router(module.router)
    app.include_router(router)
    return app


async def _cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a deadline and a size limit for request heads.

    The guards see complete heads only; a client that never completes one is dropped here.
    """

    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _in_body = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)  # Resets the count at the end of a head or a body.
        if self._in_body:
            self._head_bytes = 0
        elif self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_body = False
        if self._deadline is None:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        self._in_body, self._head_bytes = True, 0
        self._cancel_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._head_bytes = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def server_config(app: Starlette, **options: Any) -> uvicorn.Config:
    """The uvicorn config of an app; `options` go to `uvicorn.Config`."""
    return uvicorn.Config(
        app,
        http=LimitedHttpProtocol,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # Of `proxies` alone: one client could pose as many.
        **options,
    )


def open_more_files() -> None:
    """Raise this process's limit of open files, often 1,024, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
