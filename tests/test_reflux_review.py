"""The review queue at the command line: listed, judged by id, or one item after the other."""

import json
from pathlib import Path
from typing import Any

import pytest
from commanding import Ended, begin

from finetune.run_folder import RunFolder
from graphs.review import queue
from graphs.revision import newest
from graphs.tree import load_tree

WAITING = ("ask", "What now?", "--overseer", "person", "--json")


def reflux(folder: Path, *words: str, keys: str = "") -> Ended:
    return begin([*words, "--run", str(folder)], typed=keys).wait()


def told(ended: Ended) -> Any:
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run in which one question waits for a person."""
    told(reflux(tmp_path / "run", *WAITING))
    return tmp_path / "run"


@pytest.fixture
def answered(folder: Path) -> tuple[Path, str]:
    """(a run, the id of its trajectory), which a person divided in two and answered."""
    (item,) = told(reflux(folder, "review", "list", "--json"))
    id = item["trajectory"]
    told(reflux(folder, "reply", id, "Who?\nWhere?", "--json"))
    for _ in range(2):
        told(reflux(folder, "reply", id, "answer: so", "--json"))
    told(reflux(folder, "reply", id, "answer: so it is", "--json"))
    return folder, id


def test_what_waits_is_listed_and_answered_by_an_edit(folder: Path) -> None:
    (item,) = told(reflux(folder, "review", "list", "--json"))
    assert (item["why"], item["question"]) == ("escalated", "What now?")
    done = told(reflux(folder, "review", item["id"], "--edit", "this", "--json"))
    assert (done["did"], done["outcome"]["answer"]) == ("answered", "this")
    assert told(reflux(folder, "review", "list", "--json")) == []


def test_an_edited_root_is_the_newest_revision_and_needs_no_model(
    answered: tuple[Path, str],
) -> None:
    folder, id = answered
    done = told(reflux(folder, "review", id, "--edit", "so it was", "--comment", "past", "--json"))
    assert (done["did"], done["trajectory"]) == ("edited", f"{id}~1")
    shown = reflux(folder, "traces", "show", f"{id}~1").stdout
    assert "so it was by person" in shown
    assert "a person says: past" in shown
    assert f"edited since: reflux traces show {id}~1" in reflux(folder, "traces", "show", id).stdout


def test_an_edited_part_defers_the_whole_to_its_person_anew_and_the_rest_is_replayed(
    answered: tuple[Path, str],
) -> None:
    folder, id = answered
    done = told(reflux(folder, "review", f"{id}/0.0.0", "--edit", "me", "--json"))
    assert (done["trajectory"], done["outcome"]) == (f"{id}~1", None)
    (item,) = told(reflux(folder, "review", "list", "--json"))
    assert (item["trajectory"], item["path"]) == (f"{id}~1", "")
    assert [said["answer"] for said in item["form"]["transcript"]] == ["me", "so"]
    done = told(reflux(folder, "review", item["id"], "--edit", "me, so", "--json"))
    assert done["outcome"]["answer"] == "me, so"
    store = RunFolder(folder).store()
    assert load_tree(store, newest(store, id)).answer == "me, so"
    store.close()


def test_keys_judge_one_item_after_the_other(folder: Path) -> None:
    told(reflux(folder, *WAITING))
    told(reflux(folder, *WAITING))
    ended = reflux(folder, "review", keys="c\nhm\nr\nx\ns\ne\nthis\n")
    assert ended.code == 0, ended.stderr
    assert "nothing else waits for a review; 2 judged" in ended.stdout
    store = RunFolder(folder).store()
    assert len(queue(store)) == 1
    store.close()


def test_q_and_the_end_of_what_is_typed_leave_the_queue_as_it_is(folder: Path) -> None:
    for keys in ("q\n", ""):
        ended = reflux(folder, "review", keys=keys)
        assert (ended.code, "0 judged" in ended.stderr) == (0, True)
    assert len(told(reflux(folder, "review", "list", "--json"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say one of --approve"),
        (("--approve", "--reject"), "say one of --approve"),
        (("--approve",), "nothing is proposed here"),
        (("--edit", " "), "an empty answer is none"),
        (("--why", "odd"), "there is no 'odd' in the queue"),
    ],
)
def test_bad_input_gets_one_message(folder: Path, words: tuple[str, ...], said: str) -> None:
    (item,) = told(reflux(folder, "review", "list", "--json"))
    ended = reflux(folder, "review", item["id"], *words)
    assert ended.code == 2
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_a_node_that_is_not_there_is_named(folder: Path) -> None:
    ended = reflux(folder, "review", "nothing/0.0.0", "--approve")
    assert (ended.code, "no trajectory begins with 'nothing'" in ended.stderr) == (2, True)
