"""`/api/pending`: what waits for a person, and the person's reply.

`/api/trajectories`: a tree as it is recorded, and its events while it grows.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.agents.overseers.human_reply import REPLY_HELP
from reflux.graphs.traces.database import Rows, read_apart
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.tree import find_question, load_tree, tokens_of
from reflux.server.chat_api import ERRORS, PING_SECONDS, served
from reflux.server.chat_request import Asked
from reflux.server.errors import ApiError
from reflux.server.event_log import EventLog
from reflux.tasks import writing_named

router = APIRouter(prefix="/api", responses=ERRORS)


class Words(Asked):
    """A person's reply."""

    words: str = Field(description=REPLY_HELP, max_length=100_000)


@router.get("/pending")
async def list_pending(request: Request) -> dict[str, Any]:
    """Everything that waits for a person, the newest question first."""
    found = await served(request).waiting.pending()
    return {
        "pending": [
            {"trajectory": trajectory, "question": question, **asdict(each)}
            for trajectory, question, each in found
        ]
    }


@router.post("/pending/{trajectory}/{id}")
async def reply_to_pending(
    trajectory: str, id: str, body: Words, request: Request
) -> dict[str, Any]:
    """Reply to what waits under an id: the question goes on until it ends, or waits again."""
    progress = await served(request).waiting.reply(trajectory, id, body.words)
    return {
        "trajectory": trajectory,
        "outcome": progress.outcome,
        "pending": [asdict(each) for each in progress.pending],
    }


LONGEST_ID = 64


@router.get("/trajectories/{trajectory}", response_model=dict[str, Any])
async def show_tree(trajectory: str, request: Request) -> Response:
    """The tree of an answer, as far as it is recorded, and its tokens."""
    run = served(request).run
    try:
        known, _ = find_question(run.store, trajectory[:LONGEST_ID])
    except UsageError as error:
        raise ApiError(404, str(error), param="trajectory", code="no_trajectory") from error
    prices = run.folder.prices()
    # A tree of 10,000 nodes takes a second, in which every other answer would stand still.
    told = await read_apart(run.store.path, lambda rows: _told(rows, known, prices))
    return Response(told, media_type="application/json")


def _told(store: Rows, known: str, prices: Mapping[str, Price]) -> bytes:
    asked, said = tokens_of(store, known)
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    tree = load_tree(store, known, prices).to_json() | {"writing": _writing(store, known)}
    return json.dumps({"trajectory": known, "usage": usage, "tree": tree}).encode()


def _writing(store: Rows, trajectory: str) -> str:
    (row,) = store.select("SELECT task FROM questions WHERE id = ?", (trajectory,))
    return writing_named(row["task"])


@router.get(
    "/trajectories/{trajectory}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def follow_tree(
    trajectory: str,
    request: Request,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
) -> StreamingResponse:
    """Events of the growing tree as server-sent events, each with its number as `id`.

    `event` is a kind of `graphs/traces/events.py`, and `data` that event as JSON; `end` is the
    last. A reader who was cut off names the last number in `Last-Event-ID`, as browsers do by
    themselves, or in `after`, and gets what followed. Events of ended answers are kept as long as
    there is room for them.
    """
    log = served(request).logs.find(trajectory)
    if log is None:
        raise ApiError(
            404,
            f"no events of {trajectory[:LONGEST_ID]!r} are kept; /api/trajectories/ID has the tree "
            "of a recorded answer",
            param="trajectory",
            code="no_events",
        )
    numbered = last_event_id is not None and len(last_event_id) < 18 and last_event_id.isdecimal()
    seen = int(last_event_id or 0) if numbered else after
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(log, seen), media_type="text/event-stream", headers=headers)


async def _events(log: EventLog, after: int) -> AsyncGenerator[bytes]:
    async with aclosing(log.follow(after, PING_SECONDS)) as events:
        async for numbered in events:
            yield b": still at work\n\n" if numbered is None else _event(*numbered)
    yield b"event: end\ndata: {}\n\n"


def _event(number: int, event: Event) -> bytes:
    return f"id: {number}\nevent: {event['event']}\ndata: {json.dumps(event)}\n\n".encode()
