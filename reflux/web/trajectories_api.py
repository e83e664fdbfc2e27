"""`/api/trajectories`: search, trees, records of nodes, and the events of growing trees."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.graphs.traces.database import Rows, read_apart
from reflux.graphs.traces.search import Wanted, facets, node_record, search
from reflux.graphs.traces.tree import find_question, load_tree, tokens_of
from reflux.server.errors import ApiError
from reflux.server.running_answer import EventLog
from reflux.server.state import ERRORS, state_of
from reflux.tasks import writing_named

router = APIRouter(prefix="/api", responses=ERRORS)
MAX_ID_CHARS = 64

Filter = Annotated[str, Query(max_length=200)]


@router.get("/trajectories")
async def list_trajectories(
    request: Request,
    q: Filter = "",
    system: Filter = "",
    split: Filter = "",
    status: Filter = "",
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """List matching trajectories, newest first; if `next` is set, pass it as `before` for more.

    One request reads a bounded number of rows, so a page may hold fewer than `limit` trajectories
    and still not be the last.
    """
    path = state_of(request).run.store.path
    query = Wanted(q.strip(), system, split, status)
    trajectories, following = await asyncio.to_thread(search, path, query, before, limit)
    return {"trajectories": trajectories, "next": following}


@router.get("/trajectory-facets")
async def list_facets(request: Request) -> dict[str, Any]:
    """Count the trajectories, and list the systems and splits to filter by."""
    return await asyncio.to_thread(facets, state_of(request).run.store.path)


@router.get("/trajectories/{trajectory}", response_model=dict[str, Any])
async def show_tree(trajectory: str, request: Request) -> Response:
    """Show the tree of an answer as far as it is recorded, and its tokens."""
    run = state_of(request).run
    try:
        question_id, _ = find_question(run.store, trajectory[:MAX_ID_CHARS])
    except UsageError as error:
        raise ApiError(404, str(error), param="trajectory", code="no_trajectory") from error
    prices = run.folder.prices()
    # A tree of 10,000 nodes takes a second, which would block every other request.
    body = await read_apart(run.store.path, lambda rows: _tree_json(rows, question_id, prices))
    return Response(body, media_type="application/json")


def _tree_json(store: Rows, question_id: str, prices: Mapping[str, Price]) -> bytes:
    prompt, completion = tokens_of(store, question_id)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    (row,) = store.select("SELECT task FROM questions WHERE id = ?", (question_id,))
    tree = load_tree(store, question_id, prices).to_json() | {"writing": writing_named(row["task"])}
    return json.dumps({"trajectory": question_id, "usage": usage, "tree": tree}).encode()


@router.get("/trajectories/{trajectory}/node")
async def show_node(
    trajectory: str, request: Request, path: Annotated[str, Query(max_length=2_000)] = ""
) -> dict[str, Any]:
    """Show the record of one node: its calls with their messages, and its judgements."""
    run = state_of(request).run
    try:
        prices = run.folder.prices()
        return await asyncio.to_thread(node_record, run.store.path, trajectory, path, prices)
    except UsageError as error:
        raise ApiError(404, str(error), param="trajectory", code="no_node") from error


@router.get(
    "/trajectories/{trajectory}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def follow_tree(
    trajectory: str,
    request: Request,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
) -> EventSourceResponse:
    """Stream the events of a growing tree as server-sent events with their numbers as `id`.

    `event` is a kind of `reflux.graphs.traces.events` and `data` that event as JSON; the last event
    is `end`. After a lost connection, a client names the last number in `Last-Event-ID`, as
    browsers do, or in `after`. Events of ended answers are kept while there is room.
    """
    log = state_of(request).logs.find(trajectory)
    if log is None:
        raise ApiError(
            404,
            f"no events of {trajectory[:MAX_ID_CHARS]!r} are kept; /api/trajectories/ID shows the "
            "recorded tree",
            param="trajectory",
            code="no_events",
        )
    if last_event_id is not None and len(last_event_id) < 18 and last_event_id.isdecimal():
        after = int(last_event_id)
    return EventSourceResponse(_events(log, after), sep="\n")


async def _events(log: EventLog, after: int) -> AsyncGenerator[ServerSentEvent]:
    async with aclosing(log.follow(after)) as events:
        async for number, event in events:
            yield ServerSentEvent(json.dumps(event), id=str(number), event=event["event"], sep="\n")
    yield ServerSentEvent("{}", event="end", sep="\n")
