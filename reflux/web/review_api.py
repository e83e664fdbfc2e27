"""What a person says of a node on the page: approve, edit, ask again, reject, comment.

A word that changes an answer begins a revision at once, and the tree is recomputed behind it: its
events can be followed under the revision's id like those of any answer under way.

`/api/review`: the queue of nodes that a person is to judge; and the judging, of any node.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.ask_options import options_of
from reflux.graphs.evals.task import writing_of
from reflux.graphs.traces.database import read_apart
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.review import (
    Item,
    Why,
    find_item,
    judge,
    marked_when_stopped,
    page,
    remark,
)
from reflux.graphs.traces.tree import find_question
from reflux.review_actions import (
    approvable,
    approve,
    begin_override,
    check_not_empty,
    edit,
    recompute,
)
from reflux.server.chat_api import ERRORS, Served, served
from reflux.server.chat_request import Asked

Action = Literal["approve", "edit", "again", "reject", "comment"]


@dataclass(frozen=True)
class Judged:
    """What came of it."""

    did: str
    trajectory: str
    """The revision that holds it."""
    recomputing: bool = False
    """Whether the revision is being answered."""


async def act(
    shared: Served, trajectory: str, path: str, action: Action, answer: str, comment: str
) -> Judged:
    """Take a person's word on a node of a trajectory's newest revision.

    Raises:
        UsageError: there is no such node, or the word cannot be taken there.
    """
    store = shared.run.store
    item = await read_apart(store.path, lambda rows: find_item(rows, f"{trajectory}{path}"))
    if action == "comment":
        await remark(store, item, comment)
        return Judged("commented", item.trajectory)
    if action == "reject":
        await judge(store, item, False, comment)
        return Judged("rejected", item.trajectory)
    if item.why == "escalated" and action in ("approve", "edit"):
        return await _reply(shared, item, action, answer, comment)
    word = approvable(item) if action == "approve" else None
    if action == "approve" and word is None:
        await judge(store, item, True, comment)
        return Judged("approved", item.trajectory)
    if action == "edit":
        check_not_empty(answer)
        word = answer
    return await _put(shared, item, word, comment)


async def _put(shared: Served, item: Item, word: str | None, comment: str) -> Judged:
    """Begin a revision, and have it answered: once, if two say the same at once."""
    begun = await begin_override(shared.run.store, item.trajectory, item.path, word, comment)
    if begun.recomputes and not shared.logs.growing(begun.trajectory):
        shared.logs.begin(begun.trajectory)
        task = asyncio.create_task(_recompute(shared, begun.trajectory, item.path, word))
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)
    return Judged(begun.did, begun.trajectory, begun.recomputes)


async def _recompute(shared: Served, made: str, path: str, word: str | None) -> None:
    log = shared.logs.begin(made)
    try:
        async with marked_when_stopped(shared.run.store, made):
            await recompute(shared.run, made, path, word, log.add, shared.models.overseers)
    except RefluxError as error:
        failed = {"answer": None, "status": "failed", "error": str(error)}
        log.add(answered("", False, failed))
    finally:
        shared.logs.end(made)


async def _reply(shared: Served, item: Item, action: Action, answer: str, comment: str) -> Judged:
    """Take the step that a person is waited for; the question goes on until it ends or waits."""
    store = shared.run.store

    @asynccontextmanager
    async def opened(_: str) -> AsyncGenerator[OpenRun]:
        yield shared.run

    options = options_of(store, item.trajectory)
    if (
        options is None or not options.overseer
    ):  # A run that stopped here, and goes on from the log.
        done = (
            await approve(store, item, opened, comment)
            if action == "approve"
            else await edit(store, item, answer, opened, comment)
        )
        return Judged(done.did, done.trajectory)
    if action == "edit":
        check_not_empty(answer)
    if comment.strip():
        await remark(store, item, comment)
    words = "approve" if action == "approve" else f"answer: {answer}"
    waits = [each for id, _, each in await shared.waiting.pending() if id == item.trajectory]
    ids = [each.id for each in waits if each.path == item.path]
    if not ids:
        raise UsageError(f"{item.id} waits for nobody any more")
    await shared.waiting.reply(item.trajectory, ids[0], words)
    return Judged("answered", item.trajectory)


router = APIRouter(prefix="/api", responses=ERRORS)


class Judgement(Asked):
    """A person's word on a node."""

    path: str = Field(default="", max_length=2_000, pattern=r"^(/[0-9.]+)*$")
    """Empty for the root."""
    action: Action
    answer: str = Field(default="", max_length=100_000)
    """Of an edit."""
    comment: str = Field(default="", max_length=10_000)


@router.get("/review")
async def list_reviews(
    request: Request,
    why: Why,
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Nodes of one kind, the newest first; `next`, where there is one, is the `before` of more.

    `writing` tells how the run's own task writes, where that is not as people do.
    """
    shared = served(request)
    path = shared.run.store.path
    items, more = await read_apart(path, lambda rows: page(rows, why, limit, before))
    own = shared.models.task
    told = {"items": [item.to_json() for item in items], "next": more}
    return told | {"writing": writing_of(own) if own else ""}


@router.post("/trajectories/{trajectory}/judgements")
async def judge_node(trajectory: str, body: Judgement, request: Request) -> dict[str, Any]:
    """Approve, edit, ask again, reject or comment; what depends on an edit recomputes behind it."""
    shared = served(request)
    known, _ = find_question(shared.run.store, trajectory)
    done = await act(shared, known, body.path, body.action, body.answer, body.comment)
    return asdict(done)
