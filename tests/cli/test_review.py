"""The review queue at the command line: listed, judged by id, or one item after the other."""

import asyncio
import json
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reflux.finetune.run_folder import RunFolder
from reflux.graphs.recompute import revise
from reflux.graphs.traces.review import queue
from reflux.graphs.traces.revisions import newest
from reflux.graphs.traces.tree import load_tree
from tests.support.commanding import Ended, begin, piped
from tests.support.serving import soon

pytestmark = pytest.mark.process

WAITING = ("ask", "What now?", "--overseer", "human", "--json")


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
    assert "so it was by human" in shown
    assert "comment: past" in shown
    hint = shlex.join(("reflux", "traces", "show", f"{id}~1", "--run", str(folder)))
    assert f"edited since: {hint}\n" in reflux(folder, "traces", "show", id).stdout


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
    assert "nothing else to review; 2 judged" in ended.stdout
    store = RunFolder(folder).store()
    assert len(queue(store)) == 1
    store.close()


def test_a_node_that_is_named_is_shown_and_judged_by_a_key(answered: tuple[Path, str]) -> None:
    folder, id = answered
    ended = reflux(folder, "review", f"{id}/0.0.1", keys="e\nelsewhere\n")
    assert ended.code == 0, ended.stderr
    assert "Where? → so by H" in ended.stdout
    assert f"edited: {id}/0.0.1" in ended.stdout
    store = RunFolder(folder).store()
    node = next(n for n in load_tree(store, f"{id}~1").walk() if n.path == "/0.0.1")
    store.close()
    assert (node.answer, node.answered_by) == ("elsewhere", "human")


def test_q_and_the_end_of_what_is_typed_leave_the_queue_as_it_is(folder: Path) -> None:
    for keys in ("q\n", ""):
        ended = reflux(folder, "review", keys=keys)
        assert (ended.code, "0 judged" in ended.stderr) == (0, True)
    assert len(told(reflux(folder, "review", "list", "--json"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--json",), "choose one of --approve"),
        (("--approve", "--reject"), "choose one of --approve"),
        (("--approve",), "nothing is proposed here"),
        (("--edit", " "), "the answer is empty"),
        (("--why", "odd"), "'odd' is not one of"),
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


def test_an_edit_that_was_cut_off_is_told_with_how_to_go_on(answered: tuple[Path, str]) -> None:
    folder, id = answered
    store = RunFolder(folder).store()
    asyncio.run(revise(store, id, "/0.0.0", "it's me"))  # And then nothing.
    store.close()
    (row,) = told(reflux(folder, "traces", "list", "--json"))
    assert (row["id"], row["status"]) == (f"{id}~1", None)
    assert "recomputing" in reflux(folder, "traces", "list").stdout
    word = shlex.quote("it's me")
    hint = f"reflux review {id}/0.0.0 --edit {word} --run {folder}"
    for words in (("review", "list"), ("review",), ("traces", "show", f"{id}~1")):
        assert hint in reflux(folder, *words).stdout
    done = told(reflux(folder, *shlex.split(hint)[1:-2], "--json"))
    assert done["trajectory"] == f"{id}~1"
    assert hint not in reflux(folder, "review", "list").stdout


def test_what_somebody_else_judged_meanwhile_is_shown_anew(folder: Path, tmp_path: Path) -> None:
    """One person looks at an item; another answers it, and what the first says then is unheard."""
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    looking = begin(["review", "--run", str(folder)], before=partial(piped, keys))
    with keys.open("w", buffering=1) as typed:
        soon(lambda: "What now?" in (looking.folder / "out").read_text())
        (item,) = told(reflux(folder, "review", "list", "--json"))
        told(reflux(folder, "review", item["id"], "--edit", "theirs", "--json"))
        typed.write("e\nmine\n")
    ended = looking.wait()
    assert ended.code == 0, ended.stderr
    assert "another user changed this item" in ended.stderr
    assert "What now? → theirs by H" in ended.stdout
    store = RunFolder(folder).store()
    assert load_tree(store, newest(store, item["trajectory"])).answer == "theirs"
    store.close()


def test_what_is_no_text_is_no_answer(answered: tuple[Path, str], tmp_path: Path) -> None:
    folder, id = answered
    typed = tmp_path / "typed"
    typed.write_bytes(b"e\nel\xffsewhere\nq\n")
    ended = begin(["review", id, "--run", str(folder)], before=partial(piped, typed)).wait()
    assert (ended.code, "not Unicode text" in ended.stderr) == (0, True)
    assert "0 judged" in ended.stderr


def test_a_list_of_any_length_ends(answered: tuple[Path, str]) -> None:
    folder, _ = answered
    assert told(reflux(folder, "review", "list", "--limit", "1000000000", "--json")) == []
    assert reflux(folder, "review", "list", "--limit", "1" + "0" * 30).code == 2
    assert reflux(folder, "traces", "list", "--limit", "1" + "0" * 30).code == 2


def test_a_person_who_is_asked_again_is_waited_for_and_not_quoted(
    answered: tuple[Path, str],
) -> None:
    folder, id = answered
    done = told(reflux(folder, "review", f"{id}/0.0.0", "--again", "--json"))
    assert (done["trajectory"], done["outcome"]) == (f"{id}~1", None)
    (item,) = told(reflux(folder, "review", "list", "--json"))
    assert (item["path"], item["question"]) == ("/0.0.0", "Who?")
    told(reflux(folder, "review", item["id"], "--edit", "another", "--json"))
    (item,) = told(reflux(folder, "review", "list", "--json"))
    assert [said["answer"] for said in item["form"]["transcript"]] == ["another", "so"]
    told(reflux(folder, "review", item["id"], "--edit", "another, so", "--json"))
    # What was said then is known when something else is edited.
    done = told(reflux(folder, "review", f"{id}/0.0.1", "--edit", "there", "--json"))
    (item,) = told(reflux(folder, "review", "list", "--json"))
    assert [said["answer"] for said in item["form"]["transcript"]] == ["another", "there"]


def test_two_who_review_decide_together_and_the_report_tells_how_far_they_agree(
    answered: tuple[Path, str],
) -> None:
    folder, id = answered

    def judged(name: str, *words: str) -> Any:
        return told(reflux(folder, "review", id, *words, "--reviewer", name, "--json"))

    unnamed = reflux(folder, "review", id, "--approve", "--reviewers", "2")
    assert (unnamed.code, "name yourself (--reviewer)" in unnamed.stderr) == (2, True)
    assert judged("ana", "--approve")["did"] == "noted; 1 more to judge"
    assert judged("ben", "--reject")["did"] == "noted; 1 more to judge"
    assert judged("eve", "--reject")["did"] == "rejected"
    report = told(reflux(folder, "review", "report", "--json"))
    assert (report["reviewers"], report["items"], report["disagreed"]) == (2, 1, 1)
    assert [row["decisions"] for row in report["burden"]] == [4, 1, 1, 1]  # 4 replies before.
    shown = reflux(folder, "review", "report").stdout
    assert "1 item judged by several: they disagreed on 1, 0 open; Fleiss' kappa -1.00" in shown
    assert "human:ana and human:ben" in shown
