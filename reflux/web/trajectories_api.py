"""`/api/trajectories`: a page of what was asked, searched in the database, and a node's record."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from reflux.agents.errors import UsageError
from reflux.graphs.traces.search import Wanted, facets, node_record, search
from reflux.server.chat_api import ERRORS, served
from reflux.server.errors import ApiError

router = APIRouter(prefix="/api", responses=ERRORS)

Filter = Annotated[str, Query(max_length=200)]
Number = Annotated[int | None, Query(ge=1, lt=2**53)]


@router.get("/trajectories")
async def list_trajectories(
    request: Request,
    q: Filter = "",
    system: Filter = "",
    split: Filter = "",
    status: Filter = "",
    before: Number = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """Trajectories that fit, the newest first; `next`, where there is one, is the `before` of more.

    A page may hold fewer than `limit` and not be the last: one request looks at a bounded number.
    """
    path = served(request).run.store.path
    wanted = Wanted(q.strip(), system, split, status)
    found, more = await asyncio.to_thread(search, path, wanted, before, limit)
    return {"trajectories": found, "next": more}


@router.get("/trajectory-facets")
async def list_facets(request: Request) -> dict[str, Any]:
    """How many trajectories there are, and by which systems and splits they can be
    filtered."""
    return await asyncio.to_thread(facets, served(request).run.store.path)


@router.get("/trajectories/{trajectory}/node")
async def show_node(
    trajectory: str, request: Request, path: Annotated[str, Query(max_length=2_000)] = ""
) -> dict[str, Any]:
    """All that is recorded of one node: its calls with their messages, and what was judged."""
    run = served(request).run
    try:
        prices = run.folder.prices()
        return await asyncio.to_thread(node_record, run.store.path, trajectory, path, prices)
    except UsageError as error:
        raise ApiError(404, str(error), param="trajectory", code="no_node") from error
