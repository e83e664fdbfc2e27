"""What an evaluation of many answers takes, and how often stopping early errs.

A scripted model answers questions of a file; each size runs in a separate process, whose peak
memory is its own. Under the null hypothesis two systems are right equally often, and a run errs
where any of its looks calls one better.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Claim, Report
from reflux.agents.clients.scripted import ScriptedClient
from reflux.cli.evaluation.command import MAX_REPLIES
from reflux.cli.evaluation.plan import FIRST_LOOK, LOOK_GROWTH, Plan, Settings, compare
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.evals.decisions import ALPHA, Differences, anytime_p_differ
from reflux.graphs.evals.eval_task import FileEvalTask
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.questions.files import read_questions


@dataclass(frozen=True)
class Config:
    """How much is measured."""

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Questions; the first is the one that the others are compared with."""
    runs: int = 2_000
    length: int = 2_000
    """Questions of a run."""
    quick: bool = False


class Forgetful(ScriptedClient):
    """Keeps no requests: they are the test's memory, not the evaluation's."""

    async def complete(self, request: Any) -> Any:
        """Answer and forget."""
        reply = await super().complete(request)
        self.requests.clear()
        return reply


def evaluate(n: int) -> tuple[float, float]:
    """(peak MiB, seconds) of one system's evaluation on n questions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "questions.jsonl")
        with path.open("w") as file:
            for i in range(n):
                body = {"question": f"What is the number {i}? Say it.", "answer": str(i)}
                file.write(json.dumps(body) + "\n")

        async def run() -> None:
            client = Forgetful(lambda request: request.messages[-1][1][19:-9])
            opened = OpenRun(RunFolder(Path(folder, "run")), client=client, max_replies=MAX_REPLIES)
            async with opened, AsyncExitStack() as stack:
                task = FileEvalTask(read_questions(path), "number")
                plan = Plan(task, ("direct",), settings=Settings(overseer="plain", max_tokens=16))
                found = await compare(opened, plan, "base", stack, lambda *_: None)
            assert found.summaries["direct"].accuracy == 1.0  # noqa: S101 - the benchmark's own

        begun = time.perf_counter()
        asyncio.run(run())
        seconds = time.perf_counter() - begun
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds


def errs(draws: np.ndarray) -> bool:
    """True where any look at one run calls one of two equal systems better."""
    gained, lost, n = np.cumsum(draws > 0), np.cumsum(draws < 0), FIRST_LOOK
    while True:
        n = min(n, len(draws))
        a, b = int(gained[n - 1]), int(lost[n - 1])
        if anytime_p_differ(Differences({1.0: a, -1.0: b, 0.0: n - a - b})) <= ALPHA:
            return True
        if n == len(draws):
            return False
        n = int(np.ceil(n * LOOK_GROWTH))


def main(config: Config) -> None:
    """Measure memory by size, and the rate of wrong verdicts by the share of differing answers."""
    report = Report("evaluation", seed=0, quick=config.quick)
    peaks: dict[int, float] = {}
    for n in config.sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[n], seconds = pool.apply(evaluate, (n,))
        report.rows.append({"questions": n, "peak MiB": peaks[n], "seconds": seconds})
    few, many = config.sizes[0], config.sizes[-1]
    growth = (peaks[many] - peaks[few]) * 1024 / (many - few)
    report.claims.append(Claim("KiB of memory for each answer more", growth, "<=", 1.0, many))
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 1.0):
        p = [share / 2, share / 2, 1 - share]
        wrong = sum(
            errs(rng.choice([1, -1, 0], p=p, size=config.length)) for _ in range(config.runs)
        )
        rate = wrong / config.runs
        interval = wilson(wrong, config.runs)
        report.rows.append({"share that differs": share, "wrong": wrong, "runs": config.runs})
        name = f"wrong verdicts of stopping early, {share:.0%} of answers differ"
        report.claims.append(Claim(name, rate, "<=", ALPHA, config.runs, interval))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    small = Config(sizes=(50, 200), runs=20, length=200, quick=True)
    main(small if parser.parse_args().quick else Config())
