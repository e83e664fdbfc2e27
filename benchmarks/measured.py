"""One measurement of `benchmarks.engine`, made in a separate process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

WARM_SEED = 1_000_003
"""Seed of the warm-up questions, so that measured questions are new to the engine."""


@dataclass(frozen=True)
class Measured:
    """One arm's measurement over one list of questions."""

    seconds: float
    texts: tuple[str, ...]
    prompt_tokens: int
    """All prompt tokens, computed or cached."""
    computed_tokens: int
    """Computed prompt tokens, without padding."""
    completion_tokens: int
    """Sampled tokens, including the end of the answer."""
    peak_mib: float
    """Peak resident memory of the process, including weights and Python."""
    cpu_seconds: float
    """CPU time of the process over all threads, including busy waiting."""
    others_cpu: float
    """Share of the machine's CPU time used by other processes."""


class Arm(Protocol):
    """One way to answer the questions."""

    @property
    def name(self) -> str: ...

    @property
    def max_requests(self) -> int | None: ...

    def measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        """Answer all questions after a warm-up."""
        ...


def in_own_process(
    arm: Arm, questions: Sequence[str], max_tokens: int, fresh: bool = True
) -> Measured:
    """Measure an arm in a separate process; a fresh one shares no threads, caches or memory with
    other arms, and imports everything anew."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn" if fresh else "fork")) as pool:
        return pool.submit(arm.measure, questions[: arm.max_requests], max_tokens).result()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Run busy processes for the length of the block."""
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Clock:
    """Measures elapsed time and the CPU share of other processes."""

    def __init__(self) -> None:
        self._begun, self._own, self._busy = time.perf_counter(), _own_cpu(), _busy_cpu()

    def read(self) -> tuple[float, float, float]:
        """Return seconds, own CPU seconds, and other processes' share of all cores."""
        seconds = time.perf_counter() - self._begun
        own = _own_cpu() - self._own
        taken = max(0.0, _busy_cpu() - self._busy - own)
        return seconds, own, taken / (seconds * (os.cpu_count() or 1))


def _own_cpu() -> float:
    spent = os.times()
    return spent.user + spent.system


def _busy_cpu() -> float:
    """Busy seconds of all cores since boot; nan where the system does not report them."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return float("nan")
    ticks = [int(part) for part in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    """Peak resident memory of this process in MiB; nan where the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return float(found[0]) / 1024 if found else float("nan")
