"""Recorded trajectories as rows: what is learned of them, and what is left out and why."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import Completion
from reflux.finetune.data.overseer_rows import step_rows
from reflux.finetune.data.recorded import LeftOut, RowOptions, recorded_rows
from reflux.finetune.data.rows import Row
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.recompute import revise
from reflux.graphs.traces.database import reading
from reflux.graphs.traces.selection import selecting
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import RecordedCall, RecordedOutcome, Trajectory
from tests.support.amplifying import amplified, asking, echo
from tests.support.recorded import TOOL, record, record_all, trajectory


def rows_of(
    path: Path,
    where: str = "1",
    left_out: LeftOut | None = None,
    withheld: Callable[[str], bool] = lambda question: False,
    **options: Any,
) -> list[Row]:
    with reading(path) as store, selecting(path, where) as selection:
        left_out = LeftOut() if left_out is None else left_out
        return list(recorded_rows(store, selection, RowOptions(**options), left_out, withheld))


def shape(row: Row) -> list[str]:
    """The completion's messages, learned ones in capitals."""
    words = (t["content"] or t["tool_calls"][0]["function"]["name"] for t in row.completion)
    learned = (t["role"] == "assistant" and t.get("weight") != 0 for t in row.completion)
    return [w.upper() if is_learned else w for w, is_learned in zip(words, learned, strict=True)]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    record(tmp_path / "traces.db", n=2)
    return tmp_path / "traces.db"


def test_a_call_is_a_row(traces: Path) -> None:
    rows = rows_of(traces)
    assert [shape(row) for row in rows] == [["FIND"], ["ON SHELF 0"], ["FIND"], ["ON SHELF 1"]]
    assert [len(row.prompt) for row in rows] == [2, 4, 2, 4]
    assert all(row.tools == (TOOL,) for row in rows)
    about = rows[2].provenance
    assert (about["node"], about["source"], about["outcome"], about["score"]) == (
        "plan", "url", "unchecked", 1.0,
    )  # fmt: skip
    assert "reasoning_content" not in rows[0].completion[0]
    assert rows_of(traces, reasoning=True)[0].completion[0]["reasoning_content"] == "Hm."


def test_a_trajectory_is_a_row_that_repeats_nothing(traces: Path) -> None:
    assert [shape(row) for row in rows_of(traces, by="trajectories")] == [
        ["FIND", "shelf 0", "ON SHELF 0"],
        ["FIND", "shelf 1", "ON SHELF 1"],
    ]
    # A call that is not selected is context.
    rows = rows_of(traces, "node = 'answer'", by="trajectories")
    assert [shape(row) for row in rows] == [["ON SHELF 0"], ["ON SHELF 1"]]
    rows = rows_of(traces, "node = 'plan' AND score = 1", by="trajectories")
    assert [shape(row) for row in rows] == [["FIND"]]


def test_calls_that_do_not_go_on_are_rows_of_their_own(tmp_path: Path) -> None:
    def call(reply: str, *texts: str) -> RecordedCall:
        roles = ("user", "assistant")
        turns = tuple({"role": roles[i % 2], "content": t} for i, t in enumerate(texts))
        return RecordedCall(turns, Completion(reply, finish_reason="stop"))

    calls = (
        call("b", "a"), call("d", "a", "b", "c"), call("other", "a", "b", "e"),
        call("h", "a", "b", "c", "d", "g"), call("x", "changed"),
    )  # fmt: skip
    whole = Trajectory("k", "url", calls, outcome=RecordedOutcome("h"))
    record_all(tmp_path / "traces.db", [whole])
    assert [shape(row) for row in rows_of(tmp_path / "traces.db", by="trajectories")] == [
        ["B", "c", "D", "g", "H"],
        ["OTHER"],
        ["X"],
    ]


