"""`/api/evaluations`: what `reflux eval --out` wrote below the run folder."""

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request

from reflux.agents.errors import UsageError
from reflux.server.chat_api import ERRORS, served
from reflux.server.errors import ApiError

router = APIRouter(prefix="/api/evaluations", responses=ERRORS)
FOLDER = "evaluations"
"""Of the run folder: where the page's own evaluations go."""


@router.get("")
async def list_evaluations(request: Request) -> dict[str, Any]:
    """Names and figures, the newest first; of one that cannot be read its name and an `error`."""
    return {"evaluations": await asyncio.to_thread(_listed, served(request).run.folder.path)}


@router.get("/{name}/failures")
async def list_failures(
    name: str,
    request: Request,
    system: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Answers of a system that were not right, in order, with the ids of their trees."""
    folder = _folders(served(request).run.folder.path).get(name)
    if folder is None:
        raise ApiError(404, f"no evaluation is called {name[:100]!r}", code="no_evaluation")
    found = await asyncio.to_thread(
        lambda: list(islice(_failed(folder, system), after, after + limit + 1))
    )
    more = after + limit if len(found) > limit else None
    return {"failures": found[:limit], "next": more}


def _folders(run: Path) -> dict[str, Path]:
    """Folders with an evaluation, by their names: those of the page, and what lies in the run."""
    found = [*run.glob("*/eval.json"), *run.glob(f"{FOLDER}/*/eval.json")]
    return {path.parent.name: path.parent for path in found}


def _listed(run: Path) -> list[dict[str, Any]]:
    told = [
        {**_figures(folder), "name": name, "created": _written(folder)}
        for name, folder in _folders(run).items()
    ]
    return sorted(told, key=lambda each: each["created"], reverse=True)


def _written(folder: Path) -> float:
    try:
        return (folder / "eval.json").stat().st_mtime
    except OSError:  # Deleted a moment ago: `_figures` says so.
        return 0.0


def _figures(folder: Path) -> dict[str, Any]:
    path = folder / "eval.json"
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(found, dict) and {"systems", "differences"} <= found.keys()):
            raise ValueError("it is no evaluation")
        return cast(dict[str, Any], found)
    except (OSError, ValueError) as error:  # The others are shown all the same.
        return {"error": f"{path} cannot be read: {error}; delete it, or restore it"}


def _failed(folder: Path, system: str) -> Iterator[dict[str, Any]]:
    path = folder / "eval.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                answer = json.loads(line)
                if not answer["right"] and system in ("", answer["system"]):
                    yield answer
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; evaluate again") from error
