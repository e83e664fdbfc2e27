"""`/api/pending`: what waits for a person, and the person's reply."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from reflux.chat_api import ERRORS, served
from reflux.openai_api import Asked
from reflux.persons import HELP

router = APIRouter(prefix="/api", responses=ERRORS)


class Words(Asked):
    """A person's reply."""

    words: str = Field(description=HELP, max_length=100_000)


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
    progressed = await served(request).waiting.reply(trajectory, id, body.words)
    return {
        "trajectory": trajectory,
        "outcome": progressed.outcome,
        "pending": [asdict(each) for each in progressed.pending],
    }
