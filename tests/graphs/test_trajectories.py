"""Foreign trajectories: what was stored comes back, wherever our own trees are read, too."""

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reflux.agents.errors import UsageError
from reflux.agents.types import Completion, TokenLogprob, ToolCall
from reflux.cli.main import app
from reflux.graphs.traces.database import SCHEMA
from reflux.graphs.traces.search import Wanted, find_question, search
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    Feedback,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
    load,
)
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from reflux.graphs.traces.tree import load_tree

GOLDEN = Path(__file__).parents[1] / "golden" / "traces-v2.sql"
KEY = "sk-proj-0123456789abcdefghij"
SEARCH: dict[str, Any] = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
}
ASKED = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "x"}}
WHOLE = Trajectory(
    key="thread-1",
    source="url",
    calls=(
        RecordedCall(
            messages=(
                {"role": "system", "content": "You help."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Who is there?"},
                        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    ],
                },
            ),
            reply=Completion(
                "",
                prompt_tokens=12,
                completion_tokens=3,
                seconds=0.5,
                finish_reason="tool_calls",
                tool_calls=(ToolCall("c1", "search", '{"q": "who"'),),
                reasoning="hm",
            ),
            node="plan",
            step=0,
            model="gpt-5",
            tools=(SEARCH,),
            sampling={"temperature": 0.5, "response_format": {"type": "json_object"}},
            created=1000.0,
        ),
        RecordedCall(
            reply=Completion("nobody", seconds=0.1),
            kind="tool",
            node="tools",
            step=1,
            model="search",
            arguments='{"q": "who"',
            created=1001.0,
        ),
        RecordedCall(
            messages=({"role": "user", "content": "Who is there?"},),
            reply=Completion(
                "Nob",
                finish_reason="cancelled",
                logprobs=(TokenLogprob("Nob", -0.5, (("Nob", -0.5), ("No", -1.0))),),
                notes=("odd",),
            ),
            path="/0.0.0",
            step=2,
            vote=1,
            model="gpt-5",
            error="the client left after 1 event",
            created=1002.0,
        ),
    ),
    text="Who is there?",
    name="support",
    metadata={"customer": 7},
    tags=("a", "b"),
    told_by="header",
    outcome=RecordedOutcome("Nobody", "ok"),
    feedback=(Feedback(0.5, "correctness", "half", "judge:gpt-5"), Feedback(comment="later")),
    created=1000.0,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


@pytest.fixture
def store(path: Path) -> Iterator[TraceStore]:
    store = TraceStore(path)
    yield store
    store.close()


def done(future: "Future[None]") -> None:
    future.result(30)


def test_what_is_recorded_comes_back_and_is_recorded_once(store: TraceStore) -> None:
    writer = TrajectoryWriter(store)
    for _ in range(2):
        done(writer.record(WHOLE))
        assert load(store, WHOLE.id) == WHOLE
    done(writer.record(replace(WHOLE, calls=(*WHOLE.calls, replace(WHOLE.calls[1], step=3)))))
    loaded = load(store, WHOLE.id)
    assert loaded is not None and [call.step for call in loaded.calls] == [0, 1, 2, 3]
    assert load(store, "url-none") is None


def test_a_trajectory_grows_call_by_call_from_any_process(store: TraceStore, path: Path) -> None:
    """Numbers are found where they are used, and a later outcome replaces an earlier one."""
    begun = replace(WHOLE, calls=(), text="", outcome=None, feedback=())
    call = replace(WHOLE.calls[0], step=None)
    other = TraceStore(path)
    writers = [TrajectoryWriter(store), TrajectoryWriter(other)]
    futures = [writers[i % 2].add(begun, [call, replace(call, vote=1)]) for i in range(20)]
    for future in futures:
        done(future)
    done(writers[0].end(WHOLE.id, "Who?", RecordedOutcome("1")))
    done(writers[0].end(WHOLE.id, "Who?", RecordedOutcome("2", "failed", "why")))
    done(writers[0].score(WHOLE.id, Feedback(1.0)))
    other.close()
    loaded = load(store, WHOLE.id)
    assert loaded is not None and loaded.text == "Who is there?"
    assert [(call.step, call.vote) for call in loaded.calls] == [
        (step, vote) for step in range(20) for vote in (0, 1)
    ]
    assert loaded.outcome == RecordedOutcome("2", "failed", "why")
    assert loaded.feedback == (Feedback(1.0),)


def test_a_write_is_whole_or_nothing(store: TraceStore) -> None:
    """A call that SQLite cannot hold leaves nothing of its trajectory, and harms no other."""
    writer = TrajectoryWriter(store)
    bad = replace(WHOLE.calls[1], step=2**70)
    futures = [
        writer.record(replace(WHOLE, key="1")),
        writer.record(replace(WHOLE, key="2", calls=(WHOLE.calls[0], bad))),
        writer.record(replace(WHOLE, key="3")),
    ]
    with pytest.raises(UsageError, match="SQLite cannot hold"):
        futures[1].result(30)
    for key, there in (("1", True), ("2", False), ("3", True)):
        assert (load(store, replace(WHOLE, key=key).id) is not None) == there
    store.close()
    with pytest.raises(UsageError, match="closed"):
        writer.record(WHOLE)


