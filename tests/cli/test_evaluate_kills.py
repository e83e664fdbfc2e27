"""SIGKILL at random moments of an evaluation of 300 questions: it ends as one undisturbed.

Each call that X or the graph is asked is noted in a file outside the store, so that repeated ones
are counted even where no row tells.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from reflux.agents.types import ChatRequest, Completion
from reflux.cli.evaluation.plan import Plan, compare
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.evals.eval_task import LevelEvalTask
from reflux.tasks.addition import Addition
from tests.support.sums import exact

pytestmark = pytest.mark.process

QUESTIONS = 300
KILLS = 6
TOGETHER = 32
"""Questions under way at once; each of them has one call under way."""
GRAPH = """\
import asyncio, os

async def graph(question):
    with open(os.environ["NOTES_OF_TEST"], "a") as file:
        file.write(f"graph {question}\\n")
    await asyncio.sleep(0.002)
    return {"answer": question[::-1], "confidence": 0.5}
"""


class NotingClient:
    """Notes each request, and answers it after a moment that luck decides; one in five wrongly."""

    def __init__(self, notes: int, luck: random.Random) -> None:
        self._notes, self._luck = notes, luck

    async def complete(self, request: ChatRequest) -> Completion:
        os.write(self._notes, f"{request.digest('scripted')}\n".encode())
        await asyncio.sleep(self._luck.uniform(0, 0.004))
        wrong = crc32(repr((request.messages, request.vote)).encode()) % 5 == 0
        return Completion("wrong" if wrong else exact(request), 9, 3)

    async def model_digest(self, model: str) -> str:
        return "scripted"


def run_system(folder: Path, graph: Path, seed: int) -> None:
    """Begin the evaluation, or go on with it, to its end, and write down what it found."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    os.environ["NOTES_OF_TEST"] = str(folder / "asked")
    folder.mkdir(exist_ok=True)
    notes = os.open(folder / "asked", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def run() -> None:
        client = NotingClient(notes, random.Random(seed))
        eval_task = LevelEvalTask(Addition(), 3, QUESTIONS)
        plan = Plan(eval_task, ("direct", "amplified", f"{graph}:graph"))
        opened = OpenRun(RunFolder(folder), client=client)
        async with opened, AsyncExitStack() as stack:
            found = await compare(opened, plan, "base", stack, lambda *_: None)
            answers = [asdict(a) for each in found.answers.values() for a in each]
        # How many answers a kill left on record is chance.
        whole = {"figures": found.to_json() | {"record": {}}, "answers": answers}
        (folder / "found.json").write_text(json.dumps(whole))

    asyncio.run(run())


def start(folder: Path, graph: Path, seed: int) -> BaseProcess:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["reflux.cli.evaluation.command", "reflux.tasks.addition"])
    process = server.Process(target=run_system, args=(folder, graph, seed))
    process.start()
    return process


def noted(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def calls(folder: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(folder / "traces.db")) as store:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute("SELECT * FROM calls ORDER BY id")]


def recorded(rows: list[dict[str, Any]]) -> set[str]:
    """What of the notes is in the log."""
    graph = {
        f"graph {json.loads(row['messages'])[0]['content']}"
        for row in rows
        if row["kind"] == "graph"
    }
    return graph | {row["request_digest"] for row in rows if row["kind"] == "model"}


def timeless(value: Any) -> Any:
    """Without seconds, and without which of several that asked the same was the first."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "seconds"}
        if "trajectory" in kept:
            del kept["cached"]
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_an_evaluation_killed_at_random_moments_ends_as_one_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:resource_tracker")
    graph = tmp_path / "answering.py"
    graph.write_text(GRAPH)
    # The folder's name is part of every question's id.
    (whole := tmp_path / "whole" / "run").parent.mkdir()
    (folder := tmp_path / "killed" / "run").parent.mkdir()
    undisturbed = start(whole, graph, seed=0)
    undisturbed.join(timeout=200)
    assert undisturbed.exitcode == 0
    total = len(noted(whole))
    assert total >= 2 * QUESTIONS

    luck = random.Random(1)
    moments = sorted(luck.sample(range(50, total - 50), KILLS))
    kept: list[dict[str, Any]] = []
    in_flight: Counter[str] = Counter()
    for number, moment in enumerate(moments, start=1):
        before = len(noted(folder))
        process = start(folder, graph, seed=number)
        while len(noted(folder)) < moment + in_flight.total():
            assert process.is_alive()
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        rows = calls(folder)
        assert rows[: len(kept)] == kept  # No call that was recorded is lost or changed.
        kept = rows
        lost = [note for note in noted(folder)[before:] if note not in recorded(rows)]
        assert len(lost) == len(set(lost)) <= TOGETHER
        in_flight.update(lost)
    last = start(folder, graph, seed=KILLS + 1)
    last.join(timeout=200)
    assert last.exitcode == 0

    asked = Counter(noted(folder))
    assert asked - in_flight == Counter(noted(whole))
    assert asked.total() <= total + KILLS * TOGETHER
    assert calls(folder)[: len(kept)] == kept
    one, other = (json.loads((run / "found.json").read_text()) for run in (folder, whole))
    assert timeless(one) == timeless(other)
    assert len(one["answers"]) == 3 * QUESTIONS
