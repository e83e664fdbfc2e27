"""`/api/review`: the queue of nodes that a person is to judge; and the judging, of any node."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from graphs.database import read_apart
from graphs.review import Why, page
from graphs.task import writing_of
from graphs.tree import find_question
from reflux.chat_api import ERRORS, served
from reflux.openai_api import Asked
from reflux.page.judging import Action, act

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
