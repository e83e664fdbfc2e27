"""What a round learns from: accepted answers only, no held-out question, no true answer."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.types import ChatRequest
from reflux.finetune.configs.run import SpendLimitConfig
from reflux.finetune.data.rows import Row, accepted, check_leaks, reply_of, rows_digest
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.graphs.evals.task import is_held_out
from reflux.tasks.addition import Addition
from tests.support.sums import CONFIG, SuspiciousAddition, add, exact


def wrong_by_nine(request: ChatRequest) -> str:
    """Wrong wherever an error can pass the check: two neighbouring digits of the sum change
    places, which leaves its digits' sum alone."""
    right = exact(request)
    if not right.isdecimal() or len(right) < 3:
        return right
    return right[1] + right[0] + right[2:]


def stages(folder: Path, reply=exact) -> Stages:
    run = OpenRun(RunFolder(folder), client=ScriptedClient(reply))
    return Stages(CONFIG, SuspiciousAddition(), run, lambda *_: None)


@pytest.mark.slow
async def test_a_round_scores_held_out_questions_only(tmp_path: Path) -> None:
    s, before = stages(tmp_path / "r"), SuspiciousAddition.scored
    async with s.run:
        for number, model in ((0, "base"), (1, "student-r0"), (2, "student-r1")):
            await s.amplify(number, model)
            s.rows(number)
            await s.evaluate(number, model)
    assert SuspiciousAddition.scored - before == 3 * (16 + 12)


async def test_no_held_out_question_is_in_the_rows_at_any_depth(tmp_path: Path) -> None:
    s = stages(tmp_path / "r")
    async with s.run:
        await s.amplify(0, "base")
        await s.amplify(1, "student-r0")
        await s.amplify(2, "student-r1")
        rows, repeated = s.rows(2)
    sums = [row for row in rows if row.task == "addition"]
    assert len(sums) == 200 + 24 + 40
    assert not [row.question for row in sums if is_held_out(s.task, row.question)]
    texts = {row.train()["prompt"][-1]["content"] for row in repeated if row.task == "addition"}
    assert not [text for text in texts if is_held_out(s.task, text)]


async def test_a_run_without_money_ends_and_scores_no_answer_as_wrong(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"spend_limit": SpendLimitConfig(calls=20)})
    s = stages(tmp_path / "r")
    async with s.run:
        broke = replace(s, config=config, spend_limit=config.spend_limit.open())
        await broke.amplify(0, "base")
        with pytest.raises(RefluxError, match=r"no calls left: raise spend_limit\.calls"):
            await broke.amplify(1, "student-r0")
        resumed = await s.amplify(1, "student-r0")
    assert resumed["accepted"] == resumed["questions"] == 24


async def test_a_leak_stops_the_training(tmp_path: Path) -> None:
    task = Addition()
    (leak,) = task.sample(1, 3, "held_out", 0)
    row = Row(
        ({"role": "user", "content": leak},), reply_of("x"), leak, "addition", {"trajectory": "t"}
    )
    with pytest.raises(RefluxError, match="held-out"):
        check_leaks([row], task)


async def test_rows_come_from_accepted_trajectories_only(tmp_path: Path) -> None:
    s = stages(tmp_path / "r", reply=lambda request: "no sum at all")
    async with s.run:
        told = await s.amplify(1, "base")
        rows, _ = s.rows(1)
    assert told["accepted"] == 0
    assert rows == []


async def test_no_filter_knows_the_sum(tmp_path: Path) -> None:
    """Wrong answers that keep the form and the nines become rows: nothing here adds."""
    s = stages(tmp_path / "r", reply=wrong_by_nine)
    async with s.run:
        await s.amplify(2, "base")
        rows, _ = s.rows(2)
    wrong = [row for row in rows if row.reply != add(row.question)]
    assert len(wrong) > len(rows) / 2 > 10


async def test_trajectories_hold_no_true_answers(tmp_path: Path) -> None:
    """With X silent, no table of the trace file holds a single sum of two digits or more."""
    s = stages(tmp_path / "r", reply=lambda request: "?")
    async with s.run:
        await s.amplify(1, "base")
        await s.evaluate(1, "base")
        questions = s.task.sample(16, 2, "held_out", CONFIG.seed + 1)
    connection = sqlite3.connect(tmp_path / "r" / "traces.db")
    stored = " ".join(
        str(value)
        for table in ("questions", "calls", "judgements")
        for row in connection.execute(f"SELECT * FROM {table}")  # noqa: S608
        for name, value in zip(
            [c[1] for c in connection.execute(f"PRAGMA table_info({table})")], row, strict=True
        )
        if name in ("text", "completion", "detail", "messages")
    )
    assert len(questions) == 16
    assert not [q for q in questions if f'"{add(q)}"' in stored]


@pytest.mark.slow
async def test_amplifying_again_makes_no_call_and_the_same_rows(tmp_path: Path) -> None:
    first = stages(tmp_path / "r")
    async with first.run:
        await first.amplify(0, "base")
        told = await first.amplify(1, "student-r0")
        digest = rows_digest(first.rows(1)[1])
    again = stages(tmp_path / "r")
    client = ScriptedClient(exact)
    again.run.recorded_client.client = client
    async with again.run:
        await again.amplify(0, "base")
        retold = await again.amplify(1, "student-r0")
        assert client.requests == []
        assert rows_digest(again.rows(1)[1]) == digest
    assert {k: v for k, v in told.items() if k != "seconds"} == {
        k: v for k, v in retold.items() if k != "seconds"
    }


async def test_an_outage_is_an_error_not_a_bad_student(tmp_path: Path) -> None:
    def down(request: ChatRequest) -> str:
        raise EndpointError("http://127.0.0.1:9 failed")

    s = stages(tmp_path / "r", reply=down)
    async with s.run:
        with pytest.raises(EndpointError, match="24 of 24 questions failed"):
            await s.amplify(1, "base")


async def test_provenance_names_trajectory_round_and_models(tmp_path: Path) -> None:
    s = stages(tmp_path / "r")
    async with s.run:
        await s.amplify(1, "student-r0")
        row = next(accepted(s.run.store, "train", "amplified", 1, ""))
    assert row.provenance["round"] == 1
    assert row.provenance["models"] == ["scripted:student-r0"]
    assert set(row.train()) == {"prompt", "completion"}
