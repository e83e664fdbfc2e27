"""What recording by URL costs, and what it loses.

A client asks a mock endpoint in a separate process, directly and by way of `reflux record`, in
turns in one run: latency to the first and to the last word at 100 streams a second, bodies and
streams compared byte by byte. Then processes are killed under load: the recorder, the endpoint
behind it, and clients in the middle of their streams. At last a million calls are recorded, and a
process turns them into rows.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import LoadClient, TimedReply, at_rate, percentile
from benchmarks.mock_endpoint import Endpoint, mock_endpoint
from benchmarks.report import Claim, Report, middle, spread
from reflux.agents.types import Completion
from reflux.finetune.data.recorded import LeftOut, RowOptions, recorded_rows
from reflux.graphs.traces.database import reading
from reflux.graphs.traces.selection import selecting
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import RecordedCall, RecordedOutcome, Trajectory
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

FIRST_MS, BETWEEN_MS = 50.0, 10.0
"""Of the endpoint: to the first word, and between words."""
MOST_MS = 3.0
JUST_NOW = 0.1
"""Seconds before a kill within which a reply may be under way to the record."""
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "it",
    "rains",
    "in",
    "the",
    "old",
    "town",
    "at",
    "night",
]


@dataclass(frozen=True)
class Config:
    """One run."""

    repeats: int = 5
    """Blocks of each way, in turns."""
    streams: int = 1_000
    """Of each block."""
    per_second: float = 100.0
    compared: int = 500
    """Replies compared byte by byte, each way."""
    left: int = 200
    """Clients that leave."""
    calls: int = 1_000_000
    """Recorded calls that become rows."""
    seed: int = 0
    quick: bool = False


QUICK = Config(1, 20, 20.0, 6, 5, 2_000, quick=True)


@contextmanager
def recorder(run: Path, upstream: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`reflux record` in a separate process: its address, and the process."""
    words = ["-m", "reflux", "record", "--run", str(run), "--upstream", upstream, "--port", "0"]
    env = {**os.environ, "REFLUX_API_KEY": ""}
    command = [sys.executable, *words, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline() if process.stdout else ""
        try:
            yield json.loads(text)["url"], process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def question(draw: random.Random, number: int) -> str:
    return f"q{number} {' '.join(draw.choices(WORDS, k=19))}"


async def block(url: str, config: Config, draw: random.Random) -> list[TimedReply]:
    """One block of streams, evenly spaced."""
    client = LoadClient(url)
    asked = [question(draw, number) for number in range(config.streams)]
    replies = await at_rate(
        lambda number, due: client.ask("m", asked[number], True, due),
        config.streams,
        config.per_second,
    )
    client.close()
    assert [reply.text for reply in replies] == asked  # noqa: S101 - else nothing was measured
    return replies


def latency(report: Report, config: Config, endpoint: Endpoint, folder: Path) -> None:
    """Time to the first and the last word, directly and recorded."""
    direct = endpoint.base_url(FIRST_MS, BETWEEN_MS)
    draw = random.Random(config.seed)
    samples: dict[str, list[list[TimedReply]]] = {"direct": [], "recorded": []}
    with recorder(folder, direct) as (recorded, _):
        for url in (direct, recorded):  # Connections and imports.
            asyncio.run(block(url, replace(config, streams=10), draw))
        for _ in range(config.repeats):
            for way, url in (("direct", direct), ("recorded", recorded)):
                samples[way].append(asyncio.run(block(url, config, draw)))
    for way, blocks in samples.items():
        report.rows.append({"measured": way, **_figures([r for each in blocks for r in each])})
    for part in ("first", "last"):
        for name, share, most in (("median", 0.5, MOST_MS), ("p99", 0.99, 10.0)):
            added = [
                _ms(after, part, share) - _ms(before, part, share)
                for before, after in zip(*samples.values(), strict=True)
            ]
            title = f"ms added to the {part} word, {name}"
            n = config.repeats * config.streams
            report.claims.append(Claim(title, middle(added), "<=", most, n, spread(added)))
    report.rows.append({"measured": "on record", "calls": len(texts(folder))})


def _ms(replies: Sequence[TimedReply], part: str, share: float) -> float:
    return 1e3 * percentile([getattr(reply, part) for reply in replies], share)


def _figures(replies: Sequence[TimedReply]) -> dict[str, float]:
    shares = {"median": 0.5, "p99": 0.99}
    return {
        f"{part} word, {name} ms": _ms(replies, part, share)
        for part in ("first", "last")
        for name, share in shares.items()
    }


def texts(run: Path) -> list[tuple[str, str | None]]:
    """(the last message, the error) of each recorded call."""
    with reading(run / "traces.db") as store:
        rows = store.select("SELECT messages ->> '$[#-1].content' AS text, error FROM calls")
        return [(row["text"], row["error"]) for row in rows]


async def whole_reply(url: str, body: dict[str, Any]) -> bytes:
    """The body of a reply without its chunks' sizes, which are not the endpoint's."""
    rest = url.removeprefix("http://")
    place, _, path = rest.partition("/")
    host, _, port = place.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = f"POST /{path}/chat/completions HTTP/1.1\r\nhost: {place}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    told = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" not in told:
        length = int(told.partition(b"content-length:")[2].partition(b"\r\n")[0])
        found = await reader.readexactly(length)
    else:
        found = b""
        while size := int(await reader.readline(), 16):
            found += await reader.readexactly(size)
            await reader.readline()
    writer.close()
    return found


def compare(report: Report, config: Config, endpoint: Endpoint, folder: Path) -> None:
    """Bodies and streams, byte by byte."""
    direct, draw = endpoint.base_url(1, 0), random.Random(config.seed + 1)
    differ = 0
    with recorder(folder, direct) as (recorded, _):
        for number in range(config.compared):
            text = question(draw, number) + " é\u2028"
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            body |= {"stream": True} if number % 2 else {}
            one, other = (asyncio.run(whole_reply(url, body)) for url in (direct, recorded))
            differ += one != other
    n = config.compared
    report.claims.append(Claim("bodies and streams that differ", differ, "==", 0, n))


async def under_load(url: str, config: Config, kill: Any) -> tuple[list[tuple[str, float]], float]:
    """((question, time of its last word) of each whole reply, time of the kill)."""
    client, draw = LoadClient(url), random.Random(config.seed + 2)
    ends: list[tuple[str, float]] = []

    async def ask(text: str) -> None:
        await client.ask("m", text, True)
        ends.append((text, time.perf_counter()))

    tasks: list[asyncio.Task[None]] = []
    for number in range(config.streams):
        tasks.append(asyncio.ensure_future(ask(question(draw, number))))
        await asyncio.sleep(1 / config.per_second)
    at = time.perf_counter()
    kill()
    await asyncio.gather(*tasks, return_exceptions=True)
    client.close()
    return ends, at


def killed(report: Report, config: Config, endpoint: Endpoint, folder: Path) -> None:
    """What the record lacks after the recorder was killed."""
    with recorder(folder, endpoint.base_url(FIRST_MS, BETWEEN_MS)) as (url, process):
        ends, at = asyncio.run(under_load(url, config, process.kill))
    known = {text for text, _ in texts(folder)}
    lacking = [at - end for text, end in ends if text not in known]
    row = {"measured": "SIGKILL", "whole replies": len(ends), "not on record": len(lacking)}
    report.rows.append(row | {"ms before the kill, at most": 1e3 * max(lacking, default=0)})
    lost = sum(seconds > JUST_NOW for seconds in lacking)
    name = f"whole replies lost that came {JUST_NOW * 1e3:.0f} ms before a SIGKILL or earlier"
    report.claims.append(Claim(name, lost, "==", 0, len(ends)))


def broken(report: Report, config: Config, folder: Path) -> None:
    """Streams that the endpoint broke off, as the record has them."""
    with (
        mock_endpoint() as endpoint,
        recorder(folder, endpoint.base_url(FIRST_MS, BETWEEN_MS)) as (url, _),
    ):
        ends, _ = asyncio.run(under_load(url, config, endpoint_killer(endpoint)))
    errors = [error for _, error in texts(folder)]
    halves = sum("broke off" in (error or "") for error in errors)
    row = {"measured": "endpoint killed", "whole replies": len(ends), "broken off": halves}
    report.rows.append(row)
    missing = config.streams - len(errors)
    report.claims.append(Claim("streams missing after the endpoint died", missing, "==", 0,
                               config.streams))  # fmt: skip


def endpoint_killer(endpoint: Endpoint) -> Any:
    """Kills the process that listens at the endpoint's port."""
    return lambda: os.kill(endpoint.process, signal.SIGKILL)


async def leave(url: str, config: Config) -> None:
    """Clients that leave after a part of their stream."""
    place, _, path = url.removeprefix("http://").partition("/")
    host, _, port = place.partition(":")
    draw = random.Random(config.seed + 3)
    for number in range(config.left):
        reader, writer = await asyncio.open_connection(host, int(port))
        turns = [{"role": "user", "content": question(draw, number)}]
        data = json.dumps({"model": "m", "messages": turns, "stream": True}).encode()
        head = f"POST /{path}/chat/completions HTTP/1.1\r\nhost: {place}\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await reader.readuntil(b"data: ")
        writer.close()


def left(report: Report, config: Config, endpoint: Endpoint, folder: Path) -> None:
    """Streams whose client left, as the record has them."""
    with recorder(folder, endpoint.base_url(5, 50)) as (url, _):
        asyncio.run(leave(url, config))
    halves = sum("the client left" in (error or "") for _, error in texts(folder))
    name = "streams recorded as left by their client, share"
    report.claims.append(Claim(name, halves / config.left, "==", 1, config.left))


def fill(path: Path, calls: int, seed: int) -> None:
    """Record so many calls, four a trajectory, each with the conversation before it."""
    draw = random.Random(seed)
    with closing(TraceStore(path)) as store:
        writer = TrajectoryWriter(store)
        waiting: list[Future[None]] = []
        for number in range(calls // 4):
            turns: list[dict[str, Any]] = [{"role": "system", "content": "You help."}]
            made: list[RecordedCall] = []
            for step in range(4):
                text = question(draw, number)
                turns.append({"role": "user", "content": text})
                made.append(RecordedCall(tuple(turns), Completion(text[::-1]), step=step))
                turns.append({"role": "assistant", "content": text[::-1]})
            outcome = RecordedOutcome(made[-1].reply.text)
            waiting.append(
                writer.record(Trajectory(str(number), "url", tuple(made), outcome=outcome))
            )
            if len(waiting) == 500:
                waiting.pop().result()
                waiting.clear()
        for future in waiting:
            future.result()


def read_rows(path: Path) -> dict[str, float]:
    """Make the rows of a record: how many, in how many seconds and MB of this process."""
    before, begun = _mb(), time.perf_counter()
    options = RowOptions(any_status=True)
    with reading(path) as store, selecting(path) as selection:
        rows = sum(1 for _ in recorded_rows(store, selection, options, LeftOut()))
    return {"rows": rows, "seconds": time.perf_counter() - begun, "MB": _mb() - before}


def _mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many_rows(report: Report, config: Config, folder: Path) -> None:
    """Rows of a tenth of the calls, and of all, each in a separate process."""
    taken: list[float] = []
    for calls in (config.calls // 10, config.calls):
        path = folder / f"{calls}.db"
        begun = time.perf_counter()
        fill(path, calls, config.seed)
        seconds = time.perf_counter() - begun
        command = [sys.executable, "-m", "benchmarks.record", "--rows", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
        name = f"{calls} calls"
        report.rows.append({"measured": name, "recorded in s": seconds, **figures})
        assert figures["rows"] == calls // 4 * 4  # noqa: S101 - else nothing was measured
        taken.append(figures["MB"])
        path.unlink()
    more = taken[1] - taken[0]
    name = "MB more for the rows of ten times the calls"
    report.claims.append(Claim(name, more, "<=", 20, config.calls))


def main(config: Config) -> None:
    """Measure all, and report."""
    report = Report("record", seed=config.seed, quick=config.quick)
    with tempfile.TemporaryDirectory() as name, mock_endpoint() as endpoint:
        folder = Path(name)
        latency(report, config, endpoint, folder / "latency")
        compare(report, config, endpoint, folder / "compare")
        killed(report, config, endpoint, folder / "killed")
        broken(report, config, folder / "broken")
        left(report, config, endpoint, folder / "left")
        many_rows(report, config, folder)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, help="Recorded calls that become rows.")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.rows is not None:
        print(json.dumps(read_rows(told.rows)))
    else:
        chosen = replace(QUICK if told.quick else Config(), seed=told.seed)
        main(replace(chosen, calls=told.calls or chosen.calls))
