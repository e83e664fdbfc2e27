"""`/api/job`: evaluations and distillations that the page starts, one at a time.

A job is a `reflux` command in a subprocess, the same that a user would type. The server owns it, so
a reloaded page finds it again, and it ends with the server. A request can only fill in a form: it
cannot name a path, an endpoint's address or code to load.
"""

import asyncio
import os
import re
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from reflux.agents.errors import UsageError
from reflux.finetune.run_folder import write_whole
from reflux.graphs.evals.runner import parse_systems
from reflux.models import BASE
from reflux.server.chat_request import ApiModel
from reflux.server.state import ERRORS, ServerState, State
from reflux.tasks import TASKS
from reflux.web.runs_api import EVALUATIONS

router = APIRouter(prefix="/api", responses=ERRORS)
MAX_LINES = 500
"""Lines of a job's log that are kept; the oldest are dropped."""
MAX_LINE_CHARS = 2_000
STOP_SECONDS = 10.0
"""Time between the interrupt and the kill of a job."""
PRIVATE_VARIABLES = ("REFLUX_API_KEY",)
"""Environment variables that a job does not inherit."""
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SYSTEM = re.compile(r"direct|amplified|best-of-(n|[1-9][0-9]?)|base")


class Evaluation(ApiModel):
    kind: Literal["evaluation"]
    name: str = Field(pattern=NAME)
    task: str = ""
    """If empty, the task of the run."""
    level: int = Field(default=3, ge=1, le=64)
    limit: int = Field(default=100, ge=1, le=100_000)
    systems: list[str] = Field(default=["direct", "amplified"], min_length=1, max_length=12)
    seed: int = Field(default=1, ge=0, lt=2**31)


class Distillation(ApiModel):
    kind: Literal["distillation"]
    name: str = Field(pattern=NAME)
    """The name of the student."""
    epochs: float | None = Field(default=None, gt=0, le=100, serialization_alias="num_train_epochs")
    steps: int | None = Field(default=None, ge=1, le=10**6, serialization_alias="max_steps")
    learning_rate: float | None = Field(default=None, gt=0, le=1)


JobForm = Annotated[Evaluation | Distillation, Field(discriminator="kind")]


@dataclass
class Job:
    """A running command, or the last one."""

    form: Evaluation | Distillation
    arguments: Sequence[str]
    """The arguments after `reflux`."""
    process: asyncio.subprocess.Process
    started: float = field(default_factory=time.time)
    ended: float | None = None
    lines: deque[str] = field(default_factory=lambda: deque[str](maxlen=MAX_LINES))
    line_count: int = 0
    """Lines printed so far, dropped ones included."""
    stopped: bool = False

    def __post_init__(self) -> None:
        self.watching = asyncio.create_task(self._watch())

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `stopped`."""
        if self.ended is None:
            return "running"
        return "done" if self.process.returncode == 0 else "stopped" if self.stopped else "failed"

    def to_json(self, after: int) -> dict[str, Any]:
        """The job as plain JSON types, with the lines after number `after`."""
        first = self.line_count - len(self.lines)
        return {
            "kind": self.form.kind,
            "name": self.form.name,
            "command": shlex.join(("reflux", *self.arguments)),
            "state": self.state,
            "code": self.process.returncode,
            "seconds": (self.ended or time.time()) - self.started,
            "lines": list(self.lines)[max(0, after - first) :],
            "line_count": self.line_count,
        }

    async def _watch(self) -> None:
        async for line in _lines(self.process.stdout):
            self.lines.append(line[:MAX_LINE_CHARS])
            self.line_count += 1
        await self.process.wait()
        self.ended = time.time()

    async def stop(self) -> None:
        """Interrupt the command, and kill it if it does not end in time."""
        for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, None)):
            if self.state == "running":
                self.stopped = True
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)  # Its children, too.
                await asyncio.wait({self.watching}, timeout=seconds)


class Jobs:
    """The jobs of one server; one runs at a time."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self._starting = asyncio.Lock()

    async def start(self, form: JobForm, prepare: Callable[[], Sequence[str]]) -> Job:
        """Start `reflux` with the arguments that `prepare` returns.

        Raises:
            UsageError: another job is running; `prepare` was not called.
        """
        async with self._starting:
            if self.last is not None and self.last.state == "running":
                job = f"{self.last.form.kind} {self.last.form.name}"
                raise UsageError(f"{job} is running: wait for it, or stop it")
            arguments = prepare()
            env = {k: value for k, value in os.environ.items() if k not in PRIVATE_VARIABLES}
            env |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "110", "REFLUX_PROGRESS_SECONDS": "1"}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "reflux.web.tethered", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C on the server must not reach the job directly.
            )
            self.last = Job(form, arguments, process)
            return self.last

    async def stop(self) -> None:
        if self.last is not None:
            await self.last.stop()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """Yield lines of any length; a carriage return ends a line, too."""
    rest = b""
    while stream is not None and (data := await stream.read(65_536)):
        *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                yield text
        rest = rest[-MAX_LINE_CHARS:]
    if rest:
        yield rest.decode(errors="replace").rstrip()


