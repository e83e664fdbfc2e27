"""What the page shows of a run folder: trajectories, students, evaluations, and the run itself."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.finetune.registry import Registry
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.database import Rows, read_apart
from reflux.graphs.traces.search import Wanted, facets, find_question, node_record, search
from reflux.graphs.traces.spending import tokens_of
from reflux.graphs.traces.tree import load_tree
from reflux.server.chat_reply import usage_of
from reflux.server.errors import ApiError
from reflux.server.state import ERRORS, EventLog, ServerState, State
from reflux.tasks import writing_named

router = APIRouter(prefix="/api", responses=ERRORS)
MAX_ID_CHARS = 64
EVALUATIONS = "evaluations"
"""Folder in the run folder for evaluations that the page starts."""
_PROMOTION = threading.Lock()
"""The folder's lock keeps other processes out but would fail a second request of this one."""

Filter = Annotated[str, Query(max_length=200)]


@router.get("/trajectories")
async def list_trajectories(
    state: State,
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
    path = state.run.store.path
    query = Wanted(q.strip(), system, split, status)
    trajectories, following = await asyncio.to_thread(search, path, query, before, limit)
    return {"trajectories": trajectories, "next": following}


@router.get("/trajectory-facets")
async def list_facets(state: State) -> dict[str, Any]:
    """Count the trajectories, and list the systems and splits to filter by."""
    return await asyncio.to_thread(facets, state.run.store.path)


@router.get("/trajectories/{trajectory}", response_model=dict[str, Any])
async def show_tree(trajectory: str, state: State) -> Response:
    """Show the tree of an answer as far as it is recorded, and its tokens."""
    run = state.run
    try:
        question_id, _ = find_question(run.store, trajectory[:MAX_ID_CHARS])
    except UsageError as error:
        raise ApiError(404, str(error), param="trajectory", code="no_trajectory") from error
    prices = run.folder.prices()
    # A tree of 10,000 nodes takes a second, which would block every other request.
    body = await read_apart(run.store.path, lambda rows: _tree_json(rows, question_id, prices))
    return Response(body, media_type="application/json")


def _tree_json(store: Rows, question_id: str, prices: Mapping[str, Price]) -> bytes:
    (row,) = store.select("SELECT task FROM questions WHERE id = ?", (question_id,))
    tree = load_tree(store, question_id, prices).to_json() | {"writing": writing_named(row["task"])}
    tokens = usage_of(*tokens_of(store, question_id))
    return json.dumps({"trajectory": question_id, "usage": tokens, "tree": tree}).encode()


@router.get("/trajectories/{trajectory}/node")
async def show_node(
    trajectory: str, state: State, path: Annotated[str, Query(max_length=2_000)] = ""
) -> dict[str, Any]:
    """Show the record of one node: its calls with their messages, and its judgements."""
    run = state.run
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
    state: State,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
) -> EventSourceResponse:
    """Stream the events of a growing tree as server-sent events with their numbers as `id`.

    `event` is a kind of `reflux.graphs.traces.events` and `data` that event as JSON; the last event
    is `end`. After a lost connection, a client names the last number in `Last-Event-ID`, as
    browsers do, or in `after`. Events of ended answers are kept while there is room.
    """
    log = state.logs.find(trajectory)
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


@router.get("/run")
async def show_run(state: State) -> dict[str, Any]:
    """Show the run folder, the current agent, and the report of the rounds, if there is one."""
    folder = state.run.folder
    return {
        "name": folder.path.name,
        "path": str(folder.path),
        "agent": state.models.agent(),
        "report": folder.report() or None,
    }


@router.get("/students")
async def list_students(state: State) -> dict[str, Any]:
    """List the students by round with their scores and gates, and name the promoted one."""
    return await asyncio.to_thread(_students, state.run.folder.registry)


@router.post("/students/{student}/promote")
async def promote_student(student: str, state: State) -> dict[str, Any]:
    """Make a student the agent; new requests for `amplified` and `student` use it."""
    return await _change_agent(state, lambda registry: registry.promote(student))


@router.post("/students/rollback")
async def roll_back(state: State) -> dict[str, Any]:
    """Make the previous agent the agent again."""
    return await _change_agent(state, lambda registry: registry.rollback())


async def _change_agent(state: ServerState, change: Callable[[Registry], object]) -> dict[str, Any]:
    folder = RunFolder(state.run.folder.path)

    def change_and_list() -> dict[str, Any]:
        with _PROMOTION, folder.lock():  # A running round promotes students, too.
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
async def list_evaluations(state: State) -> dict[str, Any]:
    """List evaluations with their figures, newest first; unreadable ones have an `error`."""

    def read() -> list[dict[str, Any]]:
        folders = _folders(state.run.folder.path)
        evaluations = (_evaluation(name, folder) for name, folder in folders.items())
        return sorted(evaluations, key=lambda each: each["created"], reverse=True)

    return {"evaluations": await asyncio.to_thread(read)}


@router.get("/evaluations/{name}/failures")
async def list_failures(
    name: str,
    state: State,
    system: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """List a system's wrong answers in order, with the ids of their trees."""
    folder = _folders(state.run.folder.path).get(name)
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


def _evaluation(name: str, folder: Path) -> dict[str, Any]:
    path, created = folder / "eval.json", 0.0
    try:
        created = path.stat().st_mtime
        figures = json.loads(path.read_bytes())
        if not (isinstance(figures, dict) and {"systems", "differences"} <= figures.keys()):
            raise ValueError("it is not an evaluation")
    except (OSError, ValueError) as error:  # The other evaluations are still listed.
        figures = {"error": f"{path} cannot be read: {error}; delete it, or restore it"}
    return {**figures, "name": name, "created": created}


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
