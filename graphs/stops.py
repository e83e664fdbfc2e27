"""Answers that were stopped before their end: whoever had asked left, or interrupted.

A stop is a mark beside what was recorded, not an end: what goes on later, from its checkpoint or
with a person's word, ends as anything does. A killed process leaves no mark.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from graphs.review import WAITING
from graphs.traces import TraceStore

WAITS = f"SELECT EXISTS (SELECT 1 FROM judgements j WHERE j.question = ? AND {WAITING})"  # noqa: S608 - the part is a constant of ours


@asynccontextmanager
async def marked_when_stopped(store: TraceStore, question: str) -> AsyncGenerator[None]:
    """Answer a root question here: where that is cancelled, the record tells, unless somebody is
    waited for, who may still reply."""
    try:
        yield
    except asyncio.CancelledError:
        if not next(store.select(WAITS, (question,)))[0]:
            await store.add_judgement(question, "", "stopped", None, {}, key="0")
        raise