async def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


PageJobs = Annotated[Jobs, Depends(_jobs)]


@router.get("/job")
async def show_job(
    jobs: PageJobs, after: Annotated[int, Query(ge=0, lt=2**53)] = 0
) -> dict[str, Any]:
    """Show the running job, or the last one, with its lines after number `after`."""
    return {"job": jobs.last and jobs.last.to_json(after)}


@router.get("/job/choices")
async def list_choices(state: State) -> dict[str, Any]:
    """List the tasks and systems that an evaluation may name, and the run's own task."""
    task = state.models.task
    return {
        "tasks": sorted(TASKS),
        "task": task.name if task else "",
        "systems": ["direct", "amplified", "best-of-n", *_named_systems(state)],
    }


@router.post("/job", status_code=201)
async def start_job(body: JobForm, state: State, jobs: PageJobs) -> dict[str, Any]:
    """Start a job, unless one is running."""

    prepare = _eval_arguments if isinstance(body, Evaluation) else _distill_arguments
    job = await jobs.start(body, lambda: prepare(state, body))
    return {"job": job.to_json(0)}


@router.delete("/job")
async def stop_job(jobs: PageJobs) -> dict[str, Any]:
    """Stop the running job; what it recorded stays, and the same evaluation resumes from it."""
    await jobs.stop()
    return await show_job(jobs)


def _named_systems(state: ServerState) -> list[str]:
    students = [student.id for student in state.run.folder.registry.list("agent")]
    return [*students, *(f"endpoint:{name}" for name in state.settings.endpoints)]


def _eval_arguments(state: ServerState, form: Any) -> list[str]:
    if form.task and form.task not in TASKS:
        raise UsageError(f"there is no task {form.task[:80]!r}; there are {', '.join(TASKS)}")
    known = _named_systems(state)
    for system in form.systems:
        if not SYSTEM.fullmatch(system) and system not in known:
            raise UsageError(
                f"{system[:80]!r} cannot be evaluated from here: choose direct, amplified, "
                "best-of-n, best-of-8, a student or an endpoint of the server's --config; "
                "`reflux eval` takes others"
            )
    systems = ",".join(form.systems)
    parse_systems(systems)
    run, model, config = state.run.folder.path, state.settings.model, state.settings.config
    # Another process finds the server's agent by its name only in these cases.
    shared = model in (BASE, *known) or config is not None or "OPENAI_BASE_URL" in os.environ
    options = {"run": run, "systems": systems, "task": form.task or None}
    options |= form.model_dump(include={"level", "limit", "seed"})
    options |= {"model": (model or None) if shared else None, "config": config}
    return _arguments("eval", options | {"out": run / EVALUATIONS / form.name})


def _distill_arguments(state: ServerState, form: Any) -> list[str]:
    folder = state.run.folder
    folder.registry.check_new(form.name)
    sft = form.model_dump(exclude={"kind", "name"}, exclude_none=True, by_alias=True)
    path = folder.path / "distillations" / f"{form.name}.yaml"
    if sft:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump({"sft": sft}))
    options = {"run": folder.path, "student": form.name, "config": path if sft else None}
    return _arguments("distill", options)


def _arguments(command: str, options: Mapping[str, object]) -> list[str]:
    pairs = ((f"--{name}", str(value)) for name, value in options.items() if value is not None)
    return [command, *chain.from_iterable(pairs)]
