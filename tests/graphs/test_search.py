"""Trajectories are searched page by page, in any store, and a node's record holds all of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.graphs.traces import search as searching
from reflux.graphs.traces.search import Wanted, facets, node_record, search
from reflux.graphs.traces.store import CallKey, TraceStore


async def add(
    store: TraceStore, id: str, text: str, status: str | None = "ok", **more: Any
) -> None:
    asked = {"run": "r", "round": 0, "system": "direct", "task": "t", "split": "train", **more}
    await store.add_question({"id": id, "text": text, **asked})
    if status is not None:
        detail = {"question": text, "answer": f"to {text}", "status": status, "error": None}
        await store.add_judgement(id, "", "direct", status == "ok", detail, key="0")


def found(store: TraceStore, limit: int = 100, **wanted: str) -> list[str]:
    """Ids of all pages."""
    ids: list[str] = []
    before: int | None = None
    while True:
        page, before = search(store.path, Wanted(**wanted), before, limit)
        ids += [row["id"] for row in page]
        if before is None:
            return ids


async def test_the_newest_come_first_with_how_they_ended(store: TraceStore) -> None:
    await add(store, "a", "one")
    await add(store, "b", "two", None)
    await add(store, "c", "three", "rejected")
    page, more = search(store.path, Wanted())
    assert more is None
    assert [(row["id"], row["status"], row["answer"]) for row in page] == [
        ("c", "rejected", "to three"), ("b", "running", None), ("a", "ok", "to one"),
    ]  # fmt: skip


async def test_text_is_found_in_any_case_and_means_nothing_but_itself(store: TraceStore) -> None:
    await add(store, "a1", "Half of 50% is 25_")
    await add(store, "b2", "half of it")
    assert found(store, text="HALF") == ["b2", "a1"]
    assert found(store, text="50%") == ["a1"]
    assert found(store, text="5_") == ["a1"]
    assert found(store, text="%") == ["a1"]
    assert found(store, text="\\") == []
    assert found(store, text="b2") == ["b2"]
    assert found(store, text="TO half") == ["b2", "a1"]  # Of the answer.


async def test_a_long_text_is_searched_whole_and_listed_in_part(store: TraceStore) -> None:
    await add(store, "a", f"{'long ' * 1_000}needle")
    ((row,), _) = search(store.path, Wanted("needle"))
    assert row["text"] == f"{'long ' * 200}…"
    assert row["answer"] == f"to {'long ' * 200}"[:1_000] + "…"


async def test_filters_hold_together(store: TraceStore) -> None:
    await add(store, "a", "x", system="direct", split="train")
    await add(store, "b", "x", system="amplified", split="train")
    await add(store, "c", "x", "failed", system="amplified", split="held_out")
    assert found(store, system="amplified") == ["c", "b"]
    assert found(store, system="amplified", status="ok") == ["b"]
    assert found(store, split="held_out", status="ok") == []
    assert facets(store.path) == {
        "count": 3, "systems": ["amplified", "direct"], "splits": ["held_out", "train"],
    }  # fmt: skip


@pytest.mark.slow
@given(
    texts=st.lists(st.text("ab_%\\", max_size=4), max_size=12),
    part=st.text("ab_%\\", max_size=2),
    limit=st.integers(1, 5),
    window=st.integers(1, 7),
)
def test_pages_of_any_size_hold_what_one_scan_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], part: str, limit: int, window: int
) -> None:
    store = TraceStore(tmp_path_factory.mktemp("s") / "traces.db")

    async def fill() -> None:
        for number, text in enumerate(texts):
            await add(store, f"{number:02}", text)

    asyncio.run(fill())
    was, searching.MAX_SCANNED = searching.MAX_SCANNED, window
    try:
        expected = [f"{n:02}" for n, text in enumerate(texts) if part in text]
        assert found(store, limit, text=part) == expected[::-1]
    finally:
        searching.MAX_SCANNED = was
        store.close()


async def test_a_nodes_record_has_its_calls_judgements_and_price(store: TraceStore) -> None:
    await add(store, "q", "one")
    key = CallKey("q", "", "answer")
    call: dict[str, Any] = {
        "kind": "model", "model": "x", "messages": json.dumps([{"role": "user", "content": "one"}]),
        "completion": "1", "logprobs": json.dumps([["1", -0.5, [["1", -0.5]]]]),
        "prompt_tokens": 10, "completion_tokens": 2, "seconds": 0.5, "cached": 0,
    }  # fmt: skip
    await store.add_call(key, call)
    record = node_record(store.path, "q", "", {"x": Price(1.0, 2.0)})
    (made,) = record["calls"]
    assert made["messages"] == [{"role": "user", "content": "one"}]
    assert made["logprobs"] == [["1", -0.5, [["1", -0.5]]]]
    assert record["cost"] == pytest.approx(14e-6)
    assert [judged["kind"] for judged in record["judgements"]] == ["direct"]
    assert node_record(store.path, "q", "", {})["cost"] is None
    assert node_record(store.path, "q", "/0.0.0", {})["calls"] == []
    with pytest.raises(UsageError, match="no trajectory has the id 'nobody'"):
        node_record(store.path, "nobody", "", {})


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "traces.db"
    bad.write_text("not a database, and longer than a header would be" * 10)
    with pytest.raises(UsageError, match="not a whole database"):
        search(bad, Wanted())
