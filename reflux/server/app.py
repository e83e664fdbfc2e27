"""The server of one run folder: an app of routers, with one set of guards before all of them.

Every route finds the run, the models and the events of growing trees in `app.state.served`, as
`reflux.server.chat_api.Served`; those of the page are in `reflux/web`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from reflux.agents.clients.endpoints import Endpoints
from reflux.agents.clients.llama_cpp import LlamaCppClient
from reflux.agents.overseers.protocol import AnyOverseer
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.ask import settled
from reflux.graphs.traces.telemetry import process_spans
from reflux.overseers import OVERSEERS
from reflux.server import chat_api, tree_api
from reflux.server.chat_api import TRACE, Served, served
from reflux.server.errors import answer_errors
from reflux.server.event_log import EventLogs
from reflux.server.guards import OPEN, Guard, check_exposure
from reflux.server.metrics import Metrics
from reflux.server.pending import Waiting
from reflux.server.served_models import ServedModels
from reflux.server.settings import ServeSettings
from reflux.web.commands import Jobs
from reflux.web.shell import add_page

router = APIRouter()


@router.get("/healthz")
async def healthy() -> dict[str, str]:
    """The server answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def show_metrics(request: Request) -> Response:
    """Counts for Prometheus."""
    return Response(served(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def create_app(
    folder: RunFolder,
    settings: ServeSettings | None = None,
    overseers: Mapping[str, AnyOverseer] = OVERSEERS,
) -> FastAPI:
    """The app that serves a run folder; it opens the folder when it starts.

    Args:
        overseers: H by name, each served as `amplified:NAME`.

    Raises:
        UsageError: the settings contradict themselves, or would leave the server open to others.
        MissingError: spans are asked for, and what sends them is not installed.
    """
    settings = settings or ServeSettings()
    check_exposure(settings)
    models = ServedModels(folder, settings, overseers)
    metrics = Metrics()

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncGenerator[None]:
        engine = LlamaCppClient(folder.models, settings.engine)
        client = Endpoints(settings.endpoints, engine)
        run = OpenRun(folder, client=client, warm=False)
        waiting, tasks = Waiting(run, overseers), set[asyncio.Task[None]]()
        logs = EventLogs(settings.kept_events)
        app.state.served = Served(run, settings, models, logs, metrics, waiting, tasks)
        app.state.jobs = jobs = Jobs()
        async with AsyncExitStack() as ends:  # Last in, first out.
            ends.push_async_callback(client.close)
            ends.push_async_callback(asyncio.to_thread, run.recorded_client.spans.flush)
            await ends.enter_async_context(run)
            ends.push_async_callback(waiting.close)
            ends.push_async_callback(_end, tasks)
            ends.push_async_callback(jobs.stop)
            ends.enter_context(settled())
            yield

    app = FastAPI(
        title="Reflux",
        summary="The amplified agent, its students and its base, in the OpenAI protocol.",
        lifespan=opened,
        docs_url=None,  # The documentation pages load their scripts from elsewhere.
        redoc_url=None,
        # A request's span, above that of its run, and below the client's where it names one. Its
        # logs would hold what was asked.
        telemetry={
            "tracer_provider": process_spans().provider,
            "operation_spans": False,
            "logs": False,
            "exclude": lambda scope: scope.get("path") in OPEN,  # A watchdog asks for ever.
        },
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "last-event-id"],
            expose_headers=[TRACE],
        )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    answer_errors(app)
    for routes in (router, chat_api.router, tree_api.router):
        app.include_router(routes)
    add_page(app)
    return app


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Stop what is under way, before what it needs is closed."""
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