def test_no_secret_is_stored(store: TraceStore, path: Path) -> None:
    call = WHOLE.calls[0]
    said = Completion(KEY, tool_calls=(ToolCall("1", "f", f'{{"k": "{KEY}"}}'),), reasoning=KEY)
    leaky = replace(
        call,
        messages=({"role": "user", "content": [{"type": "text", "text": f"\n{KEY}"}]},),
        reply=said,
        tools=({"type": "function", "function": {"name": "f", "description": KEY}},),
        sampling={"metadata": {"key": KEY}},
        error=KEY,
    )
    tool = replace(WHOLE.calls[1], arguments=KEY, reply=Completion(KEY))
    trajectory = Trajectory(
        key=KEY, source="url", calls=(leaky, tool), name=KEY, metadata={"k": [KEY]}, tags=(KEY,),
        outcome=RecordedOutcome(KEY, error=KEY), feedback=(Feedback(comment=KEY),),
    )  # fmt: skip
    done(TrajectoryWriter(store).record(trajectory))
    store.close()
    assert all(KEY.encode() not in file.read_bytes() for file in path.parent.iterdir())


async def test_async_callers_await_the_same_future(store: TraceStore) -> None:
    await asyncio.wrap_future(TrajectoryWriter(store).record(WHOLE))
    assert load(store, WHOLE.id) == WHOLE


@pytest.mark.parametrize("locked", [False, True])
def test_a_file_of_before_opens(path: Path, locked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(GOLDEN.read_text())
    connection.executescript(SCHEMA)  # Adds tables, not columns.
    connection.close()
    if locked:  # As on a read-only disk; root may write a file of any mode.
        failed = sqlite3.OperationalError("readonly")
        failed.sqlite_errorcode = sqlite3.SQLITE_READONLY

        def refuse(self: TraceStore) -> sqlite3.Connection:
            raise failed

        monkeypatch.setattr(TraceStore, "_connect", refuse)
    store = TraceStore(path)
    found, _ = search(path, Wanted())
    assert [row["status"] for row in found] == ["running"]
    assert load_tree(store, "5e1f0a").status == "running"
    loaded = load(store, "5e1f0a")
    assert loaded is not None and loaded.source == ""
    (call,) = loaded.calls
    assert (call.node, call.reply.text, call.tools) == ("answer", "90", ())
    if not locked:
        done(TrajectoryWriter(store).record(WHOLE))
        assert load(store, WHOLE.id) == WHOLE
    store.close()


def test_commands_show_it_as_they_show_our_own(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    writer = TrajectoryWriter(store)
    nested = replace(WHOLE.calls[0], path="/0.0.0/0.0.1", node="critic", reply=Completion("fine"))
    turns = (*WHOLE.calls[0].messages, {"role": "assistant", "tool_calls": [ASKED]})
    silent = replace(WHOLE.calls[0], messages=turns, step=3)  # Without content.
    done(writer.record(replace(WHOLE, calls=(*WHOLE.calls, replace(nested, step=4), silent))))
    done(writer.record(replace(WHOLE, key="2", outcome=None)))
    tree = load_tree(store, WHOLE.id)
    assert (tree.status, tree.answer, tree.calls, tree.tools) == ("ok", "Nobody", 2, 1)
    asks = 'plan, gpt-5 asks for search {"q": "who"'
    assert tree.steps == [asks, 'tools runs search {"q": "who" -> nobody', asks]
    assert find_question(store, WHOLE.key)[0] == WHOLE.id
    assert [(node.path, node.question, node.answer) for node in tree.walk()][1:] == [
        ("/0.0.0", "agent", None),
        ("/0.0.0/0.0.1", "critic", "fine"),
    ]
    assert not tree.division
    store.close()

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["traces", *words, "--run", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.output

    listed = run("list")
    assert "recorded, url" in listed and "Nobody" in listed and "unfinished" in listed
    assert WHOLE.id in run("list", "--status", "ok")
    assert WHOLE.id not in run("list", "--status", "unfinished")
    assert "Nobody" in run("show", WHOLE.id) and asks in run("show", WHOLE.key)
    page = tmp_path / "tree.html"
    run("page", WHOLE.id, "--out", str(page))
    text = page.read_text()
    assert "Who is there?" in text and "image_url" in text and "find(x)" in text
    found, _ = search(tmp_path / "traces.db", Wanted(status="unfinished"))
    assert [row["id"] for row in found] == [replace(WHOLE, key="2").id]
