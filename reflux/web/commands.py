"""Long work that the page started: one `reflux` command at a time, in a process of its own.

The process is the command that a person would have typed, so it does what they do and no more. It
belongs to the server, not to the page: a page that is reloaded finds it where it is, and it ends
with the server, however that ends.
"""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from reflux.agents.errors import UsageError

KEPT = 500
"""Lines of a job that are kept; the oldest go first."""
LONGEST = 2_000
"""Characters of a line."""
GRACE = 10.0
"""Seconds to end in after an interrupt, before the process is killed."""
UNTOLD = ("REFLUX_API_KEY",)
"""Variables of the server that are no business of its jobs."""


@dataclass
class Job:
    """A command under way, or the last one."""

    kind: str
    name: str
    """Of what it makes."""
    words: Sequence[str]
    """After `reflux`."""
    begun: float
    process: asyncio.subprocess.Process
    ended: float | None = None
    code: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque[str](maxlen=KEPT))
    said: int = 0
    """Lines in all."""
    stopped: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `stopped`."""
        if self.ended is None:
            return "running"
        return "done" if self.code == 0 else "stopped" if self.stopped else "failed"

    def add(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line[:LONGEST])
        self.said += 1

    def to_json(self, after: int) -> dict[str, Any]:
        """Plain JSON types, with the lines after number `after`."""
        first = self.said - len(self.lines)
        return {
            "kind": self.kind,
            "name": self.name,
            "command": " ".join(("reflux", *self.words)),
            "state": self.state,
            "code": self.code,
            "seconds": (self.ended or time.time()) - self.begun,
            "lines": list(self.lines)[max(0, after - first) :],
            "said": self.said,
        }


class Jobs:
    """The jobs of one server."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(
        self,
        kind: str,
        name: str,
        prepare: Callable[[], Sequence[str]],
        env: Mapping[str, str] | None = None,
    ) -> Job:
        """Begin `reflux` with the words that `prepare` gives, once no other job is in its way.

        Raises:
            UsageError: another job is under way.
        """
        async with self._starting:
            if self.last is not None and self.last.state == "running":
                raise UsageError(
                    f"{self.last.kind} {self.last.name} is under way: wait for it, or stop it"
                )
            words = prepare()
            told = {key: value for key, value in os.environ.items() if key not in UNTOLD}
            told |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "110", "REFLUX_PROGRESS_SECONDS": "1"}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "reflux.web.tethered",
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**told, **(env or {})},
                start_new_session=True,  # An interrupt of the server is not one of the job.
            )
            self.last = job = Job(kind, name, words, time.time(), process)
            self._task = asyncio.create_task(_watch(job))
            return job

    async def stop(self) -> None:
        """End what is under way, gently at first."""
        job = self.last
        if job is None or job.state != "running":
            return
        job.stopped = True
        _signal(job, signal.SIGINT)
        try:
            async with asyncio.timeout(GRACE):
                await job.done.wait()
        except TimeoutError:
            _signal(job, signal.SIGKILL)
            await job.done.wait()


async def _watch(job: Job) -> None:
    async for line in _lines(job.process.stdout):
        job.add(line)
    job.code = await job.process.wait()
    job.ended = time.time()
    job.done.set()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """Lines of any length."""
    rest = b""
    while stream is not None and (more := await stream.read(65_536)):
        *lines, rest = (rest + more).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                yield text
        rest = rest[-LONGEST:]
    if rest:
        yield rest.decode(errors="replace").rstrip()


def _signal(job: Job, number: int) -> None:
    """To the job and to what it started."""
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)
