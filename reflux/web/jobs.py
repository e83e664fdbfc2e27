"""`/api/job`: evaluations and distillations that the page starts, one at a time.

A job is a `reflux` command in a subprocess, the same that a user would type. The server owns it, so
a reloaded page finds it again, and it ends with the server. A request can only fill in a form: it
cannot name a path, an endpoint's address or code to load.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Query, Request
from pydantic import Field

from reflux.agents.errors import UsageError
from reflux.finetune.run_folder import RunFolder, write_whole
from reflux.graphs.evals.runner import parse_systems
from reflux.models import BASE
from reflux.server.chat_request import ApiModel
from reflux.server.state import ERRORS, ServerState, state_of
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
    """`reflux eval` on a task."""

    kind: Literal["evaluation"]
    name: str = Field(pattern=NAME)
    task: str = ""
    """If empty, the task of the run."""
    level: int = Field(default=3, ge=1, le=64)
    limit: int = Field(default=100, ge=1, le=100_000)
    systems: list[str] = Field(default=["direct", "amplified"], min_length=1, max_length=12)
    seed: int = Field(default=1, ge=0, lt=2**31)


class Distillation(ApiModel):
    """`reflux distill` on the trajectories of the run."""

    kind: Literal["distillation"]
    name: str = Field(pattern=NAME)
    """The name of the student."""
    epochs: float | None = Field(default=None, gt=0, le=100)
    steps: int | None = Field(default=None, ge=1, le=10**6)
    learning_rate: float | None = Field(default=None, gt=0, le=1)


JobForm = Annotated[Evaluation | Distillation, Field(discriminator="kind")]


@dataclass
class Job:
    """A running command, or the last one."""

    kind: str
    name: str
    """The name of its output."""
    arguments: Sequence[str]
    """The arguments after `reflux`."""
    started: float
    process: asyncio.subprocess.Process
    ended: float | None = None
    code: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque[str](maxlen=MAX_LINES))
    line_count: int = 0
    """Lines printed so far, dropped ones included."""
    stopped: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `stopped`."""
        if self.ended is None:
            return "running"
        return "done" if self.code == 0 else "stopped" if self.stopped else "failed"

    def to_json(self, after: int) -> dict[str, Any]:
        """Return the job as plain JSON types, with the lines after number `after`."""
        first = self.line_count - len(self.lines)
        return {
            "kind": self.kind,
            "name": self.name,
            "command": " ".join(("reflux", *self.arguments)),
            "state": self.state,
            "code": self.code,
            "seconds": (self.ended or time.time()) - self.started,
            "lines": list(self.lines)[max(0, after - first) :],
            "line_count": self.line_count,
        }

    async def watch(self) -> None:
        """Collect the output until the process ends."""
        async for line in _lines(self.process.stdout):
            self.lines.append(line[:MAX_LINE_CHARS])
            self.line_count += 1
        self.code = await self.process.wait()
        self.ended = time.time()
        self.done.set()

    def signal(self, number: int) -> None:
        """Send a signal to the process and to its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Jobs:
    """The jobs of one server; one runs at a time."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self, kind: str, name: str, prepare: Callable[[], Sequence[str]]) -> Job:
        """Start `reflux` with the arguments that `prepare` returns.

        Raises:
            UsageError: another job is running; `prepare` was not called.
        """
        async with self._starting:
            if self.last is not None and self.last.state == "running":
                raise UsageError(
                    f"{self.last.kind} {self.last.name} is running: wait for it, or stop it"
                )
            arguments = prepare()
            env = {k: value for k, value in os.environ.items() if k not in PRIVATE_VARIABLES}
            env |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "110", "REFLUX_PROGRESS_SECONDS": "1"}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "reflux.web.tethered",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C on the server must not reach the job directly.
            )
            self.last = job = Job(kind, name, arguments, time.time(), process)
            self._task = asyncio.create_task(job.watch())
            return job

    async def stop(self) -> None:
        """Interrupt the running job, and kill it if it does not end in time."""
        job = self.last
        if job is None or job.state != "running":
            return
        job.stopped = True
        job.signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await job.done.wait()
        except TimeoutError:
            job.signal(signal.SIGKILL)
            await job.done.wait()


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


