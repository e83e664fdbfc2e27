"""Rows and files: the forms that TRL takes, and messages for files that are not rows."""

import json
from pathlib import Path

import pytest

from reflux.agents.errors import UsageError
from reflux.finetune.rows import Row, export, read_jsonl

ROW = Row(
    ({"role": "system", "content": ""}, {"role": "user", "content": "1+1="}),
    "20",
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
    assert export([ROW], out, form) == 1
    assert set(json.loads(out.read_text())) == keys
    assert json.loads((tmp_path / "rows.provenance.jsonl").read_text()) == {"trajectory": "abc"}


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export([ROW], tmp_path / "rows.parquet", "prompt-completion")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [ROW.train()]


def test_an_export_is_what_distill_reads(tmp_path: Path) -> None:
    for form in ("prompt-completion", "messages"):
        export([ROW], tmp_path / "rows.jsonl", form)
        assert read_jsonl(tmp_path / "rows.jsonl") == [ROW.train()]


def test_plain_prompts_become_conversations(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "hi", "completion": "ho"}\n\n')
    (row,) = read_jsonl(path)
    assert row["prompt"] == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "hi"},
    ]
    assert row["completion"] == [{"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize(
    "line", ['{"prompt": "x"', "[]", "7", '{"prompt": "x"}', '{"messages": []}', '{"messages": 3}']
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "hi", "completion": "ho"}\n' + line + "\n")
    with pytest.raises(UsageError, match="line 2"):
        read_jsonl(path)


def test_no_rows_and_no_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no rows"):
        read_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match="no file"):
        read_jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match=r"\.jsonl or \.parquet"):
        export([ROW], tmp_path / "rows.csv", "messages")


def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"prompt": "caf\xe9", "completion": "x"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"d.jsonl is not UTF-8"):
        read_jsonl(path)


def test_only_a_line_feed_ends_a_row_and_a_byte_order_mark_begins_none(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = ['{"prompt": "a\u2028b", "completion": "x\x85y"}', '{"prompt": "c", "completion": "d"}']
    path.write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    assert [row["completion"][0]["content"] for row in read_jsonl(path)] == ["x\x85y", "d"]


def test_the_kind_of_file_may_be_said(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export([ROW], tmp_path / "rows", "messages", "parquet")
    assert pq.read_table(tmp_path / "rows").num_rows == 1
    with pytest.raises(UsageError, match="--format jsonl or parquet"):
        export([ROW], tmp_path / "rows.jsonl", "messages", "csv")
