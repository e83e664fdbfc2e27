"""The server of one run folder: an app of routers behind one guard, and the page's static files.

The OpenAI protocol is in `reflux.server.chat_api`; the routes of the page are in `reflux.web`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from reflux import web
from reflux.agents.clients.endpoints import Endpoints
from reflux.agents.clients.llama_cpp import LlamaCppClient
from reflux.agents.overseers.protocol import Overseer
from reflux.ask_context import OVERSEERS
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.garbage_collection import settled
from reflux.graphs.traces.telemetry import process_spans
from reflux.server import chat_api
from reflux.server.errors import add_error_handlers
from reflux.server.guards import UNGUARDED_PATHS, Guard
from reflux.server.pending import Waiting
from reflux.server.running_answer import EventLogs
from reflux.server.served_models import ServedModels
from reflux.server.settings import ServeSettings, check_exposure
from reflux.server.state import Metrics, ServerState, state_of
from reflux.web import jobs, review_api, runs_api, trajectories_api

STATIC = Path(web.__file__).parent / "static"
FRESH = {"cache-control": "no-cache"}
"""Browsers revalidate their copies, so a new version of Reflux never meets an old page."""

router = APIRouter()


@router.get("/healthz")
async def check_health() -> dict[str, str]:
    """Report that the server answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def show_metrics(request: Request) -> Response:
    """Show the metrics in the Prometheus text format."""
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def show_page() -> FileResponse:
    """Show the page, which holds nothing of any run and so needs no key."""
    return FileResponse(STATIC / "index.html", headers=FRESH)


class _PageFiles(StaticFiles):
    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # pyright: ignore[reportArgumentType]
        response.headers.update(FRESH)
        return response


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
        MissingError: spans are configured, but the OpenTelemetry packages are not installed.
    """
    settings = settings or ServeSettings()
    check_exposure(settings)
    models = ServedModels(folder, settings, overseers)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        engine = LlamaCppClient(folder.models, settings.engine)
        client = Endpoints(settings.endpoints, engine)
        run = OpenRun(folder, client=client, warm=False)
        waiting, tasks = Waiting(run, overseers), set[asyncio.Task[None]]()
        logs = EventLogs(settings.kept_events)
        app.state.server = ServerState(run, settings, models, logs, metrics, waiting, tasks)
        app.state.jobs = page_jobs = jobs.Jobs()
        async with AsyncExitStack() as stack:  # Closes in reverse order.
            stack.push_async_callback(client.close)
            stack.push_async_callback(asyncio.to_thread, run.recorded_client.spans.flush)
            await stack.enter_async_context(run)
            stack.push_async_callback(waiting.close)
            stack.push_async_callback(_cancel_all, tasks)
            stack.push_async_callback(page_jobs.stop)
            stack.enter_context(settled())
            yield

    app = FastAPI(
        title="Reflux",
        summary="The amplified agent, its students and its base, in the OpenAI protocol.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts of another origin.
        redoc_url=None,
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
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "last-event-id"],
            expose_headers=[chat_api.TRAJECTORY_HEADER],
        )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    add_error_handlers(app)
    app.mount("/page", _PageFiles(directory=STATIC), name="page")
    for module in (chat_api, trajectories_api, review_api, runs_api, jobs):
        app.include_router(module.router)
    app.include_router(router)
    return app


async def _cancel_all(tasks: set[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
