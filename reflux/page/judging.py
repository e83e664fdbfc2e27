"""What a person says of a node on the page: approve, edit, ask again, reject, comment.

A word that changes an answer begins a revision at once, and the tree is recomputed behind it: its
events can be followed under the revision's id like those of any answer under way.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from agents.errors import RefluxError, UsageError
from finetune.run_folder import OpenRun
from graphs.database import read_apart
from graphs.events import answered
from graphs.review import Item, find_item
from graphs.stops import marked_when_stopped
from graphs.verdicts import judge, remark
from reflux.chat_api import Served
from reflux.how import how_asked
from reflux.reviewing import (
    approvable,
    approve,
    begin_override,
    edit,
    recompute,
    refuse_empty,
)

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
        refuse_empty(answer)
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

    how = how_asked(store, item.trajectory)
    if how is None or not how.overseer:  # A run that stopped here, and goes on from the log.
        done = (
            await approve(store, item, opened, comment)
            if action == "approve"
            else await edit(store, item, answer, opened, comment)
        )
        return Judged(done.did, done.trajectory)
    if action == "edit":
        refuse_empty(answer)
    if comment.strip():
        await remark(store, item, comment)
    words = "approve" if action == "approve" else f"answer: {answer}"
    waits = [each for id, _, each in await shared.waiting.pending() if id == item.trajectory]
    ids = [each.id for each in waits if each.path == item.path]
    if not ids:
        raise UsageError(f"{item.id} waits for nobody any more")
    await shared.waiting.reply(item.trajectory, ids[0], words)
    return Judged("answered", item.trajectory)
