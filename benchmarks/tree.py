"""Deep and large trees: wall time against the ideal, and memory and CPU against the size.

First, three levels of ten on a mock endpoint that takes 200 ms, with 128 requests in flight. The
overseer splits and joins by itself (1,000 calls), or asks the model for both (1,222 calls, most of
which wait for others). In turns with it runs the floor: the same calls in the same tree of plain
coroutines on `AsyncOpenAI`. The ideal is the time that these calls take if only latency costs time:
each starts as soon as its tree allows and a slot is free. How far the floor is above the ideal says
how fast the machine is.

Then trees of up to 100,000 direct answers by an in-process function, with every call recorded. Each
tree runs in a separate process, whose peak resident memory is read at its end.
"""

import argparse
import asyncio
import heapq
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.mock_endpoint import SPLIT, mock_endpoint
from benchmarks.overhead import Plain
from benchmarks.report import Claim, Report, middle, spread
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.types import Answer, Ask, ChatClient, ChatRequest, Completion, Step
from reflux.graphs.amplify.context import AmplifyContext, ConcurrencyLimit, Limits
from reflux.graphs.ask import Amplified, Origin
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

ASKED = Origin("tree", 0, "amplified", "tree", "train")
JOIN = "join"


@dataclass(frozen=True)
class Shape:
    """A tree in which every inner node has the same number of children."""

    fanout: int
    levels: int
    concurrency: int = 128
    """Maximum concurrent sub-questions at each depth."""

    @property
    def leaves(self) -> int:
        """Sub-questions at the lowest level."""
        return self.fanout**self.levels


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    wide: Shape = Shape(10, 3, concurrency=256)
    """The default limit exceeds the 128 requests, so none of them waits for a record."""
    latency_ms: float = 200
    concurrency: int = 128
    repeats: int = 10
    large: tuple[Shape, ...] = (
        Shape(10, 3, concurrency=16),
        Shape(10, 4, concurrency=16),
        Shape(10, 5, concurrency=16),
        Shape(10, 5),
        Shape(316, 2, concurrency=32),
        Shape(10, 4, concurrency=10**6),
    )
    """The first three grow while their number of open branches stays equal: even the smallest has
    more than 16 at a depth. The last has effectively no limit."""
    quick: bool = False


class Splitting:
    """An overseer that splits every question to the lowest level and joins the answers.

    With `model`, it asks the agent how to split and to join: each is a sub-question.
    """

    name = "splitting"

    def __init__(self, shape: Shape, *, model: bool) -> None:
        self._shape = shape
        self._model = model

    async def act(self, context: OverseerContext) -> Step:
        """Split or join; a question's text is its path in the tree, such as `/0/4` below `/0`."""
        question, transcript = context.question, context.transcript
        if question.startswith((SPLIT, JOIN)) or question.count("/") > self._shape.levels:
            return PASS
        fanout = self._shape.fanout
        parts = Ask.of(*(f"{question}{i}/" for i in range(fanout)))
        if not self._model:
            return Answer("ok") if transcript else parts
        if not transcript:
            return Ask.of(f"{SPLIT}{fanout} {question}")
        if len(transcript) == 1:
            return parts
        if len(transcript) == 1 + fanout:
            return Ask.of(f"{JOIN} {question}: {' '.join(str(e.answer) for e in transcript[1:])}")
        return Answer(str(transcript[-1].answer))


class InProcess:
    """A constant model: only the graph and its record take time and memory."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer at the next iteration of the event loop."""
        await asyncio.sleep(0)
        return Completion("ok", 8, 1)

    async def model_digest(self, model: str) -> str:
        """Its name."""
        return model


