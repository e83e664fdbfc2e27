"""SIGKILL at random moments of amplify, distill and evaluate: the run goes on as if undisturbed.

Each process climbs two rounds with a scripted X and a tiny base. Each call that X is asked is
noted in a file outside the store, so that repeated ones are counted even where no row tells.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from reflux.agents.types import ChatRequest, Completion
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.finetune.data.rows import Row, accepted
from reflux.finetune.gates import GateConfig
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from tests.support.commanding import LOADED
from tests.support.run_folders import put_base
from tests.support.sums import FewSums, exact, timeless

CONFIG = RoundsConfig(
    rounds=(
        RoundSpec(level=1, primitive_repeats=1),
        RoundSpec(level=2, questions=60, held_out=30, primitive_repeats=1),
    ),
    anchor=10,
    canaries=CanaryConfig(prompts=5, probes=3),
    max_concurrency=8,
    gates=GateConfig(imitation=0, retention=0, regression=1, behavior=1),
    sft={"max_steps": 3, "per_device_train_batch_size": 2},
    lora={"r": 2},
)
TOGETHER = 32
"""Most questions that any stage asks at once; each of them has one call under way."""
MOMENTS = (
    ("the base answers the anchor", 0.02),
    ("load the base", 0.3),
    ("distill student-r0", 0.3),
    ("imitate the overseer: direct", 0.05),
    ("amplify student-r0", 0.1),
    ("amplify student-r0", 0.2),
    ("amplify student-r0", 0.3),
    ("load the base", 0.3),
    ("distill student-r1", 0.3),
    ("evaluate direct", 0.05),
    ("evaluate amplified", 0.1),
    ("evaluate amplified", 0.2),
    ("evaluate student", 0.05),
)
"""Of each kill a stage, and the most seconds into it."""


class NotingClient:
    """Notes each request, and answers it after a moment that luck decides.

    One answer in four is wrong, so that there are votes and retries.
    """

    def __init__(self, notes: int, luck: random.Random) -> None:
        self._notes, self._luck = notes, luck

    async def complete(self, request: ChatRequest) -> Completion:
        note(self._notes, request.digest("scripted"))
        await asyncio.sleep(self._luck.uniform(0, 0.005))
        wrong = crc32(repr((request.messages, request.vote)).encode()) % 4 == 0
        return Completion("wrong" if wrong else exact(request), 9, 3)

    async def model_digest(self, model: str) -> str:
        return "scripted"


def note(file: int, text: str) -> None:
    os.write(file, f"{text}\n".encode())


def noted(folder: Path, name: str) -> list[str]:
    path = folder.with_name(name)
    return path.read_text().splitlines() if path.exists() else []


def climb(folder: Path, base: Path, seed: int) -> None:
    """Begin the run of a folder, or go on with it, to its end."""
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = str(folder.parent)
    put_base(base)
    asked, stages = (
        os.open(folder.with_name(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for name in ("asked", "stages")
    )

    async def run() -> None:
        client = NotingClient(asked, random.Random(seed))
        async with OpenRun(RunFolder(folder), client=client) as opened:
            await run_rounds(opened, CONFIG, FewSums(), lambda what, *_: note(stages, what))

    asyncio.run(run())


def start(folder: Path, base: Path, seed: int) -> BaseProcess:
    """A process of its own that climbs."""
    folder.parent.mkdir(exist_ok=True)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(LOADED))
    process = server.Process(target=climb, args=(folder, base, seed))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join(timeout=240)
    assert process.exitcode == 0


def kill(
    process: BaseProcess, folder: Path, known: int, stages: Collection[str], after: float
) -> bool:
    """Kill a process `after` seconds into the first of `stages` that it comes to; False where it
    ended before. `known` stages were noted before it began."""
    while not set(stages) & set(noted(folder, "stages")[known:]):
        if not process.is_alive():
            break
        time.sleep(0.002)
    time.sleep(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def read(folder: Path, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(folder / "traces.db")) as store:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute(f"SELECT * FROM {table}")]  # noqa: S608


UNEQUAL = ("id", "created", "seconds", "cached", "run")
"""Columns in which two runs of one config differ."""


def contents(folder: Path, table: str) -> list[str]:
    """The rows of a table in an order of their own, without places, times, and which of several
    that asked the same was the first."""
    found: list[str] = []
    for row in read(folder, table):
        row = {k: v for k, v in row.items() if k not in UNEQUAL}
        if table == "judgements":
            row["detail"] = json.loads(row["detail"])
            row["detail"].get("spent", {}).pop("cached", None)
            del row["key"]  # It ends in a hash of the detail.
        found.append(json.dumps(row, sort_keys=True))
    return sorted(found)


def learned(folder: Path) -> list[Row]:
    """The accepted rows of every system, without the run's own id."""
    store = RunFolder(folder).store()
    asked = (("primitive", "overseer"), ("train", "amplified"), ("train", "anchor"))
    rows = [row for split, system in asked for row in accepted(store, split, system, 1, "")]
    store.close()
    return [replace(row, provenance=row.provenance | {"run": ""}) for row in rows]


@pytest.mark.process
@pytest.mark.engine
@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_undisturbed(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The killed ones cannot give back what they shared; whoever cleans up need not say so.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:resource_tracker")
    whole, folder = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    undisturbed = start(whole, tiny_base, seed=0)
    luck = random.Random(0)
    kept: list[dict[str, Any]] = []
    in_flight: Counter[str] = Counter()
    kills = 0
    for number, (_, max_votes) in enumerate(MOMENTS, start=1):
        known, before = len(noted(folder, "stages")), len(noted(folder, "asked"))
        process = start(folder, tiny_base, seed=number)
        # An earlier kill may have come after this stage: then the next one that is left.
        left = [stage for stage, _ in MOMENTS[number - 1 :]]
        kills += kill(process, folder, known, left, after=luck.uniform(0, max_votes))
        calls = read(folder, "calls")
        assert calls[: len(kept)] == kept
        kept = calls
        recorded = {row["request_digest"] for row in calls}
        lost = [asked for asked in noted(folder, "asked")[before:] if asked not in recorded]
        assert len(lost) == len(set(lost)) <= TOGETHER
        in_flight.update(lost)
        for student in RunFolder(folder).registry.list():
            RunFolder(folder).registry.get(student.id)  # Whole, or it raises.
    assert kills >= 10
    finish(start(folder, tiny_base, seed=len(MOMENTS) + 1))
    finish(undisturbed)

    asked = Counter(noted(folder, "asked"))
    assert asked - in_flight <= Counter(set(noted(whole, "asked")))
    assert asked.total() <= len(noted(whole, "asked")) + in_flight.total()
    assert read(folder, "calls")[: len(kept)] == kept
    for table in ("questions", "calls", "judgements"):
        assert contents(folder, table) == contents(whole, table)
    assert learned(folder) == learned(whole)
    one, other = (json.loads((run / "report.json").read_text()) for run in (folder, whole))
    assert timeless(one["rounds"]) == timeless(other["rounds"])
    weights = [
        [student.adapter_sha256 for student in RunFolder(run).registry.list()]
        for run in (folder, whole)
    ]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 2
