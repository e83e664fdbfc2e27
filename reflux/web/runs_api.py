"""`/api/run`: the run folder, and what its rounds have come to.

`/api/students`: the students of the run, and which of them is the agent.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from reflux.agents.errors import UsageError
from reflux.finetune.registry import Registry, Student
from reflux.finetune.run_folder import RunFolder
from reflux.server.chat_api import ERRORS, served

router = APIRouter(prefix="/api", responses=ERRORS)


@router.get("/run")
async def show_run(request: Request) -> dict[str, Any]:
    """The folder's name, who is the agent, and the report of its rounds, where there is one."""
    shared = served(request)
    folder = shared.run.folder
    return {
        "name": folder.path.name,
        "path": str(folder.path),
        "agent": shared.models.x(),
        "report": _report(folder.report_path),
    }


def _report(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; restore it") from error


_TURN = threading.Lock()
"""The folder's lock keeps other processes out, and would tell two requests of this one apart."""


@router.get("/students")
async def list_students(request: Request) -> dict[str, Any]:
    """Every student by round, with scores and gates, and the promoted one."""
    registry = served(request).run.folder.registry
    return await asyncio.to_thread(_listed, registry)


@router.post("/students/{student}/promote")
async def promote_student(student: str, request: Request) -> dict[str, Any]:
    """Make a student the agent; who asks `amplified` or `student` next is answered by it."""
    return await _turned(request, lambda registry: registry.promote(student))


@router.post("/students/rollback")
async def roll_back(request: Request) -> dict[str, Any]:
    """Make the agent before the current one the agent again."""
    return await _turned(request, lambda registry: registry.rollback())


async def _turned(request: Request, turn: Callable[[Registry], object]) -> dict[str, Any]:
    folder = RunFolder(served(request).run.folder.path)

    def turned() -> dict[str, Any]:
        with _TURN, folder.locked():  # A run that is under way promotes, too.
            turn(folder.registry)
        return _listed(folder.registry)

    return await asyncio.to_thread(turned)


def _listed(registry: Registry) -> dict[str, Any]:
    promoted = registry.current()
    return {
        "current": promoted.id if promoted else None,
        "students": [_plain(student) for student in registry.list()],
    }


def _plain(student: Student) -> dict[str, Any]:
    told = student.config.get("report")
    report = told if isinstance(told, dict) else {}
    return {
        "id": student.id,
        "parent": student.parent,
        "round": student.round,
        "base": student.base.model_id,
        "created": student.created,
        "adapter_sha256": student.adapter_sha256,
        "rows": report.get("rows"),
        "seconds": report.get("seconds"),
        "final_loss": report.get("final_loss"),
        "scores": dict(student.scores),
        "gates": [dict(gate) for gate in student.gates],
    }