async def answered(shape: Shape, client: ChatClient, store: TraceStore, *, model: bool) -> int:
    """Amplify one root; return the number of calls.

    Raises:
        RuntimeError: The root has no accepted answer.
    """
    overseer = Splitting(shape, model=model)
    # With the model's part, a node's split and join are children, too.
    limits = Limits(shape.levels, shape.fanout, calls=20 * shape.leaves, tokens=10**12)
    context = AmplifyContext(
        RecordedClient(client, store),
        "mock",
        [overseer],
        limits=limits,
        votes=VotePolicy(max_votes=1),
        top_logprobs=0,
        concurrency=ConcurrencyLimit(shape.concurrency),
    )
    question_id = ASKED.question_id(str(time.perf_counter_ns()))
    await store.add_question({"id": question_id, "text": "/", **vars(ASKED)})
    outcome = await Amplified(context).answer("/", question_id)
    if outcome["answer"] != "ok":
        raise RuntimeError(f"the root ended as {outcome}")
    return outcome["spent"]["calls"]


def ideal_waves(shape: Shape, slots: int, *, model: bool) -> int:
    """Time to answer the root if calls cost only latency, in units of latency.

    List scheduling (Hu 1961): all calls take the same time, so they run in batches of at most
    `slots`. Among the calls whose dependencies are complete, those furthest from the end go first.
    """
    if not model:
        return -(-shape.leaves // slots)
    # (calls from here to the end, negative; kind; depth; number among those of its depth)
    ready = [(-2 * shape.levels - 1, "split", 0, 0)]
    waits: dict[tuple[int, int], int] = {}
    waves = 0
    while ready:
        next_votes = [heapq.heappop(ready) for _ in range(min(slots, len(ready)))]
        waves += 1
        for _, kind, depth, number in next_votes:
            if kind == "split":
                waits[depth, number] = shape.fanout
                below = "leaf" if depth + 1 == shape.levels else "split"
                left = 2 * shape.levels - depth
                children = range(number * shape.fanout, (number + 1) * shape.fanout)
                due = [(-left, below, depth + 1, child) for child in children]
            elif depth:
                above = depth - 1, number // shape.fanout
                waits[above] -= 1
                due = [] if waits[above] else [(-depth, "join", *above)]
            else:
                due = []
            for call in due:
                heapq.heappush(ready, call)
    return waves


async def plain(shape: Shape, ask: Callable[[str], Awaitable[Any]], *, model: bool) -> None:
    """The tree's calls as coroutines that wait for one another, and nothing else."""

    async def node(path: str, depth: int) -> None:
        if depth == shape.levels:
            await ask(path)
            return
        if model:
            await ask(f"{SPLIT}{shape.fanout} {path}")
        await asyncio.gather(*(node(f"{path}{i}/", depth + 1) for i in range(shape.fanout)))
        if model:
            await ask(f"{JOIN} {path}")

    await node("/", 0)


async def timed(config: Config, *, model: bool) -> tuple[list[float], list[float]]:
    """Wall seconds of the wide tree and of its floor on the mock endpoint, after a warm-up each."""
    seconds: list[float] = []
    floor: list[float] = []
    shape, concurrency = config.wide, config.concurrency
    above = (shape.leaves - 1) // (shape.fanout - 1)
    due = shape.leaves + (2 * above if model else 0)
    with mock_endpoint() as endpoint, tempfile.TemporaryDirectory() as folder:
        client = OpenAIClient(endpoint.base_url(config.latency_ms), "none", concurrency=concurrency)
        store = TraceStore(Path(folder, "t.db"))
        floor_client = Plain(endpoint.base_url(config.latency_ms), concurrency)
        arms: list[tuple[list[float], Callable[[], Awaitable[Any]]]] = [
            (seconds, lambda: answered(shape, client, store, model=model)),
            (floor, lambda: plain(shape, floor_client.ask, model=model)),
        ]
        for _ in range(1 + config.repeats):
            for times, arm in arms:
                before, begun = endpoint.count(), time.perf_counter()
                await arm()
                times.append(time.perf_counter() - begun)
                if (made := endpoint.count() - before) != due:
                    raise RuntimeError(f"{made} requests where {due} were due")
        store.close()
        await client.close()
        await floor_client.close()
    return seconds[1:], floor[1:]


def grown(shape: Shape) -> dict[str, Any]:
    """Run one large tree in this process; return its cost and its peak memory in MB."""
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder, "t.db"))
        cpu, wall = time.process_time(), time.perf_counter()
        calls = asyncio.run(answered(shape, InProcess(), store, model=False))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        (stored,) = next(iter(store.select("SELECT count(*) FROM calls WHERE kind = 'model'")))
        store.close()
    if calls != shape.leaves or stored != calls:
        raise RuntimeError(f"{calls} calls and {stored} rows where {shape.leaves} were due")
    return {
        "leaves": shape.leaves,
        "fanout": shape.fanout,
        "levels": shape.levels,
        "branches": shape.concurrency,
        "cpu_ms_per_call": round(1e3 * cpu / calls, 4),
        "wall_s": round(wall, 2),
        "peak_mb": round(_peak_mb(), 1),
        "peak_mb_above_start": round(_peak_mb() - before, 1),
    }


