"""What OpenTelemetry spans cost for each call, and what their switch costs while off.

The graph asks a direct question: recorded, not replayed, answered by a script at once. It has a
node, one or two steps of the overseer, and a call; `on` adds their spans to `off`. The switch, the
same `with` blocks without spans, is timed separately and compared with the CPU time of such a call.
The cost of a collector is not included: spans are created, batched and discarded.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.report import Claim, Report, middle, spread
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Step
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.traces.telemetry import NO_SPANS, Spans

KEY = CallKey("q", "/0.0.0", "answer")
REQUEST = ChatRequest("base", (("system", ""), ("user", "a question")))


@dataclass(frozen=True)
class Config:
    """How much is measured."""

    fanout: int = 500
    """Sub-questions of one root, each a node with one call."""
    switches: int = 200_000
    """Repeats of the switch measurement."""
    rounds: int = 15
    quick: bool = False


class Thrown(SpanExporter):
    """Discards spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Do nothing."""
        return SpanExportResult.SUCCESS


def spans_on() -> Spans:
    """Spans as with the variable set, but without a collector."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Thrown(), max_queue_size=100_000))
    return Spans(provider)


async def call_ms(config: Config, spans: Spans) -> float:
    """CPU time of one sub-question in ms."""

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if not may_ask:
            return PASS
        if transcript:
            return Answer("done")
        return Ask.of(*(f"part {part}" for part in range(config.fanout)))

    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder, "traces.db"))
        context = AmplifyContext(
            RecordedClient(ScriptedClient(lambda _: "4"), store, spans),
            "base",
            [ScriptedOverseer("parts", act)],
            limits=Limits(fanout=config.fanout),
        )
        begun = time.process_time()
        await answer_all(Amplified(context), Origin("spans", 0, "amplified", "", ""), ["root"])
        spent = time.process_time() - begun
        store.close()
    return 1e3 * spent / config.fanout


def switch_ms(times: int) -> float:
    """Cost of the switch while off, in ms for each sub-question: a node, a step, a call."""
    begun = time.process_time()
    for _ in range(times):
        with (
            NO_SPANS.node("/0.0.0", "", "base") as node,
            NO_SPANS.step(KEY, "parts"),
            NO_SPANS.call(KEY, REQUEST, "digest"),
        ):
            node.ended("ok")
    return 1e3 * (time.process_time() - begun) / times


def main(config: Config) -> None:
    """Measure and report."""
    report = Report("spans", seed=0, quick=config.quick)
    arms = {"off": NO_SPANS, "on": spans_on()}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, config.rounds):  # The first is a warm-up.
        for name, spans in arms.items():
            ms = asyncio.run(call_ms(config, spans))
            if number >= 0:
                taken[name].append(ms)
    switch = [switch_ms(config.switches) for _ in range(5)]
    for name, found in {**taken, "the switch alone": switch}.items():
        row = {"arm": name, "n": len(found), "ms_a_call": round(middle(found), 5)}
        report.rows.append(row | {"spread": [round(value, 5) for value in spread(found)]})
    share = [100 * each / middle(taken["off"]) for each in switch]
    name = "share of a call's processor time that the switch takes where it is off, %"
    report.claims.append(Claim(name, middle(share), "<=", 1, len(share), spread(share)))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=cast(str, __doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    small = Config(fanout=20, switches=2_000, rounds=2, quick=True)
    main(small if parser.parse_args().quick else Config())
