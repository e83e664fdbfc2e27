"""From a chat to the next student: what is said, edited, exported and distilled, by commands."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai import OpenAI

from tests.support.commanding import Ended, begin
from tests.support.serving import Scripted, X, serving

pytestmark = pytest.mark.process

MINE = "a better answer"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def reflux(script: Scripted, run: Path, *words: str, typed: str = "") -> Ended:
    env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "none"}
    return begin([*words, "--run", str(run)], env, typed=typed).wait()


def told(ended: Ended) -> Any:
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def chatted(script: Scripted, run: Path, overseer: str) -> str:
    """The trajectory of "one two", after which another question was asked."""
    words = ["chat", "--model", X, "--overseer", overseer, "--json"]
    return told(reflux(script, run, *words, typed="one two\nthree\n"))["turns"][0]["trajectory"]


def exported(script: Scripted, run: Path, form: str) -> list[dict[str, Any]]:
    """The rows, which are the same in both kinds of file."""
    out = run / "out"
    for kind in ("jsonl", "parquet"):
        words = ["traces", "export", str(out.with_suffix(f".{kind}")), "--form", form, "--json"]
        told(reflux(script, run, *words))
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert pq.read_table(out.with_suffix(".parquet")).to_pylist() == rows
    return rows


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("overseer", ["plain", "none"])
def test_an_answer_that_is_edited_is_a_row_and_a_preference_pair(
    script: Scripted, run: Path, overseer: str
) -> None:
    trajectory = chatted(script, run, overseer)
    assert exported(script, run, "prompt-completion") == []  # What is only asked is not learned.
    done = told(reflux(script, run, "review", trajectory, "--edit", MINE, "--json"))
    assert done["trajectory"] == f"{trajectory}~1"
    asked = [{"role": "system", "content": ""}, {"role": "user", "content": "one two"}]
    row = {"prompt": asked, "completion": said(MINE)}
    assert exported(script, run, "prompt-completion") == [row]
    pair = {"prompt": asked, "chosen": said(MINE), "rejected": said("ONE TWO")}
    assert exported(script, run, "preference") == [pair]
    told(reflux(script, run, "review", f"{trajectory}~1", "--reject", "--json"))
    assert exported(script, run, "prompt-completion") == []


def test_what_is_asked_without_h_cannot_be_asked_again_and_says_so(
    script: Scripted, run: Path
) -> None:
    trajectory = chatted(script, run, "none")
    ended = reflux(script, run, "review", trajectory, "--again")
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
    assert "the agent answered alone" in " ".join(ended.stderr.split())
    assert told(reflux(script, run, "review", trajectory, "--edit", MINE, "--json"))["outcome"]


def test_a_part_of_a_tree_that_was_served_is_edited_and_the_whole_recomputes(
    script: Scripted, run: Path
) -> None:
    with serving(run, script) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        raw = client.chat.completions.with_raw_response.create(
            model="amplified:plain", messages=[{"role": "user", "content": "one two"}]
        )
        trajectory = raw.headers["x-reflux-trajectory"]
    asked = len(script.asked)
    done = told(reflux(script, run, "review", trajectory, "--again", "--json"))
    assert (done["did"], done["outcome"]["status"]) == ("asked again", "unchecked")
    assert len(script.asked) == asked + 1


def test_a_folder_in_which_nothing_was_edited_has_nothing_to_learn(
    script: Scripted, run: Path
) -> None:
    chatted(script, run, "plain")
    ended = reflux(script, run, "distill")
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
    assert "what was only asked is not learned" in " ".join(ended.stderr.split())
