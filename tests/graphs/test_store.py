"""The trajectory store: what was awaited is on disk, and nothing is rewritten."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError, ReplayError, UsageError
from reflux.agents.types import ChatRequest, Completion, Sampling, TokenLogprob
from reflux.graphs.traces.database import BATCH, SCHEMA_VERSION
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore

GOLDEN = Path(__file__).parents[1] / "golden" / "traces-v2.sql"
KEY = CallKey("q1", "/0.0.1", "answer")


def call(text: str = "a", **other: Any) -> dict[str, Any]:
    return {
        "kind": "model",
        "completion": text,
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "seconds": 0.1,
        "cached": 0,
    } | other


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "traces.db"


@pytest.fixture
def store(path: Path) -> Iterator[TraceStore]:
    store = TraceStore(path)
    yield store
    store.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Read with a connection of its own, which sees only what is committed."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def test_a_row_is_committed_before_its_await_returns(store: TraceStore, path: Path) -> None:
    await store.add_question({"id": "q1", "text": "2+2?", "run": "r"})
    assert rows(path, "SELECT id, text, run FROM questions") == [("q1", "2+2?", "r")]
    await store.add_call(KEY, call("4"))
    assert rows(path, "SELECT path, completion FROM calls") == [("/0.0.1", "4")]
    await store.add_judgement("q1", "", "check", True, {"rule": ""})
    assert rows(path, "SELECT kind, ok, detail FROM judgements") == [("check", 1, '{"rule": ""}')]


async def test_many_writers_at_once_lose_nothing(store: TraceStore, path: Path) -> None:
    number = 3 * BATCH
    await asyncio.gather(
        *(store.add_call(CallKey("q1", "", "answer", vote=v), call(str(v))) for v in range(number))
    )
    found = rows(path, "SELECT vote, completion FROM calls ORDER BY vote")
    assert found == [(v, str(v)) for v in range(number)]


async def test_two_stores_of_one_file_write_side_by_side(store: TraceStore, path: Path) -> None:
    other = TraceStore(path)
    await asyncio.gather(
        *(s.add_call(CallKey(q, "", "answer", vote=v), call())
          for v in range(50) for q, s in (("q1", store), ("q2", other)))
    )  # fmt: skip
    assert store.find_call(CallKey("q2", "", "answer", vote=49)) is not None
    other.close()


async def test_a_key_taken_twice_is_an_error_and_the_others_of_the_batch_stand(
    store: TraceStore,
) -> None:
    await store.add_call(KEY, call("first"))
    keys = [CallKey("q1", "", "answer", vote=v) for v in range(5)]
    keys.insert(2, KEY)
    results = await asyncio.gather(
        *(store.add_call(key, call("later")) for key in keys), return_exceptions=True
    )
    assert [type(r) for r in results if r is not None] == [ReplayError]
    assert isinstance(results[2], ReplayError)
    assert all(store.find_call(key) is not None for key in keys)
    kept = store.find_call(KEY)
    assert kept is not None and kept["completion"] == "first"


async def test_a_call_that_failed_can_be_made_again(store: TraceStore, path: Path) -> None:
    await store.add_call(KEY, call("", error="down"))
    await store.add_call(KEY, call("", error="down"))
    assert store.find_call(KEY) is None
    await store.add_call(KEY, call("4"))
    found = store.find_call(KEY)
    assert found is not None and found["completion"] == "4"
    assert len(rows(path, "SELECT 1 FROM calls")) == 3


async def test_a_question_asked_again_stays_as_it_was(store: TraceStore, path: Path) -> None:
    await store.add_question({"id": "q1", "text": "first"})
    await store.add_question({"id": "q1", "text": "second"})
    assert rows(path, "SELECT text FROM questions") == [("first",)]


async def test_a_judgement_with_a_key_is_one_row_and_without_one_is_new(
    store: TraceStore, path: Path
) -> None:
    for _ in range(2):
        await store.add_judgement("q1", "", "check", True, {}, key="0")
        await store.add_judgement("q1", "", "review", None, {}, author="human")
    await store.add_judgement("q1", "", "check", False, {}, key="1")
    found = rows(path, "SELECT kind, ok, author FROM judgements ORDER BY id")
    assert found == [
        ("check", 1, "reflux"),
        ("review", None, "human"),
        ("review", None, "human"),
        ("check", 0, "reflux"),
    ]


@pytest.mark.parametrize("bad", [{"completion": "\ud800"}, {"prompt_tokens": 10**30}])
async def test_a_row_that_cannot_be_held_is_an_error_and_the_writer_goes_on(
    store: TraceStore, bad: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        await store.add_call(KEY, call(**bad))
    await store.add_call(KEY, call("4"))
    assert store.find_call(KEY) is not None


async def test_a_full_disk_is_told_to_everyone_whose_row_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = TraceStore._connect

    def connect_to_a_small_disk(self: TraceStore) -> sqlite3.Connection:
        connection = connect(self)
        connection.execute("PRAGMA max_page_count = 40")
        return connection

    monkeypatch.setattr(TraceStore, "_connect", connect_to_a_small_disk)
    store = TraceStore(path)
    keys = [CallKey("q1", "", "answer", vote=v) for v in range(200)]
    results = await asyncio.gather(
        *(store.add_call(key, call("x" * 2_000)) for key in keys), return_exceptions=True
    )
    store.close()
    held = {vote for (vote,) in rows(path, "SELECT vote FROM calls")}
    committed = {key.vote for key, result in zip(keys, results, strict=True) if result is None}
    assert committed <= held
    failures = [r for r in results if r is not None]
    assert failures
    assert all(isinstance(r, RefluxError) and "free some space" in str(r) for r in failures)


async def test_a_closed_store_takes_no_row(path: Path) -> None:
    store = TraceStore(path)
    store.close()
    store.close()
    with pytest.raises(UsageError, match="closed"):
        await store.add_call(KEY, call())


async def test_closing_writes_what_was_queued(path: Path) -> None:
    store = TraceStore(path)
    tasks = [
        asyncio.create_task(store.add_call(CallKey("q1", "", "answer", vote=v), call()))
        for v in range(20)
    ]
    await asyncio.sleep(0)
    store.close()
    await asyncio.gather(*tasks)
    assert rows(path, "SELECT count(*) FROM calls") == [(20,)]


async def test_a_file_of_another_version_is_refused_and_left_alone(path: Path) -> None:
    TraceStore(path).close()
    connection = sqlite3.connect(path)
    connection.executescript(
        "UPDATE meta SET value = '3'; DROP TABLE judgements; ALTER TABLE calls DROP COLUMN model"
    )
    connection.close()
    with pytest.raises(UsageError, match=f"version 3, this Reflux writes {SCHEMA_VERSION}"):
        TraceStore(path)
    assert rows(path, "SELECT 1 FROM sqlite_master WHERE name = 'judgements'") == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "traces.db"
    garbage.write_bytes(b"not a database\n" * 100)
    with pytest.raises(UsageError, match="not a"):
        TraceStore(garbage)
    assert garbage.read_bytes() == b"not a database\n" * 100


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE checkpoints (id)")
    connection.close()
    with pytest.raises(UsageError, match="not a trace file"):
        TraceStore(other)
    assert rows(other, "SELECT name FROM sqlite_master") == [("checkpoints",)]


def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "traces.db"):
        with pytest.raises(UsageError, match=r"cannot be opened|cannot share a name"):
            TraceStore(path)


WRITER = """
import asyncio, sys
from pathlib import Path
from reflux.graphs.traces.store import CallKey, TraceStore

