"""`/api/review` and `/api/pending`: the review queue, judgements of nodes, and human replies.

A judgement that changes an answer creates a revision at once, and the tree is recomputed in the
background. The revision's events can be followed like those of any running answer.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from reflux import review_actions
from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.scripted import REPLY_HELP
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.ask_options import options_of
from reflux.graphs.evals.task import writing_of
from reflux.graphs.traces.database import read_apart
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.review import Item, Why, find_item, marked_when_stopped, page, remark
from reflux.graphs.traces.tree import find_question
from reflux.review_actions import Acted, check_not_empty
from reflux.server.chat_request import ApiModel
from reflux.server.state import ERRORS, ServerState, State

router = APIRouter(prefix="/api", responses=ERRORS)


class Judgement(ApiModel):
    """A human's judgement of a node."""

    path: str = Field(default="", max_length=2_000, pattern=r"^(/[0-9.]+)*$")
    """Empty for the root."""
    action: Literal["approve", "edit", "again", "reject", "comment"]
    answer: str = Field(default="", max_length=100_000)
    """The new answer of an edit."""
    comment: str = Field(default="", max_length=10_000)


class HumanReply(ApiModel):
    words: str = Field(description=REPLY_HELP, max_length=100_000)


@router.get("/review")
async def list_reviews(
    state: State,
    why: Why,
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List review items of one kind, newest first; if `next` is set, pass it as `before` for more.

    `writing` describes the notation of the run's task where it differs from usual notation.
    """
    path = state.run.store.path
    items, following = await read_apart(path, lambda rows: page(rows, why, limit, before))
    task = state.models.task
    writing = writing_of(task) if task else ""
    return {"items": [item.to_json() for item in items], "next": following, "writing": writing}


@router.post("/trajectories/{trajectory}/judgements")
async def judge_node(trajectory: str, body: Judgement, state: State) -> dict[str, Any]:
    """Approve, edit, ask again, reject or comment on a node of a trajectory's newest revision.

    After an edit, the answers that depend on the node are recomputed in the background.
    """
    question_id, _ = find_question(state.run.store, trajectory)
    item = await read_apart(
        state.run.store.path, lambda rows: find_item(rows, f"{question_id}{body.path}")
    )
    acted = await _judge(state, item, body)
    return {"did": acted.did, "trajectory": acted.trajectory, "recomputing": acted.recomputes}


async def _judge(state: ServerState, item: Item, judgement: Judgement) -> Acted:
    store, action, comment = state.run.store, judgement.action, judgement.comment
    answer = judgement.answer if action == "edit" else None

    def open_run(_: str) -> AbstractAsyncContextManager[OpenRun]:
        return nullcontext(state.run)

    if answer is not None:
        check_not_empty(answer)
    if action == "comment":
        return await review_actions.comment_on(store, item, comment)
    if action == "reject":
        return await review_actions.reject(store, item, comment)
    is_reply = item.why == "escalated" and action != "again"
    options = options_of(store, item.trajectory)
    if is_reply and options is not None and options.overseer:
        return await _reply(state, item, answer, comment)
    if is_reply and answer is not None:  # A stopped run, which resumes from the call log.
        return await review_actions.edit(store, item, answer, open_run, comment)
    if action == "approve" and (is_reply or (answer := review_actions.approvable(item)) is None):
        return await review_actions.approve(store, item, open_run, comment)
    # Two equal judgements at once share one recomputation.
    begun = await review_actions.begin_override(store, item.trajectory, item.path, answer, comment)
    if begun.recomputes and not state.logs.is_open(begun.trajectory):
        state.logs.begin(begun.trajectory)
        task = asyncio.create_task(_recompute(state, begun.trajectory))
        state.tasks.add(task)
        task.add_done_callback(state.tasks.discard)
    return begun


async def _recompute(state: ServerState, revision: str) -> None:
    log = state.logs.begin(revision)
    try:
        async with marked_when_stopped(state.run.store, revision):
            await review_actions.recompute(state.run, revision, log.add, state.models.overseers)
    except RefluxError as error:
        log.add(answered("", False, {"answer": None, "status": "failed", "error": str(error)}))
    finally:
        state.logs.end(revision)


async def _reply(state: ServerState, item: Item, answer: str | None, comment: str) -> Acted:
    if comment.strip():
        await remark(state.run.store, item, comment)
    pending = await state.waiting.pending()
    node = (item.trajectory, item.path)
    ids = [each.id for trajectory, _, each in pending if (trajectory, each.path) == node]
    if not ids:
        raise UsageError(f"{item.id} no longer waits for a reply; reload the queue")
    words = "approve" if answer is None else f"answer: {answer}"
    await state.waiting.reply(item.trajectory, ids[0], words)
    return Acted("answered", item.trajectory)


@router.get("/pending")
async def list_pending(state: State) -> dict[str, Any]:
    """List the questions that wait for a human, newest first."""
    pending = await state.waiting.pending()
    return {
        "pending": [
            {"trajectory": trajectory, "question": question, **asdict(each)}
            for trajectory, question, each in pending
        ]
    }


@router.post("/pending/{trajectory}/{id}")
async def reply_to_pending(
    trajectory: str, id: str, body: HumanReply, state: State
) -> dict[str, Any]:
    """Reply to a pending question; it continues until it ends or waits again."""
    progress = await state.waiting.reply(trajectory, id, body.words)
    return {
        "trajectory": trajectory,
        "outcome": progress.outcome,
        "pending": [asdict(each) for each in progress.pending],
    }