def test_a_flat_row_is_the_question_and_the_last_answer(traces: Path) -> None:
    first = rows_of(traces, by="flat")[0]
    assert [turn["content"] for turn in first.prompt] == ["", "Where is b0?"]
    assert shape(first) == ["ON SHELF 0"]


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    statuses = ("unchecked", None, "rejected", "failed", "ok")
    whole = [trajectory(i, 5, statuses[i]) for i in range(5)]
    model, _, last = whole[4].calls
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    broken = replace(model.reply.tool_calls[0], arguments="{oops")
    whole[4] = replace(
        whole[4],
        calls=(
            replace(model, reply=replace(model.reply, tool_calls=(broken,))),
            replace(last, reply=replace(last.reply, finish_reason="length")),
            replace(last, reply=replace(last.reply, text=" ")),
            replace(model, messages=(image,)),
            replace(last, error="broke off"),
        ),
    )
    record_all(path, whole)
    left_out = LeftOut()
    assert [row.provenance["trajectory"] for row in rows_of(path, left_out=left_out)] == [
        whole[0].id
    ] * 2
    assert dict(left_out.counts) == {
        "unfinished": 2, "ended as rejected": 2, "ended as failed": 2,
        "tool calls that are no JSON": 1, "cut by the token limit": 1, "an empty reply": 1,
        "not text alone": 1,
    }  # fmt: skip
    assert left_out.examples["unfinished"] == [{"trajectory": whole[1].id, "text": "Where is b1?"}]
    assert len(rows_of(path, unfinished=True)) == 4
    assert len(rows_of(path, "status = 'failed'", any_status=True)) == 2
    assert rows_of(path, withheld=lambda question: True)  # Not ours: no task holds it out.


async def test_what_a_human_judged_decides(traces: Path) -> None:
    ids = [trajectory(i).id for i in range(2)]
    store = TraceStore(traces)
    for id, ok in zip(ids, (True, False), strict=True):
        await store.add_judgement(id, "", "verdict", ok, {"answer": "x"}, author="human")
    store.close()
    left_out = LeftOut()
    rows = rows_of(traces, left_out=left_out)
    assert {row.provenance["trajectory"] for row in rows} == {ids[0]}
    assert left_out.note == "2 rejected by a human"
    assert len(rows_of(traces, "approved")) == 2


async def test_a_humans_edit_takes_the_place_of_the_reply_that_it_corrects(traces: Path) -> None:
    left_out, ids = LeftOut(), [row.provenance["trajectory"] for row in rows_of(traces, by="flat")]
    with closing(TraceStore(traces)) as store:
        await revise(store, ids[0], "", "on no shelf")
        await revise(store, ids[0], "", "it is lost")  # Of the newest revision.
    assert [shape(row) for row in rows_of(traces, f"trajectory LIKE '{ids[0]}%'")] == [
        ["FIND"],
        ["IT IS LOST"],
    ]
    assert shape(rows_of(traces, by="trajectories")[-1]) == ["FIND", "shelf 0", "IT IS LOST"]
    assert shape(rows_of(traces, by="flat")[-1]) == ["IT IS LOST"]
    with closing(sqlite3.connect(traces)) as connection, connection:
        connection.execute("UPDATE calls SET completion = 'another' WHERE completion LIKE 'on s%'")
    assert [shape(row) for row in rows_of(traces, left_out=left_out)] == [["FIND"], ["ANOTHER"]]
    assert left_out.note == "2 edited, and no single reply said it"


def test_rows_of_a_million_calls_are_read_one_trajectory_at_a_time(traces: Path) -> None:
    """The first row comes before the rest is read."""
    with reading(traces) as store, selecting(traces, "1") as selection:
        rows = recorded_rows(store, selection, RowOptions(), LeftOut())
        assert json.loads(json.dumps(next(rows).train()))["completion"]


async def test_our_own_trees_give_flat_rows_and_rows_by_role(store: TraceStore) -> None:
    """The overseer is a script; copies answer x and y by vote."""
    system = amplified(store, ScriptedClient(echo), asking("x", "y"))
    for split in ("asked", "held_out"):
        await answer_all(system, Origin("run", -1, split, "words", split), ["root"])
    left_out = LeftOut()
    (flat,) = rows_of(store.path, by="flat", left_out=left_out)
    assert (flat.question, flat.reply, flat.task) == ("root", "X+Y", "words")
    assert left_out.counts["held out"] > 0
    assert rows_of(store.path, by="flat", withheld=lambda question: question == "root") == []
    options = RowOptions(by="roles")
    rows = rows_of(store.path, by="roles", left_out=left_out)
    assert [(row.provenance["node"], row.reply) for row in rows] == [
        ("answer", "X"),
        ("answer", "Y"),
    ]
    with reading(store.path) as opened, selecting(store.path, "1") as selection:
        steps = list(step_rows(opened, selection, options))
        assert list(step_rows(opened, selection, options, lambda text: text == "x")) == []
    assert [row.provenance["node"] for row in steps] == ["decompose", "combine"]
    assert ["x" in steps[0].reply, "X+Y" in steps[1].reply] == [True, True]
    assert steps[1].prompt[-1]["content"].count("X") == 1
