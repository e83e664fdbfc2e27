"""What the server costs beside its engine: added latency, separate streams, stopped spending.

A mock endpoint is the engine; it and the server run in separate processes. The benchmark sends the
same requests at the same times, once through the server and once directly to the engine: complete
answers, first words of streams, and trees against equally many parallel requests. Each round
measures both arms, one after the other; latency counts from the scheduled time of a request.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from benchmarks.load import LoadClient, TimedReply, at_rate, percentile
from benchmarks.mock_endpoint import SPLIT, Endpoint, mock_endpoint
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.served_app import served_app
from reflux.graphs.garbage import settled

Ask = Callable[[int, float], Awaitable[TimedReply]]


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    streams: int = 1_000
    """Concurrent streams."""
    words: int = 20
    """Words of each stream."""
    between_ms: float = 500
    """Milliseconds between words."""
    engine_ms: float = 50
    """Milliseconds to the engine's first word, or its complete answer."""
    direct_per_second: float = 100
    trees_per_second: float = 20
    fanout: int = 8
    seconds: float = 10
    """Seconds of load for each arm and round."""
    rounds: int = 5
    leaving: int = 5
    """Clients that disconnect, one after another."""
    quick: bool = False


async def many_streams(config: Config, base_url: str, report: Report) -> None:
    """Run all streams at once, each with different words."""
    asker, begun = LoadClient(base_url), time.perf_counter()

    def words(number: int) -> str:
        return " ".join(f"s{number}w{word}" for word in range(config.words))

    async def one(number: int) -> TimedReply | None:
        try:
            return await asker.ask("x", words(number), True, begun)
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            return None

    came = await asyncio.gather(*map(one, range(config.streams)))
    seconds = time.perf_counter() - begun
    asker.close()
    n = config.streams
    whole = [said for said in came if said is not None]
    mixed = sum(said is not None and said.text != words(at) for at, said in enumerate(came))
    alone = 1e-3 * (config.engine_ms + (config.words - 1) * config.between_ms)
    row = {"arm": f"{n} streams", "n": n, "at_once": most_at_once(whole)}
    report.rows.append(row | {"seconds": round(seconds, 2), "engine_seconds": round(alone, 2)})
    report.claims += [
        Claim("streams between their first and last word at once", row["at_once"], "==", n, n),
        Claim("streams lost", n - len(whole), "==", 0, n),
        Claim("streams mixed up", mixed, "==", 0, n),
    ]


def most_at_once(said: Sequence[TimedReply]) -> int:
    """Maximum number of streams between their first and last word."""
    changes = sorted([(one.first, 1) for one in said] + [(one.last, -1) for one in said])
    return max(accumulate(change for _, change in changes), default=0)


async def compare(
    name: str, arms: dict[str, Ask], per_second: float, config: Config, report: Report
) -> list[float]:
    """Report each arm and the server's added latency; return the added medians by round."""
    count = max(2, round(per_second * config.seconds))
    times: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    for number in range(-1, config.rounds):  # The first is a warm-up.
        for arm, ask in arms.items():
            base = (number + 1) * count
            said = await at_rate(lambda at, due, a=ask, b=base: a(b + at, due), count, per_second)
            if number >= 0:
                times[arm].append(
                    [1e3 * (one.first if "first" in name else one.last) for one in said]
                )
    found: dict[str, list[list[float]]] = {}
    for arm, rounds in times.items():
        found[arm] = [[middle(one), percentile(one, 0.99)] for one in rounds]
        report.rows.append(_row(f"{name}, {arm}", count * config.rounds, found[arm]))
    added = [
        [ours - alone for ours, alone in zip(a, b, strict=True)]
        for a, b in zip(found["server"], found["engine"], strict=True)
    ]
    report.rows.append(_row(f"{name}, added", count * config.rounds, added))
    return [medians for medians, _ in added]


def _row(arm: str, n: int, rounds: list[list[float]]) -> dict[str, Any]:
    medians, tails = zip(*rounds, strict=True)
    return {
        "arm": arm,
        "n": n,
        "median_ms": round(middle(medians), 2),
        "median_spread": [round(value, 2) for value in spread(medians)],
        "p99_ms": round(middle(tails), 2),
        "p99_spread": [round(value, 2) for value in spread(tails)],
    }


