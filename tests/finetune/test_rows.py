"""Rows and files: what a run trains from, and the forms that TRL takes."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.data.conversations import read_rows
from reflux.finetune.data.export import export
from reflux.finetune.data.rows import (
    Row,
    check_leaks,
    reply_of,
    rows_digest,
    run_rows,
    training_order,
)
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.traces.store import TraceStore
from reflux.tasks.addition import Addition
from tests.support.amplifying import ONE_VOTE, amplified, asking, echo, rejecting
from tests.support.overriding import override


def read_all(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


ROW = Row(
    ({"role": "system", "content": ""}, {"role": "user", "content": "1+1="}),
    reply_of("20"),
    "1+1=",
    "addition",
    {"trajectory": "abc"},
    rejected="30",
)


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        ("prompt-completion", {"prompt", "completion"}),
        ("messages", {"messages"}),
        ("preference", {"prompt", "chosen", "rejected"}),
    ],
)
def test_export_writes_a_form_and_a_sidecar(tmp_path: Path, form, keys) -> None:
    out = tmp_path / "rows.jsonl"
    assert export([ROW], out, form).rows == 1
    assert set(json.loads(out.read_text())) == keys
    assert json.loads((tmp_path / "rows.provenance.jsonl").read_text()) == {"trajectory": "abc"}


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export([ROW], tmp_path / "rows.parquet", "prompt-completion")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [ROW.train()]


def test_an_export_is_what_distill_reads(tmp_path: Path) -> None:
    for form in ("prompt-completion", "messages"):
        export([ROW], tmp_path / "rows.jsonl", form)
        assert read_all(tmp_path / "rows.jsonl") == [ROW.train()]


def test_plain_prompts_become_conversations(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "hi", "completion": "ho"}\n\n')
    (row,) = read_all(path)
    assert row["prompt"] == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "hi"},
    ]
    assert row["completion"] == [{"role": "assistant", "content": "ho"}]


def test_the_roles_that_programs_write_are_those_of_the_chat_protocol(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("human", "ai")]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": turns}))
    (row,) = read_all(tmp_path / "d.jsonl")
    turns = [*row["prompt"], *row["completion"]]
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "human"), ("assistant", "ai"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "x"', "[]", "7", '{"prompt": "x"}', '{"messages": []}', '{"messages": 3}',
        '{"messages": [{"role": "king", "content": "x"}]}',
        '{"prompt": "x", "completion": "y", "tools": [{"type": "web_search"}]}',
        '{"prompt": "x", "completion": "y", "tools": "no JSON"}',
        '{"prompt": "x", "completion": [{"role": "assistant", "content": "", "tool_calls": [{'
        '"function": {"name": "f", "arguments": "no JSON"}}]}]}',
    ],
)  # fmt: skip
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "hi", "completion": "ho"}\n' + line + "\n")
    with pytest.raises(UsageError, match="line 2"):
        read_all(path)


def test_no_rows_and_no_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no rows"):
        read_all(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match="no file"):
        read_all(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match=r"\.jsonl or \.parquet"):
        export([ROW], tmp_path / "rows.csv", "messages")


def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"prompt": "caf\xe9", "completion": "x"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"d.jsonl is not UTF-8"):
        read_all(path)


def test_only_a_line_feed_ends_a_row_and_a_byte_order_mark_begins_none(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = ['{"prompt": "a\u2028b", "completion": "x\x85y"}', '{"prompt": "c", "completion": "d"}']
    path.write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    assert [row["completion"][0]["content"] for row in read_all(path)] == ["x\x85y", "d"]


def test_the_kind_of_file_may_be_said(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export([ROW], tmp_path / "rows", "messages", "parquet")
    assert pq.read_table(tmp_path / "rows").num_rows == 1
    with pytest.raises(UsageError, match="--format jsonl or parquet"):
        export([ROW], tmp_path / "rows.jsonl", "messages", "csv")


class Terse(Addition):
    """A task with a system message."""

    system_prompt = "Be terse."


async def test_a_runs_rows_are_its_primitives_its_accepted_answers_and_the_anchor(
    store: TraceStore,
) -> None:
    system = amplified(store, ScriptedClient(echo), asking("x"), votes=ONE_VOTE)
    for number, name, split in (
        (0, "overseer", "primitive"), (1, "amplified", "train"), (2, "amplified", "train"),
        (0, "anchor", "train"), (1, "direct", "train"), (1, "amplified", "held_out"),
    ):  # fmt: skip
        source = Origin("run", number, name, "words", split)
        await answer_all(system, source, [f"{name} {number} {split}"])
    primitives, others = run_rows(store, Terse())
    assert [row.question for row in primitives] == ["overseer 0 primitive"]
    assert [(row.question, row.prompt[0]["content"]) for row in others] == [
        ("amplified 1 train", "Be terse."),
        ("amplified 2 train", "Be terse."),
        ("anchor 0 train", ""),
    ]
    assert [row.question for row in run_rows(store, Terse(), 1)[1]] == [
        "amplified 1 train",
        "anchor 0 train",
    ]


async def test_a_row_knows_where_it_comes_from(store: TraceStore) -> None:
    system = amplified(store, ScriptedClient(echo), asking("x"), votes=ONE_VOTE)
    source = Origin("run", 1, "amplified", "words", "train")
    await answer_all(system, source, ["root"])
    _, (row,) = run_rows(store, Terse())
    assert (row.task, row.reply, row.rejected) == ("words", "X", None)
    assert row.prompt == (
        {"role": "system", "content": "Be terse."}, {"role": "user", "content": "root"},
    )  # fmt: skip
    assert row.provenance == {
        "trajectory": source.question_id("root"), "path": "", "run": "run", "round": 1,
        "system": "amplified", "models": ["scripted:base"],
    }  # fmt: skip


async def test_the_first_answer_that_a_check_refused_is_the_rejected_one_of_a_pair(
    store: TraceStore,
) -> None:
    ways = asking("x", "y"), asking("x", "z"), asking("z")
    checker = rejecting("X+Y", "X+Z")
    system = amplified(store, ScriptedClient(echo), *ways, votes=ONE_VOTE, checker=checker)
    await answer_all(system, Origin("run", 1, "amplified", "words", "train"), ["root"])
    _, (row,) = run_rows(store, Terse())
    assert (row.reply, row.rejected) == ("Z", "X+Y")


async def test_a_correction_has_the_system_message_of_its_own_task(store: TraceStore) -> None:
    system = amplified(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE)
    for task in ("addition", "another"):
        source = Origin("run", -1, task, task, "asked")
        await answer_all(system, source, ["root"])
        await override(system.context, source.question_id("root"), "/0.0.0", "why")
    _, rows = run_rows(store, Terse())
    prompts = [f"{row.task}, {row.question}: {row.prompt[0]['content']}" for row in rows]
    assert sorted(prompts) == [
        "addition, root: Be terse.", "addition, x: Be terse.", "another, root: ", "another, x: ",
    ]  # fmt: skip


def numbered(*questions: str) -> list[Row]:
    return [replace(ROW, completion=reply_of(question), provenance={"n": n}) for n, question in
            enumerate(questions)]  # fmt: skip


def test_the_training_order_follows_from_seed_and_content_alone() -> None:
    rows = numbered("a", "b", "c", "d")
    order = [row.reply for row in training_order(rows, 0)]
    assert sorted(order) == ["a", "b", "c", "d"]
    for shuffled in permutations(rows):
        assert [row.reply for row in training_order(shuffled, 0)] == order

    def order_of(seed: int) -> str:
        return "".join(row.reply for row in training_order(numbered(*"aabcdefg"), seed))

    # An order once recorded stays, so that a run can be repeated.
    assert (order_of(0), order_of(1)) == ("fagbcaed", "cgebdafa")


def test_copies_of_a_row_do_not_stand_together() -> None:
    rows = numbered(*"aabbccdd")
    order = "".join(row.reply for row in training_order(rows, 0))
    assert sorted(order) == sorted("aabbccdd")
    assert any(letter * 2 not in order for letter in "abcd")


def test_the_digest_of_rows_is_of_what_they_teach_in_its_order() -> None:
    one, other = numbered("a", "b")
    digest = rows_digest([one, other])
    assert digest == "84910361719a83bd0e40a1516db99d61"  # Students on disk name it.
    assert digest == rows_digest([replace(one, provenance={}, rejected="z"), other])
    assert len({digest, rows_digest([other, one]), rows_digest([one]), rows_digest([])}) == 4


def test_a_held_out_question_of_the_task_ends_the_training() -> None:
    task = Addition()
    held_out, train = (task.sample(1, 3, split, 0)[0] for split in ("held_out", "train"))
    fine = [replace(ROW, question=train), replace(ROW, question=held_out, task="another")]
    check_leaks(fine, task)
    with pytest.raises(RefluxError) as error:
        check_leaks([*fine, replace(ROW, question=held_out)], task)
    assert str(error.value).startswith(
        f"held-out question {held_out!r} is in the training rows (trajectory abc); nothing"
    )
