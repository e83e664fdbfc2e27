"""What the routes of one server share, and the Prometheus metrics of that server."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reflux.finetune.run_folder import OpenRun
from reflux.server.errors import ErrorBody
from reflux.server.pending import Waiting
from reflux.server.running_answer import EventLogs, Tasks
from reflux.server.served_models import ServedModels
from reflux.server.settings import ServeSettings

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 422, 429, 502, 503)
}
"""Error responses of every route, for the OpenAPI description."""


class Metrics:
    """Metrics of one server. Labels are names of served models, never text of a client."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self._registry)
        self.under_way = Gauge(
            "reflux_requests_under_way", "Requests being answered.", registry=self._registry
        )
        self.refused = counter("reflux_requests_refused", "Requests refused by a guard.", ["why"])
        self.answers = counter("reflux_answers", "Answers by how they ended.", ["model", "ended"])
        self.tokens = counter("reflux_tokens", "Tokens of accepted trees.", ["model", "kind"])
        self.calls = counter("reflux_model_calls", "Model calls, cached and not.", ["cached"])
        self.seconds = histogram(
            "reflux_answer_seconds", "From the request to the end of the answer.", ["model"]
        )
        self.first = histogram(
            "reflux_first_piece_seconds", "From the request to the stream's first part.", ["model"]
        )

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class ServerState:
    """What the routes of one server share."""

    run: OpenRun
    settings: ServeSettings
    models: ServedModels
    logs: EventLogs
    metrics: Metrics
    waiting: Waiting
    tasks: Tasks


def state_of(request: Request) -> ServerState:
    """Return the state of the server that received a request."""
    return request.app.state.server
