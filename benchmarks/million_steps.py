"""A million dependent steps without an error: the Tower of Hanoi as a chain of votes.

Each step is one link of a chain through the real graph. The first answer to lead by k votes wins,
with the k that the planner computes for 99% success, and each step is recorded before the next. The
copies are in-process agents of known accuracy whose errors are other legal moves, so no check
catches them. Each run uses a separate process; SIGKILL interrupts the longest run, which resumes.

An error is a recorded step that is not the best move. The record of a step holds the question, the
answer, and the votes if they were not unanimous (`reflux.graphs.amplify.chain`).

Finally the default model, distilled on single moves, solves a tower (`benchmarks.tower_student`).
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sqlite3
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hanoi import NoisyAgent
from benchmarks.measured import peak_mib
from benchmarks.report import Claim, Report
from benchmarks.tower_student import MOST, TARGET, StudentConfig, climb_with, climb_with_student
from reflux.agents.types import ChatRequest
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.ask import Amplified, Origin
from reflux.graphs.evals.task import task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.planner import Plan, plan
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.hanoi import Hanoi
from reflux.tasks.tower import Position, best, first_move, on_the_way

ASKED = Origin("million", 0, "amplified", "hanoi", "asked")


@dataclass(frozen=True)
class Case:
    """One tower."""

    disks: int
    accuracy: float
    seed: int
    killed: bool = False
    """Kill the run once, at a random step, and resume it."""

    @property
    def steps(self) -> int:
        """Moves of the shortest solution."""
        return 2**self.disks - 1

    @property
    def plan(self) -> Plan:
        """The plan for all steps to be right."""
        return plan(TARGET, self.steps, self.accuracy)


@dataclass(frozen=True)
class Config:
    """All towers."""

    cases: tuple[Case, ...] = (
        *(Case(16, p, seed) for p in (0.99, 0.9978) for seed in range(5)),
        Case(20, 0.99, 5, killed=True),
    )
    student: StudentConfig = field(default_factory=StudentConfig)
    quick: bool = False


def begun(case: Case) -> Position:
    """The question for the first move."""
    return first_move(on_the_way(case.disks, "X", "Z", 0))


def climb(case: Case, path: Path, told: Path) -> None:
    """Solve one tower in this process, and write its cost to `told`."""
    store = TraceStore(path)
    asked = case.plan
    limits = Limits(calls=int(1.2 * asked.votes) + 1_000, tokens=10**12, attempts=1)
    given = AmplifyContext(
        RecordedClient(NoisyAgent(case.accuracy, case.seed), store),
        "noisy",
        (),
        limits=limits,
        votes=VotePolicy(min_logprob=None, rule=AheadBy(asked.margin, MOST)),
        top_logprobs=0,
    )
    context = task_context(given, Hanoi())

    async def work() -> dict[str, Any]:
        question = on_the_way(case.disks, "X", "Z", 0).text
        await store.add_question({"id": "tower", "text": question, **vars(ASKED)})
        outcome = await Amplified(context).answer(question, "tower")
        return dict(outcome)

    cpu, wall = time.process_time(), time.perf_counter()
    outcome = asyncio.run(work())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    store.close()
    told.write_text(json.dumps({"outcome": outcome, "cpu": cpu, "wall": wall, "mib": peak_mib()}))


def walked(case: Case) -> dict[str, Any]:
    """One row: solve the tower in separate processes, and score its recorded moves."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, told = Path(folder, "t.db"), Path(folder, "told.json")
        killed_at = 0
        if case.killed:
            process = spawn.Process(target=climb, args=(case, path, told))
            process.start()
            at = random.Random(case.seed).randrange(case.steps // 10, case.steps)
            while process.is_alive() and last_step(path) < at:
                time.sleep(0.5)
            process.kill()
            process.join()
            killed_at = last_step(path)
        process = spawn.Process(target=climb, args=(case, path, told))
        process.start()
        process.join()
        found = json.loads(told.read_text())
        errors, steps, votes, bytes_kept = marked(case, path)
    asked = case.plan
    here = votes - votes * killed_at / max(1, steps)  # Votes of the timed process.
    agent = agent_us(case)
    return {
        "disks": case.disks,
        "accuracy": case.accuracy,
        "seed": case.seed,
        "k": asked.margin,
        "steps": steps,
        "errors": errors + (not is_accepted(found["outcome"]["status"])),
        "votes": votes,
        "votes / predicted": round(votes / asked.votes, 4),
        "killed at step": killed_at or None,
        "µs a vote": round(1e6 * found["cpu"] / here, 1),
        "of them the agent's": round(agent, 1),
        "wall s": round(found["wall"], 1),
        "peak MiB": round(found["mib"]),
        "bytes a step": round(bytes_kept / max(1, steps)),
    }


def last_step(path: Path) -> int:
    """Number of the last recorded step; 0 if there is none."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            newest = (
                "SELECT max(number) FROM links WHERE question='tower' AND path='' AND attempt=0"
            )
            return connection.execute(newest).fetchone()[0] or 0
    except sqlite3.Error:
        return 0


def marked(case: Case, path: Path) -> tuple[int, int, int, int]:
    """Return (wrong or discontinuous steps, steps, votes, bytes of the file)."""
    errors = steps = votes = 0
    due = begun(case)
    connection = sqlite3.connect(path)
    rows = "SELECT number, batch, asked, answer, calls FROM links ORDER BY number, batch"
    asked = ""
    for number, next_votes, question, answer, calls in connection.execute(rows):
        votes += calls
        asked = question if next_votes == 0 else asked
        if answer is None:
            continue
        right = best(due)
        errors += number != steps or asked != due.text or answer != right
        due = due.after(right)
        steps += 1
    connection.close()
    return errors + abs(case.steps - steps), steps, votes, path.stat().st_size


def agent_us(case: Case, calls: int = 5_000) -> float:
    """CPU time of the agent for one vote, in µs."""
    agent = NoisyAgent(case.accuracy, case.seed)
    request = ChatRequest("noisy", (("system", ""), ("user", begun(case).text)))

    async def work() -> None:
        for _ in range(calls):
            await agent.complete(request)

    cpu = time.process_time()
    asyncio.run(work())
    return 1e6 * (time.process_time() - cpu) / calls


def main(config: Config) -> None:
    """Solve all towers and report."""
    report = Report("million_steps", seed=0, quick=config.quick)
    for case in config.cases:
        report.rows.append(walked(case))
        print(report.rows[-1], flush=True)
    for row in report.rows:
        name = f"{row['disks']} disks, accuracy {row['accuracy']:g}, seed {row['seed']}"
        report.claims += [
            Claim(f"errors: {name}", row["errors"], "==", 0, row["steps"]),
            Claim(
                f"votes off their prediction, share: {name}",
                abs(row["votes / predicted"] - 1), "<=", 0.05, row["votes"],
            ),
        ]  # fmt: skip
    longest = max(report.rows, key=lambda row: row["steps"])
    ours = longest["µs a vote"] - longest["of them the agent's"]
    report.claims += [
        Claim("peak memory, MiB", max(r["peak MiB"] for r in report.rows), "<=", 500, 1),
        Claim("our own processor time for a vote of the longest, µs", ours, "<=", 200, 1),
    ]
    with tempfile.TemporaryDirectory() as folder:
        if config.quick:  # Training the student takes minutes; a script replaces it.
            climbed = climb_with(NoisyAgent(0.98), config.student, Path(folder), report)
        else:
            climbed = climb_with_student(config.student, Path(folder), report)
        asyncio.run(climbed)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    small = Config(
        (Case(4, 0.9, 0), Case(7, 0.99, 1, killed=True)),
        StudentConfig(disks=5, probes=40),
        quick=True,
    )
    main(small if parser.parse_args().quick else Config())
