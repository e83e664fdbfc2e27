"""`/api/run`: the run folder, and what its rounds have come to."""

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from agents.errors import UsageError
from reflux.chat_api import ERRORS, served

router = APIRouter(prefix="/api", responses=ERRORS)


@router.get("/run")
async def show_run(request: Request) -> dict[str, Any]:
    """The folder's name, who is the agent, and the report of its rounds, where there is one."""
    shared = served(request)
    folder = shared.run.folder
    return {
        "name": folder.name,
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
