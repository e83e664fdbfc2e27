"""`/api/run`, `/api/students` and `/api/evaluations`: what the rounds and evaluations produced."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from reflux.agents.errors import UsageError
from reflux.finetune.registry import Registry
from reflux.finetune.run_folder import RunFolder
from reflux.server.errors import ApiError
from reflux.server.state import ERRORS, state_of

router = APIRouter(prefix="/api", responses=ERRORS)
EVALUATIONS = "evaluations"
"""Folder in the run folder for evaluations that the page starts."""
_PROMOTION = threading.Lock()
"""The folder's lock keeps other processes out but would fail a second request of this one."""


@router.get("/run")
async def show_run(request: Request) -> dict[str, Any]:
    """Show the run folder, the current agent, and the report of the rounds, if there is one."""
    state = state_of(request)
    folder = state.run.folder
    return {
        "name": folder.name,
        "path": str(folder.path),
        "agent": state.models.agent(),
        "report": _report(folder.report_path),
    }


def _report(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; restore it") from error


@router.get("/students")
async def list_students(request: Request) -> dict[str, Any]:
    """List the students by round with their scores and gates, and name the promoted one."""
    return await asyncio.to_thread(_students, state_of(request).run.folder.registry)


@router.post("/students/{student}/promote")
async def promote_student(student: str, request: Request) -> dict[str, Any]:
    """Make a student the agent; new requests for `amplified` and `student` use it."""
    return await _change_agent(request, lambda registry: registry.promote(student))


@router.post("/students/rollback")
async def roll_back(request: Request) -> dict[str, Any]:
    """Make the previous agent the agent again."""
    return await _change_agent(request, lambda registry: registry.rollback())


async def _change_agent(request: Request, change: Callable[[Registry], object]) -> dict[str, Any]:
    folder = RunFolder(state_of(request).run.folder.path)

    def change_and_list() -> dict[str, Any]:
        with _PROMOTION, folder.locked():  # A running round promotes students, too.
            change(folder.registry)
        return _students(folder.registry)

    return await asyncio.to_thread(change_and_list)


def _students(registry: Registry) -> dict[str, Any]:
    promoted = registry.current()
    return {
        "current": promoted.id if promoted else None,
        "students": [vars(student) for student in registry.list()],
    }


@router.get("/evaluations")
async def list_evaluations(request: Request) -> dict[str, Any]:
    """List evaluations with their figures, newest first; unreadable ones have an `error`."""
    path = state_of(request).run.folder.path
    return {"evaluations": await asyncio.to_thread(_evaluations, path)}


@router.get("/evaluations/{name}/failures")
async def list_failures(
    name: str,
    request: Request,
    system: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """List a system's wrong answers in order, with the ids of their trees."""
    folder = _folders(state_of(request).run.folder.path).get(name)
    if folder is None:
        raise ApiError(404, f"no evaluation is called {name[:100]!r}", code="no_evaluation")
    failures = await asyncio.to_thread(
        lambda: list(islice(_failures(folder, system), after, after + limit + 1))
    )
    following = after + limit if len(failures) > limit else None
    return {"failures": failures[:limit], "next": following}


def _folders(run: Path) -> dict[str, Path]:
    """Return the folders with an evaluation by name: the page's, and others in the run folder."""
    paths = [*run.glob("*/eval.json"), *run.glob(f"{EVALUATIONS}/*/eval.json")]
    return {path.parent.name: path.parent for path in paths}


def _evaluations(run: Path) -> list[dict[str, Any]]:
    evaluations = [
        {**_figures(folder / "eval.json"), "name": name, "created": _mtime(folder / "eval.json")}
        for name, folder in _folders(run).items()
    ]
    return sorted(evaluations, key=lambda each: each["created"], reverse=True)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # Just deleted; `_figures` reports it.
        return 0.0


def _figures(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(figures, dict) and {"systems", "differences"} <= figures.keys()):
            raise ValueError("it is not an evaluation")
        return figures
    except (OSError, ValueError) as error:  # The other evaluations are still listed.
        return {"error": f"{path} cannot be read: {error}; delete it, or restore it"}


def _failures(folder: Path, system: str) -> Iterator[dict[str, Any]]:
    path = folder / "eval.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                answer = json.loads(line)
                if not answer["right"] and system in ("", answer["system"]):
                    yield answer
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; evaluate again") from error
