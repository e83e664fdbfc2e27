"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of one server; labels are names of models that it serves, never a client's words."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.under_way = Gauge(
            "reflux_requests_under_way", "Requests being answered.", registry=self._registry
        )
        self.refused = Counter(
            "reflux_requests_refused", "Requests refused at the door.", ["why"],
            registry=self._registry,
        )  # fmt: skip
        self.answers = Counter(
            "reflux_answers", "Chat answers, by how they ended.", ["model", "ended"],
            registry=self._registry,
        )  # fmt: skip
        self.tokens = Counter(
            "reflux_tokens", "Tokens of accepted answers, of the whole tree.", ["model", "kind"],
            registry=self._registry,
        )  # fmt: skip
        self.calls = Counter(
            "reflux_model_calls", "Calls of models, cache hits apart.", ["cached"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "reflux_answer_seconds", "From the request to the end of the answer.", ["model"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self.first = Histogram(
            "reflux_first_piece_seconds", "From the request to the first piece of a stream.",
            ["model"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self._registry)
