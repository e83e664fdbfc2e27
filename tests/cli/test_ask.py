"""Any question at the command line, and a person's word in the middle of it, days later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.commanding import Ended, begin
from tests.support.serving import scripted

pytestmark = pytest.mark.process


def reflux(folder: Path, *words: str) -> Ended:
    return begin([*words, "--run", str(folder)]).wait()


def told(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def forms(answer: dict[str, Any]) -> Sequence[str]:
    return [each["form"]["question"] for each in answer["pending"]]


def test_a_person_divides_a_question_and_answers_its_parts_in_any_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = told(reflux(folder, "ask", "What now?", "--overseer", "human", "--json"))
    assert (first["status"], forms(first)) == ("waiting", ["What now?"])
    id = first["trajectory"]
    parts = told(reflux(folder, "reply", id, "Who?\nWhere?", "--json"))
    assert sorted(forms(parts)) == ["Where?", "Who?"]
    (where,) = [p["id"] for p in parts["pending"] if p["form"]["question"] == "Where?"]
    one = told(reflux(folder, "reply", id, "answer: here", "--to", where, "--json"))
    assert forms(one) == ["Who?"]
    root = told(reflux(folder, "reply", id, "answer: you", "--json"))
    assert [said["answer"] for said in root["pending"][0]["form"]["transcript"]] == ["you", "here"]
    last = told(reflux(folder, "reply", id, "answer: you, here", "--json"))
    assert (last["answer"], last["status"], last["spent"]["calls"]) == ("you, here", "unchecked", 0)
    shown = reflux(folder, "traces", "show", id)
    assert "Where? → here by H" in shown.stdout


def test_what_waits_is_shown_with_the_way_to_reply(tmp_path: Path) -> None:
    ended = reflux(tmp_path / "run", "ask", "What now?", "--overseer", "human")
    assert ended.code == 0
    assert "not answered yet" in ended.stdout
    assert "approve | pass | sub-questions" in ended.stdout
    (listed,) = json.loads(reflux(tmp_path / "run", "traces", "list", "--json").stdout)
    assert listed["waits"] == 1
    listed = reflux(tmp_path / "run", "traces", "list")
    assert "waits for a" in listed.stdout
    assert "ask-" not in listed.stdout
    assert "1 waits for a human: reflux reply " in ended.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", "x", "--overseer", "oracle"], "no overseer is called 'oracle'"),
        (["ask", "x", "--overseer", "plain", "--tool", "hammer"], "there is no tool 'hammer'"),
        (["ask", "x", "--overseer", "plain", "--task", "addition"], "leave one out"),
        (["ask", "x", "--task", "addition", "--tool", "calculator"], "--tool needs --overseer"),
        (["ask", " ", "--overseer", "plain"], "the question is empty"),
        (["ask", "x", "--policy", "lax"], "a policy is 'lax'; choose one of standard, strict"),
        (["ask", "x", "--overseer", "plain", "--untrusted", "none.txt"], "there is no such file"),
        (["reply", "abc", "answer: 1"], "holds no run"),
    ],
)
def test_bad_input_gets_one_message(tmp_path: Path, words: list[str], said: str) -> None:
    ended = reflux(tmp_path / "run", *words)
    assert ended.code == 2
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_a_reply_that_nobody_waits_for_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    id = told(reflux(folder, "ask", "Why?", "--overseer", "human", "--json"))["trajectory"]
    assert reflux(folder, "reply", id, "answer: so").code == 0
    again = reflux(folder, "reply", id, "answer: no")
    assert (again.code, "does not wait for a reply" in again.stderr) == (2, True)


def test_a_reply_that_cannot_be_taken_leaves_the_question_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    id = told(reflux(folder, "ask", "Why?", "--overseer", "human", "--json"))["trajectory"]
    for words, said in (("approve", "no proposal to approve"), ("answer: ", "answer is empty")):
        ended = reflux(folder, "reply", id, words)
        assert (ended.code, said in ended.stderr) == (2, True), ended.stderr
        assert "Traceback" not in ended.stderr
    assert told(reflux(folder, "reply", id, "Answer: so", "--json"))["answer"] == "so"


def test_a_damaged_file_of_checkpoints_is_exit_code_2(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    id = told(reflux(folder, "ask", "Why?", "--overseer", "human", "--json"))["trajectory"]
    whole = (folder / "checkpoints.db").read_bytes()
    (folder / "checkpoints.db").write_bytes(whole[:5_000])
    ended = reflux(folder, "reply", id, "answer: so")
    assert (ended.code, "checkpoints.db is not a whole database" in ended.stderr) == (2, True)
    assert "Traceback" not in ended.stderr


def test_a_budget_that_is_used_up_is_told_with_the_options_that_raise_it(tmp_path: Path) -> None:
    ended = reflux(tmp_path / "run", "ask", "Why?", "--overseer", "plain", "--calls", "0")
    assert ended.code == 1
    assert (
        "no accepted answer (over_budget: no calls left); allow more --calls, --tok" in ended.stderr
    )


def test_a_truncated_answer_names_the_limit_to_raise(tmp_path: Path) -> None:
    words = ["ask", "one two", "--overseer", "plain", "--model", "m", "--run", str(tmp_path / "r")]
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k"}
        cut = begin([*words, "--max-tokens", "1"], env).wait()
        whole = begin(words, env).wait()
    assert cut.code == 1
    assert "one two → ONE (truncated)" in cut.stdout
    assert "raise --max-tokens from 1" in cut.stderr
    assert whole.code == 0
    assert "unchecked" in whole.stdout