@router.get("/job")
async def show_job(
    request: Request, after: Annotated[int, Query(ge=0, lt=2**53)] = 0
) -> dict[str, Any]:
    """Show the running job, or the last one, with its lines after number `after`."""
    job = _jobs(request).last
    return {"job": None if job is None else job.to_json(after)}


@router.get("/job/choices")
async def list_choices(request: Request) -> dict[str, Any]:
    """List the tasks and systems that an evaluation may name, and the run's own task."""
    state = state_of(request)
    task = state.models.task
    return {
        "tasks": sorted(TASKS),
        "task": task.name if task else "",
        "systems": ["direct", "amplified", "best-of-n", *_students(state), *_endpoints(state)],
    }


@router.post("/job", status_code=201)
async def start_job(body: JobForm, request: Request) -> dict[str, Any]:
    """Start a job, unless one is running."""
    state = state_of(request)

    def prepare() -> list[str]:
        if isinstance(body, Evaluation):
            return _eval_arguments(state, body)
        return _distill_arguments(state.run.folder, body)

    job = await _jobs(request).start(body.kind, body.name, prepare)
    return {"job": job.to_json(0)}


@router.delete("/job")
async def stop_job(request: Request) -> dict[str, Any]:
    """Stop the running job; what it recorded stays, and the same evaluation resumes from it."""
    await _jobs(request).stop()
    return await show_job(request)


def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


def _students(state: ServerState) -> list[str]:
    return [student.id for student in state.run.folder.registry.list()]


def _endpoints(state: ServerState) -> list[str]:
    return [f"endpoint:{name}" for name in state.settings.endpoints]


def _eval_arguments(state: ServerState, form: Evaluation) -> list[str]:
    if form.task and form.task not in TASKS:
        raise UsageError(f"there is no task {form.task[:80]!r}; there are {', '.join(TASKS)}")
    known = [*_students(state), *_endpoints(state)]
    for system in form.systems:
        if not SYSTEM.fullmatch(system) and system not in known:
            raise UsageError(
                f"{system[:80]!r} cannot be evaluated from here: choose direct, amplified, "
                "best-of-n, best-of-8, a student or an endpoint of the server's --config; "
                "`reflux eval` takes others"
            )
    systems = ",".join(form.systems)
    parse_systems(systems)
    folder = state.run.folder
    arguments = ["eval", "--run", str(folder.path), "--systems", systems]
    arguments += ["--level", str(form.level), "--limit", str(form.limit), "--seed", str(form.seed)]
    arguments += ["--task", form.task] if form.task else []
    arguments += ["--model", state.settings.model] if _has_shared_model(state) else []
    if (config := state.settings.config) is not None:
        arguments += ["--config", str(config)]
    return [*arguments, "--out", str(folder.path / EVALUATIONS / form.name)]


def _has_shared_model(state: ServerState) -> bool:
    """Return whether the server's agent is one that another process can find by its name."""
    model = state.settings.model
    listed = model == BASE or model in _students(state) or state.settings.config is not None
    return bool(model) and (listed or "OPENAI_BASE_URL" in os.environ)


def _distill_arguments(folder: RunFolder, form: Distillation) -> list[str]:
    folder.registry.require_free(form.name)
    arguments = ["distill", "--run", str(folder.path), "--student", form.name]
    options = {
        "num_train_epochs": form.epochs,
        "max_steps": form.steps,
        "learning_rate": form.learning_rate,
    }
    sft = {key: value for key, value in options.items() if value is not None}
    if not sft:
        return arguments
    path = folder.path / "distillations" / f"{form.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump({"sft": sft}))
    return [*arguments, "--config", str(path)]
