"""One measurement of `benchmarks.engine`, and the process of its own that it is made in."""

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
"""Warm-up questions come from here, so that no measured question was seen before."""


@dataclass(frozen=True)
class Measured:
    """One arm over one list of questions."""

    seconds: float
    texts: tuple[str, ...]
    prompt_tokens: int
    """All tokens of the prompts, computed or taken from a cache."""
    computed_tokens: int
    """Prompt tokens that were computed, paddings not counted."""
    completion_tokens: int
    """Tokens drawn, the end of the answer among them."""
    peak_mib: float
    """Most memory that the process held, weights and Python included."""
    cpu_seconds: float
    """Processor time of the process, all threads, waiting in a loop included."""
    others_cpu: float
    """Share of the machine's processor time that other processes took meanwhile."""


class Arm(Protocol):
    """One way of answering the questions."""

    @property
    def name(self) -> str: ...

    @property
    def max_requests(self) -> int | None: ...

    def measure(self, questions: Sequence[str], max_tokens: int) -> Measured:
        """Answer all questions, warm."""
        ...


def in_own_process(arm: Arm, questions: Sequence[str], max_tokens: int) -> Measured:
    """Measure an arm in a process that starts for it and ends with it.

    So that one arm's threads, caches and memory are not another's.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(arm.measure, questions[: arm.max_requests], max_tokens).result()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that do nothing but take processor time while the block runs."""
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Clock:
    """Time since it was made, and how much of the machine others had meanwhile."""

    def __init__(self) -> None:
        self._begun, self._own, self._busy = time.perf_counter(), _own_cpu(), _busy_cpu()

    def read(self) -> tuple[float, float, float]:
        """Seconds, own processor seconds, and the share of all cores that other processes took."""
        seconds = time.perf_counter() - self._begun
        own = _own_cpu() - self._own
        taken = max(0.0, _busy_cpu() - self._busy - own)
        return seconds, own, taken / (seconds * (os.cpu_count() or 1))


def _own_cpu() -> float:
    spent = os.times()
    return spent.user + spent.system


def _busy_cpu() -> float:
    """Seconds that all cores have been busy since the machine started; nan if not told."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return float("nan")
    ticks = [int(part) for part in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    """Most resident memory of this process so far, in MiB; nan where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return float(found[0]) / 1024 if found else float("nan")