async def main():
    store = TraceStore(Path(sys.argv[1]))
    async def one(worker):
        for number in range(10_000):
            await store.add_call(CallKey(f"w{worker}", "", "answer", vote=number), {
                "kind": "model", "completion": "x" * 200, "prompt_tokens": 1,
                "completion_tokens": 1, "seconds": 0.0, "cached": 0})
            print(worker, number, flush=True)
    await asyncio.gather(*(one(worker) for worker in range(8)))

asyncio.run(main())
"""


@pytest.mark.process
def test_a_killed_process_has_lost_no_row_whose_await_returned(path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    claimed = {tuple(map(int, line.split())) for line in lines if line.endswith("\n")}
    store = TraceStore(path)
    held = {(int(r["question"][1:]), r["vote"]) for r in store.select("SELECT * FROM calls")}
    store.close()
    assert len(claimed) >= 200
    assert claimed <= held


async def test_a_trace_file_of_version_2_opens_and_its_calls_replay(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(GOLDEN.read_text())
    connection.close()
    store = TraceStore(path)
    model = ScriptedClient(lambda _: pytest.fail("a recorded call was made again"))
    request = ChatRequest(
        "base", (("system", ""), ("user", "4+5=")), Sampling(0.7, 24, 1, 1, ("\n",)), vote=1
    )
    reply = await RecordedClient(model, store).ask(
        CallKey("5e1f0a", "/0.0.0", "answer", 0, 0, 1), request
    )
    judged = [json.loads(r["detail"]) for r in store.select("SELECT * FROM judgements")]
    store.close()
    assert reply == Completion(
        "90", 9, 2, 0.25, "stop",
        (TokenLogprob("9", -0.125, (("9", -0.125), ("8", -2.5))), TokenLogprob("0", -0.5)),
        ("503 InternalServerError: busy",), False,
    )  # fmt: skip
    assert judged == [{"answer": "90", "rule": ""}]


async def test_a_trace_file_of_reflux_0_1_is_refused_with_a_remedy(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(GOLDEN.with_name("traces-v1.sql").read_text())
    connection.close()
    with pytest.raises(UsageError, match=r"was written by Reflux 0\.1.*name another --run"):
        TraceStore(path)
