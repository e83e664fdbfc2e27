"""What was stopped says so, until it ends; what waits for a person waits."""

import asyncio
from typing import Any

import pytest

from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.search import Wanted, search
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree

ENDED: dict[str, Any] = {"question": "one", "answer": "1", "status": "ok", "error": None}


async def stopped(store: TraceStore, id: str) -> None:
    """A question that is begun and stopped."""
    await store.add_question({"id": id, "text": "one"})

    async def begun() -> None:
        async with marked_when_stopped(store, id):
            await asyncio.sleep(60)

    task = asyncio.create_task(begun())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def status(store: TraceStore, id: str) -> set[str]:
    """As the tree and the list have it."""
    found, _ = search(store.path, Wanted())
    return {load_tree(store, id).status, *(row["status"] for row in found if row["id"] == id)}


async def test_a_question_that_is_cancelled_is_stopped(store: TraceStore) -> None:
    await store.add_question({"id": "b", "text": "two"})
    await stopped(store, "a")
    assert (status(store, "a"), status(store, "b")) == ({"stopped"}, {"running"})
    found, _ = search(store.path, Wanted(status="stopped"))
    assert [row["id"] for row in found] == ["a"]


async def test_what_goes_on_after_a_stop_ends_as_it_ends(store: TraceStore) -> None:
    await stopped(store, "a")
    await store.add_judgement("a", "", "outcome", True, ENDED, key="0")
    assert status(store, "a") == {"ok"}


async def test_a_question_that_waits_for_a_person_is_not_stopped(store: TraceStore) -> None:
    await store.add_question({"id": "a", "text": "one"})
    form = {"step": 0, "attempt": 0, "form": {"question": "who?"}}
    await store.add_judgement("a", "", "deferred", None, form)
    await stopped(store, "a")
    assert status(store, "a") == {"running"}


async def test_an_error_is_no_stop(store: TraceStore) -> None:
    await store.add_question({"id": "a", "text": "one"})
    with pytest.raises(ValueError):
        async with marked_when_stopped(store, "a"):
            raise ValueError
    assert status(store, "a") == {"running"}
