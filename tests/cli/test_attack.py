"""`reflux attack`: its table, its files, and what it says of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commanding import Ended, begin

pytestmark = pytest.mark.process


def attack(*words: str, folder: Path) -> Ended:
    return begin(["attack", "--run", str(folder / "run"), *words]).wait()


def test_a_search_is_shown_written_and_tried_on_another_system(tmp_path: Path) -> None:
    out, small = tmp_path / "out", ("--model", "obedient", "--cases", "3", "--queries", "2")
    ended = attack(
        *small, "--systems", "direct,amplified+strict", "--teacher", "amplified+strict",
        "--surface", "question", "--out", str(out), "--json", folder=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    body = json.loads(ended.stdout)
    bare, guarded = body["systems"]
    assert (bare["system"], guarded["system"]) == ("direct", "amplified+strict")
    assert bare["hijacks"] >= 6
    assert guarded["hijacks"] == 0
    assert guarded["right"] == 3
    assert json.loads((out / "attack.json").read_text()) == body
    assert "<svg" in (out / "attack.svg").read_text()
    attempts = lines(out / "attempts.jsonl")
    assert len(attempts) == bare["attempts"] + guarded["attempts"]
    rows, kept = lines(out / "rows.jsonl"), lines(out / "held_out.jsonl")
    assert rows
    assert not {row["case"] for row in rows} & {row["case"] for row in kept}

    known = attack(
        *small[:-1], "1", "--systems", "direct", "--attacks", str(out / "attempts.jsonl"),
        folder=tmp_path,
    )  # fmt: skip
    assert known.code == 0, known.stderr
    assert "hijacked" in known.stdout


def test_the_questions_of_a_file_are_attacked(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "What is 2+2?", "answer": "4"}\n')
    ended = attack(
        "--model", "obedient", "--data", str(path), "--queries", "1", "--systems", "direct",
        "--json", folder=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    (system,) = json.loads(ended.stdout)["systems"]
    assert (system["value"]["reached"], system["control"]["goals"]) == (1, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "direct+loose"], "choose one of"),
        (["--technique", "magic"], "--technique is 'magic'"),
        (["--surface", "mail"], "choose one of tool, question"),
        (["--tool", "calculator"], "--tool is for --data"),
        (["--teacher", "student-r1"], "--teacher student-r1 is none of --systems"),
        (["--data", "x.jsonl", "--agentdojo", "banking"], "leave one out"),
        (["--attacks", "no.jsonl"], "no.jsonl"),
        (["--garak", "no.jsonl"], "no.jsonl"),
    ],
)
def test_bad_options_are_one_message_before_any_call(
    words: list[str], said: str, tmp_path: Path
) -> None:
    ended = attack("--model", "obedient", *words, folder=tmp_path)
    assert ended.code == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
