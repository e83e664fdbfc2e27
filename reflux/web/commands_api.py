"""`/api/job`: begin an evaluation or a distillation, follow it, stop it.

What may be begun is what a form can say. A path, an address of an endpoint, or code to load cannot
come from a request.
"""

import os
import re
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Query, Request
from pydantic import Field

from reflux.agents.errors import UsageError
from reflux.agents.files import write_whole
from reflux.cli.eval_systems import named
from reflux.finetune.run_folder import RunFolder
from reflux.server.chat_api import ERRORS, Served, served
from reflux.server.chat_request import Asked
from reflux.server.served_models import BASE
from reflux.tasks import TASKS
from reflux.web.commands import Jobs
from reflux.web.evaluations_api import FOLDER

router = APIRouter(prefix="/api", responses=ERRORS)
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SYSTEM = re.compile(r"direct|amplified|best-of-(n|[1-9][0-9]?)|base")


class Evaluation(Asked):
    """`reflux eval` on a task."""

    kind: Literal["evaluation"]
    name: str = Field(pattern=NAME)
    task: str = ""
    """Empty: that of the run."""
    level: int = Field(default=3, ge=1, le=64)
    limit: int = Field(default=100, ge=1, le=100_000)
    systems: list[str] = Field(default=["direct", "amplified"], min_length=1, max_length=12)
    seed: int = Field(default=1, ge=0, lt=2**31)


class Distillation(Asked):
    """`reflux distill` from the run's trajectories."""

    kind: Literal["distillation"]
    name: str = Field(pattern=NAME)
    """Of the student."""
    epochs: float | None = Field(default=None, gt=0, le=100)
    steps: int | None = Field(default=None, ge=1, le=10**6)
    learning_rate: float | None = Field(default=None, gt=0, le=1)


Begun = Annotated[Evaluation | Distillation, Field(discriminator="kind")]


@router.get("/job")
async def show_job(
    request: Request, after: Annotated[int, Query(ge=0, lt=2**53)] = 0
) -> dict[str, Any]:
    """The job under way, or the last one, with its lines after number `after`; null if none."""
    job = _jobs(request).last
    return {"job": None if job is None else job.to_json(after)}


@router.get("/job/choices")
async def list_choices(request: Request) -> dict[str, Any]:
    """What an evaluation may name: tasks, the run's own among them, and systems."""
    shared = served(request)
    own = shared.models.task
    return {
        "tasks": sorted(TASKS),
        "task": own.name if own else "",
        "systems": ["direct", "amplified", "best-of-n", *_students(shared), *_endpoints(shared)],
    }


@router.post("/job", status_code=201)
async def begin_job(body: Begun, request: Request) -> dict[str, Any]:
    """Begin one; there is one at a time."""
    shared = served(request)

    def words() -> list[str]:
        return _evaluate(shared, body) if isinstance(body, Evaluation) else _distill(shared, body)

    job = await _jobs(request).start(body.kind, body.name, words)
    return {"job": job.to_json(0)}


@router.delete("/job")
async def stop_job(request: Request) -> dict[str, Any]:
    """Stop what is under way; what it recorded stays, and the same evaluation goes on from it."""
    await _jobs(request).stop()
    return await show_job(request)


def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


def _students(shared: Served) -> list[str]:
    return [student.id for student in shared.run.folder.registry.list()]


def _endpoints(shared: Served) -> list[str]:
    """Systems of one call each; none of a server that was told of no endpoint."""
    return [f"endpoint:{name}" for name in shared.settings.endpoints]


def _evaluate(shared: Served, asked: Evaluation) -> list[str]:
    if asked.task and asked.task not in TASKS:
        raise UsageError(f"there is no task {asked.task[:80]!r}; there are {', '.join(TASKS)}")
    known = [*_students(shared), *_endpoints(shared)]
    for system in asked.systems:
        if not SYSTEM.fullmatch(system) and system not in known:
            raise UsageError(
                f"{system[:80]!r} cannot be evaluated from here: take direct, amplified, "
                "best-of-n, best-of-8, a student or an endpoint of the server's --config; "
                "`reflux eval` knows more"
            )
    systems = ",".join(asked.systems)
    named(systems)
    folder = shared.run.folder
    words = ["eval", "--run", str(folder.path), "--systems", systems]
    words += ["--level", str(asked.level), "--limit", str(asked.limit), "--seed", str(asked.seed)]
    words += ["--task", asked.task] if asked.task else []
    words += ["--model", shared.settings.model] if _is_named(shared) else []
    if (config := shared.settings.config) is not None:
        words += ["--config", str(config)]
    return [*words, "--out", str(folder.path / FOLDER / asked.name)]


def _is_named(shared: Served) -> bool:
    """True where the server was given an X that another process can find."""
    x = shared.settings.model
    found = x == BASE or x in _students(shared) or shared.settings.config is not None
    return bool(x) and (found or "OPENAI_BASE_URL" in os.environ)


def _distill(shared: Served, asked: Distillation) -> list[str]:
    folder = shared.run.folder
    folder.registry.check_new(asked.name)
    words = ["distill", "--run", str(folder.path), "--student", asked.name]
    told = {
        "num_train_epochs": asked.epochs,
        "max_steps": asked.steps,
        "learning_rate": asked.learning_rate,
    }
    sft = {key: value for key, value in told.items() if value is not None}
    return [*words, "--config", _config(folder, asked.name, sft)] if sft else words


def _config(folder: RunFolder, name: str, sft: dict[str, Any]) -> str:
    path = folder.path / "distillations" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump({"sft": sft}))
    return str(path)
