"""`/api/review` and `/api/pending`: the review queue, judgements of nodes, and human replies.

A judgement that changes an answer creates a revision at once, and the tree is recomputed in the
background. The revision's events can be followed like those of any running answer.
"""

import asyncio
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.scripted import REPLY_HELP
from reflux.graphs.evals.task import writing_of
from reflux.graphs.traces.database import read_apart
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.review import Item, Why, find_item, marked_when_stopped, page
from reflux.graphs.traces.reviewers.opinions import Reviewer, required
from reflux.graphs.traces.scoring import check_feedback
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.trajectories import Feedback
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from reflux.review_actions import Action, judge_item, recompute
from reflux.server.chat_request import ApiModel
from reflux.server.state import ERRORS, ServerState, State

router = APIRouter(prefix="/api", responses=ERRORS)


class Judgement(ApiModel):
    """A human's judgement of a node."""

    path: str = Field(default="", max_length=2_000, pattern=r"^(/[0-9.]+)*$")
    """Empty for the root."""
    action: Action
    answer: str = Field(default="", max_length=100_000)
    """The new answer of an edit."""
    comment: str = Field(default="", max_length=10_000)
    reviewer: str = Field(default="", pattern=r"^[\w.@+-]{0,60}$")
    """Who judges, where an item needs several reviewers."""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How long it took since the item was shown."""


class FeedbackBody(ApiModel):
    """A score, a comment, or both, of a trajectory or one of its nodes."""

    score: float | None = Field(default=None, description="0 to 1 is usual.", allow_inf_nan=False)
    comment: str = Field(default="", max_length=10_000)
    name: str = Field(default="", max_length=200, description="What is scored: `helpful`.")
    path: str = Field(default="", max_length=2_000, pattern=r"^(/[0-9.]+)*$")
    author: str = Field(default="human", max_length=200)


class HumanReply(ApiModel):
    words: str = Field(description=REPLY_HELP, max_length=100_000)


@router.get("/review")
async def list_reviews(
    state: State,
    why: Why,
    before: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    reviewer: Annotated[str, Query(max_length=60)] = "",
) -> dict[str, Any]:
    """List review items of one kind, newest first; if `next` is set, pass it as `before` for more.

    `writing` describes the notation of the run's task where it differs from usual notation.
    `reviewers` is how many an item needs; what this `reviewer` has judged is left out.
    """
    path = state.run.store.path
    items, following = await read_apart(path, lambda rows: page(rows, why, limit, before, reviewer))
    task = state.models.task
    writing = writing_of(task) if task else ""
    body = {"items": [item.to_json() for item in items], "next": following, "writing": writing}
    return body | {"reviewers": required(state.run.store)}


@router.post("/trajectories/{trajectory}/judgements")
async def judge_node(trajectory: str, body: Judgement, state: State) -> dict[str, Any]:
    """Approve, edit, ask again, reject or comment on a node of a trajectory's newest revision.

    After an edit, the answers that depend on the node are recomputed in the background.
    """
    store = state.run.store
    question_id, _ = find_question(store, trajectory)
    item = await read_apart(store.path, lambda rows: find_item(rows, f"{question_id}{body.path}"))

    async def reply(item: Item, words: str) -> None:
        pending = await state.waiting.pending()
        node = (item.trajectory, item.path)
        ids = [each.id for trajectory, _, each in pending if (trajectory, each.path) == node]
        if not ids:
            raise UsageError(f"{item.id} no longer waits for a reply; reload the queue")
        await state.waiting.reply(item.trajectory, ids[0], words)

    acted = await judge_item(
        store, item, body.action, lambda _: nullcontext(state.run), reply, body.answer,
        body.comment, Reviewer(body.reviewer, body.seconds),
    )  # fmt: skip
    revision = acted.trajectory
    # Two equal judgements at once share one recomputation.
    if acted.recomputes and not state.logs.is_open(revision):
        state.logs.begin(revision)
        task = asyncio.create_task(_recompute(state, revision))
        state.tasks.add(task)
        task.add_done_callback(state.tasks.discard)
    return {"did": acted.did, "trajectory": revision, "recomputing": acted.recomputes}


@router.post("/trajectories/{trajectory}/feedback")
async def add_feedback(trajectory: str, body: FeedbackBody, state: State) -> dict[str, Any]:
    """Record a score or a comment, also of a trajectory that another program recorded."""
    feedback = check_feedback(Feedback(**body.model_dump()))
    store = state.run.store
    id, _ = find_question(store, trajectory)
    await asyncio.wrap_future(TrajectoryWriter(store).score(id, feedback))
    return {"trajectory": id, **body.model_dump()}


async def _recompute(state: ServerState, revision: str) -> None:
    log = state.logs.begin(revision)
    try:
        async with marked_when_stopped(state.run.store, revision):
            await recompute(state.run, revision, log.add, state.models.overseers)
    except RefluxError as error:
        log.add(answered("", False, {"answer": None, "status": "failed", "error": str(error)}))
    finally:
        state.logs.end(revision)


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