def _peak_mb() -> float:
    """Peak of this program only: `ru_maxrss` may include the process that started it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def wide(config: Config, report: Report) -> None:
    """Wall time against the ideal, with and without dependent calls."""
    for model in (False, True):
        seconds, floor = asyncio.run(timed(config, model=model))
        waves = ideal_waves(config.wide, config.concurrency, model=model)
        ideal = waves * config.latency_ms / 1e3
        ratio = [round(value / ideal, 4) for value in seconds]
        report.rows.append(
            {
                "leaves": config.wide.leaves,
                "fanout": config.wide.fanout,
                "levels": config.wide.levels,
                "branches": config.wide.concurrency,
                "split_and_join": "by the model" if model else "by a script",
                "n": len(seconds),
                "ideal_s": round(ideal, 3),
                "wall_s": round(middle(seconds), 3),
                "wall_spread": [round(value, 3) for value in spread(seconds)],
                "floor_s": round(middle(floor), 3),
            }
        )
        who = "the model" if model else "a script"
        report.claims.append(
            Claim(
                f"wall, times the ideal of {ideal:.1f} s; split and joined by {who}",
                middle(ratio), "<=", 1.5, len(ratio), spread(ratio),
            )
        )  # fmt: skip
        beside = [round(ours / least, 4) for ours, least in zip(seconds, floor, strict=True)]
        report.claims.append(
            Claim(
                f"wall, times plain coroutines on AsyncOpenAI; split and joined by {who}",
                middle(beside), "<=", 1.5, len(beside), spread(beside),
            )
        )  # fmt: skip


def large(config: Config, report: Report) -> None:
    """Memory and CPU against the size, each tree in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        found = list(processes.map(grown, config.large))
    report.rows += found
    smallest, middle_size, largest = found[:3]
    size = f"{largest['leaves']:,} sub-questions"
    report.claims += [
        Claim(f"peak memory of {size}, MB", largest["peak_mb"], "<=", 1500, 1),
        Claim(
            f"its part above the start, times that of {middle_size['leaves']:,}",
            largest["peak_mb_above_start"] / middle_size["peak_mb_above_start"],
            "<=", 1.5, 1,
        ),
        Claim(
            f"CPU per call of {size}, times that of {smallest['leaves']:,}",
            largest["cpu_ms_per_call"] / smallest["cpu_ms_per_call"],
            "<=", 1.2, 1,
        ),
    ]  # fmt: skip


def main(config: Config) -> None:
    """Measure and report."""
    report = Report("tree", seed=0, quick=config.quick)
    wide(config, report)
    large(config, report)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=cast(str, __doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    small = Config(
        wide=Shape(3, 2),
        latency_ms=20,
        repeats=1,
        large=(Shape(3, 1), Shape(3, 2), Shape(3, 3)),
        quick=True,
    )
    main(small if parser.parse_args().quick else Config())
