"""The review queue in a large store: time for one page, and for an edit of a tree.

Each trajectory has eight answers. One in twenty has split votes, one root in ten is rejected, two
thirds are open to review, and every fifth rejected one has been reviewed.
"""

import argparse
import asyncio
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Claim, Report, middle
from reflux.graphs.recompute import revise
from reflux.graphs.traces.review import Why, page, queue, rejected_by_humans
from reflux.graphs.traces.store import TraceStore

WHYS: tuple[Why, ...] = ("escalated", "disputed", "audit")
PER_PAGE = 50
MOST_MS = 200.0


@dataclass(frozen=True)
class Config:
    """One run."""

    trajectories: int = 100_000
    pages: int = 30
    """Pages of each kind, one after another."""
    seed: int = 0
    quick: bool = False


def fill(path: Path, config: Config) -> list[str]:
    """Write the store; return the ids of its roots."""
    TraceStore(path).close()
    draw = random.Random(config.seed)
    ids = [f"{draw.getrandbits(64):016x}" for _ in range(config.trajectories)]
    connection = sqlite3.connect(path)
    for number, id in enumerate(ids):
        split = "held_out" if number % 3 == 0 else "train"
        asked = (id, "run", number // 20_000, "amplified", "t", split, f"question {number}", number)
        connection.execute(
            "INSERT INTO questions (id, run, round, system, task, split, text, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            asked,
        )
        for at in range(8):
            said: dict[str, Any] = {"question": f"part {at}", "answer": "a", "status": "ok"}
            said["tally"] = [["a", 3], ["b", 1]] if draw.random() < 0.05 else [["a", 1]]
            _judge(connection, id, f"/0.0.{at}", "direct", True, said | {"error": None})
        refused = draw.random() < 0.1
        status = "rejected" if refused else "ok"
        root = {"question": f"question {number}", "answer": "a", "status": status, "error": None}
        _judge(connection, id, "", "outcome", not refused, root)
        if refused and draw.random() < 0.2:
            _judge(connection, id, "", "verdict", True, {"answer": "a", "comment": ""})
        if draw.random() < 0.002:
            form = {"step": 0, "attempt": 0, "form": {"question": "who?"}}
            _judge(connection, id, "", "deferred", None, form)
    connection.commit()
    connection.close()
    return ids


def _judge(
    connection: sqlite3.Connection,
    id: str,
    path: str,
    kind: str,
    ok: bool | None,
    detail: dict[str, Any],
) -> None:
    connection.execute(
        "INSERT INTO judgements (question, path, kind, ok, detail, author, created)"
        " VALUES (?, ?, ?, ?, ?, 'reflux', 0)",
        (id, path, kind, ok, json.dumps(detail)),
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return (milliseconds, result)."""
    begun = time.perf_counter()
    made = work()
    return (time.perf_counter() - begun) * 1e3, made


def pages(store: TraceStore, why: Why, most: int) -> list[float]:
    """Milliseconds for each page of one kind."""
    took: list[float] = []
    start: int | None = None
    while len(took) < most:
        ms, (_, start) = timed(lambda start=start: page(store, why, PER_PAGE, start))
        took.append(ms)
        if start is None:
            break
    return took


def main(config: Config) -> Report:
    """Fill a store and read its queue."""
    report = Report("review", seed=config.seed, quick=config.quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.db"
        ids = fill(path, config)
        opened, store = timed(lambda: TraceStore(path))
        report.rows.append({"what": "open the store", "median ms": round(opened, 2), "n": 1})
        for why in WHYS:
            took = pages(store, why, config.pages)
            report.rows.append(_row(f"a page of {why}", took))
            slowest = f"slowest page of {why}, ms"
            report.claims.append(
                Claim(slowest, max(took), "<=", MOST_MS, len(took), (min(took), max(took)))
            )
        took = [timed(lambda: queue(store, PER_PAGE))[0] for _ in range(5)]
        report.rows.append(_row("the first items of all kinds", took))
        took = [timed(lambda: rejected_by_humans(store))[0] for _ in range(5)]
        report.rows.append(_row("who was rejected, for a distillation", took))
        took = asyncio.run(_edits(store, ids[:20]))
        report.rows.append(_row("a root edited", took))
        store.close()
    return report


async def _edits(store: TraceStore, ids: list[str]) -> list[float]:
    took: list[float] = []
    for id in ids:
        begun = time.perf_counter()
        await revise(store, id, "", "mine")
        took.append((time.perf_counter() - begun) * 1e3)
    return took


def _row(what: str, took: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "median ms": round(middle(took), 2),
        "most ms": round(max(took), 2),
        "n": len(took),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    given = parser.parse_args()
    main(Config(trajectories=1_000, pages=3, quick=True) if given.quick else Config()).finish()