async def latency(config: Config, server_url: str, engine_url: str, report: Report) -> None:
    """The latency that the server adds to complete answers, first words, and trees."""
    server, engine = LoadClient(server_url), LoadClient(engine_url)

    def direct(asker: LoadClient, stream: bool) -> Ask:
        async def ask(at: int, due: float) -> TimedReply:
            question = f"question {at} of {stream}"
            return right(await asker.ask("x", question, stream, due), question if stream else "ok")

        return ask

    async def parallel(at: int, due: float) -> TimedReply:
        parts = [f"part {part} of {at}" for part in range(config.fanout)]
        said = await asyncio.gather(*(engine.ask("x", part, False, due) for part in parts))
        return max(said, key=lambda one: one.last)

    async def tree(at: int, due: float) -> TimedReply:
        said = await server.ask("amplified", f"{SPLIT}{config.fanout} ({at})", False, due)
        return right(said, " ".join(["ok"] * config.fanout))

    rate, trees = config.direct_per_second, config.trees_per_second
    whole = {"engine": direct(engine, False), "server": direct(server, False)}
    await compare(f"direct, {rate:g}/s", whole, rate, config, report)
    first = {"engine": direct(engine, True), "server": direct(server, True)}
    added = await compare(f"first word, {rate:g}/s", first, rate, config, report)
    grown: dict[str, Ask] = {"engine": parallel, "server": tree}
    await compare(f"tree of {config.fanout}, {trees:g}/s", grown, trees, config, report)
    server.close()
    engine.close()
    name = "first word of a direct answer after the engine's own, ms (median)"
    report.claims.append(Claim(name, middle(added), "<=", 15, len(added), spread(added)))


def right(said: TimedReply, text: str) -> TimedReply:
    """Return the reply if it has the expected text.

    Raises:
        RuntimeError: The text differs.
    """
    if said.text != text:
        raise RuntimeError(f"the answer is {said.text[:200]!r}, expected {text[:200]!r}")
    return said


async def leaving(config: Config, server_url: str, endpoint: Endpoint, report: Report) -> None:
    """Seconds from a client's disconnect to the last request of its tree."""
    seconds: list[float] = []
    for number in range(config.leaving):
        asker = LoadClient(server_url)
        before = await _counted(endpoint)
        asking = asyncio.ensure_future(asker.ask("amplified", f"{SPLIT}64 (left {number})"))
        while await _counted(endpoint) < before + 16:  # noqa: ASYNC110 - another process counts
            await asyncio.sleep(0.02)
        asking.cancel()  # Closes the connection.
        await asyncio.gather(asking, return_exceptions=True)
        left = last = time.perf_counter()
        made = await _counted(endpoint)
        while time.perf_counter() - left < 2:
            if (now := await _counted(endpoint)) > made:
                made, last = now, time.perf_counter()
            await asyncio.sleep(0.01)
        if made >= before + 64:
            raise RuntimeError("the tree made all of its 64 requests: nothing was measured")
        seconds.append(last - left)
    name = "seconds from a client's leaving to its tree's last request (greatest)"
    report.claims.append(Claim(name, max(seconds), "<=", 1, len(seconds), spread(seconds)))


async def _counted(endpoint: Endpoint) -> int:
    return await asyncio.to_thread(endpoint.count)


async def measure(config: Config, report: Report) -> None:
    """Run all measurements."""
    with mock_endpoint() as endpoint, tempfile.TemporaryDirectory() as folder:
        slow = endpoint.base_url(config.engine_ms, config.between_ms)
        with served_app(Path(folder, "streams"), slow) as url:
            await many_streams(config, url, report)
        quick = endpoint.base_url(config.engine_ms)
        with served_app(Path(folder, "latency"), quick) as url:
            await latency(config, url, quick, report)
        with served_app(Path(folder, "leaving"), endpoint.base_url(200), "narrow") as url:
            await leaving(config, url, endpoint, report)


def main(config: Config) -> None:
    """Measure and report."""
    report = Report("serve", seed=0, quick=config.quick)
    with settled():  # The load client must not pause for garbage collection, either.
        asyncio.run(measure(config, report))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=cast(str, __doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    small = Config(
        streams=50, words=4, between_ms=200, seconds=0.4, rounds=1, leaving=1, quick=True
    )
    main(small if parser.parse_args().quick else Config())
