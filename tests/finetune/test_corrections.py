"""What humans edit is learned: an edited trajectory is a row of the next distillation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.cli.runs.distill_rows import rows_for
from reflux.finetune.data.export import in_form
from reflux.finetune.data.rows import Row, accepted, corrections
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.task import is_held_out
from reflux.graphs.traces.review import find_item, judge
from reflux.graphs.traces.store import TraceStore
from reflux.tasks.addition import Addition
from tests.support.amplifying import ONE_VOTE, amplified, asking, echo, rejecting
from tests.support.overriding import override

TRAIN = Origin("run", 1, "amplified", "words", "train")
CHAT = Origin("run", -1, "chat-1", "", "asked")
Q = TRAIN.question_id("root")


async def asked(store: TraceStore, source: Origin = TRAIN, **other: Any) -> AmplifyContext:
    system = amplified(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE, **other)
    await answer_all(system, source, ["root"])
    return system.context


def rows(store: TraceStore) -> list[Row]:
    return list(accepted(store, "train", "amplified", 1, ""))


def learned(store: TraceStore) -> list[tuple[str, str | None]]:
    return [(row.reply, row.rejected) for row in rows(store)]


async def test_an_edited_trajectory_is_one_row_with_the_recomputed_root(store: TraceStore) -> None:
    context = await asked(store)
    assert learned(store) == [("X+Y", None)]
    await override(context, Q, "/0.0.0", "why")
    (row,) = rows(store)
    assert (row.reply, row.provenance["trajectory"]) == ("why+Y", f"{Q}~1")
    await override(context, Q, "/0.0.1", "not")
    assert [row.reply for row in rows(store)] == ["why+not"]


async def test_the_answer_that_an_edit_replaced_is_the_rejected_one_of_a_pair(
    store: TraceStore,
) -> None:
    await override(await asked(store), Q, "", "mine")
    (row,) = rows(store)
    pair = in_form(row, "preference")
    assert pair is not None
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("mine", "X+Y")


async def test_what_is_only_asked_again_refutes_nothing(store: TraceStore) -> None:
    context = await asked(store)
    await override(context, Q, "/0.0.0")
    assert learned(store) == [("X+Y", None)]


async def test_an_answer_that_the_check_refused_becomes_a_row_once_a_human_puts_it_right(
    store: TraceStore,
) -> None:
    context = await asked(store, checker=rejecting("X+Y"))
    assert rows(store) == []
    await override(context, Q, "", "X+Y")  # The check was wrong.
    assert learned(store) == [("X+Y", None)]


@pytest.mark.parametrize("path", ["", "/0.0.1"])
async def test_what_a_human_rejects_leaves_the_rows_until_it_is_approved(
    store: TraceStore, path: str
) -> None:
    await asked(store)
    await judge(store, find_item(store, Q + path), False)
    assert rows(store) == []
    await judge(store, find_item(store, Q + path), True)
    assert learned(store) == [("X+Y", None)]


async def test_an_edited_answer_of_a_chat_is_a_row_and_an_unedited_one_is_not(
    store: TraceStore,
) -> None:
    context = await asked(store, CHAT)
    assert list(corrections(store, Addition())) == []
    again = await override(context, CHAT.question_id("root"), "/0.0.0")
    assert list(corrections(store, Addition())) == []
    await override(context, again.id, "/0.0.0", "why")
    row, _ = corrections(store, Addition())
    assert (row.question, row.reply, row.rejected) == ("root", "why+Y", "X+Y")


@pytest.mark.parametrize("source", [TRAIN, CHAT])
async def test_a_sub_question_that_a_human_answered_is_a_row_of_its_own(
    store: TraceStore, source: Origin
) -> None:
    context, root = await asked(store, source), source.question_id("root")
    await override(context, root, "/0.0.0", "why")
    await override(context, root, "/0.0.1", "not")
    await override(context, root, "/0.0.0", "because")
    parts = [row for row in corrections(store, Addition()) if row.question != "root"]
    assert [(row.question, row.reply, row.rejected) for row in parts] == [
        ("x", "because", "why"),
        ("y", "not", "Y"),
    ]
    assert [row.provenance["path"] for row in parts] == ["/0.0.0", "/0.0.1"]
    pair = in_form(parts[1], "preference")
    assert pair is not None and pair["rejected"][0]["content"] == "Y"
    await judge(store, find_item(store, f"{root}/0.0.1"), False)
    assert list(corrections(store, Addition())) == []


async def test_a_sub_question_that_is_asked_again_is_no_row_any_more(store: TraceStore) -> None:
    context = await asked(store)
    await override(context, Q, "/0.0.0", "why")
    await override(context, Q, "/0.0.0")
    assert list(corrections(store, Addition())) == []


@pytest.mark.parametrize("held_out", [True, False])
async def test_a_sub_question_that_the_task_holds_out_is_not_learned(
    store: TraceStore, held_out: bool
) -> None:
    part = sums(held_out)
    system = amplified(store, ScriptedClient(echo), asking(part), votes=ONE_VOTE)
    await answer_all(system, TRAIN, ["root"])
    await override(system.context, Q, "/0.0.0", "1")
    assert [row.question for row in corrections(store, Addition())] == ([] if held_out else [part])


def sums(held_out: bool) -> str:
    task = Addition()
    found = (f"{a}+{b}" for a in range(300, 400) for b in range(500, 600))
    return next(s for s in found if is_held_out(task, task.from_user(s)) == held_out)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("form", [lambda text: text, Addition().from_user])
async def test_a_question_that_the_task_holds_out_is_not_learned_however_it_was_asked(
    store: TraceStore, held_out: bool, form: Callable[[str], str]
) -> None:
    question = form(sums(held_out))
    system = amplified(store, ScriptedClient(echo), asking("x"), votes=ONE_VOTE)
    await answer_all(system, CHAT, [question])
    await override(system.context, CHAT.question_id(question), "", "1")
    assert [row.question for row in corrections(store, Addition())] == (
        [] if held_out else [question]
    )


@pytest.mark.parametrize("split", ["asked", "file", "held_out", "judge", "replay", "attack"])
async def test_an_answer_that_a_human_approved_is_a_row(store: TraceStore, split: str) -> None:
    """Of ask, chat and eval, whatever a check said; the last verdict counts."""
    source = Origin("run", -1, "s", "", split)
    await asked(store, source)
    item = find_item(store, source.question_id("root"))
    assert list(corrections(store, Addition())) == []
    await judge(store, item, approved=True)
    expected = ["X+Y"] if split in ("asked", "file") else []
    assert [row.reply for row in corrections(store, Addition())] == expected
    await judge(store, item, approved=False)
    assert list(corrections(store, Addition())) == []


async def test_the_next_distillation_learns_what_was_edited_in_a_chat(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.save_config({"task": "addition", "rounds": [{"level": 1}]})
    store = folder.store()
    context = await asked(store, CHAT)
    await override(context, CHAT.question_id("root"), "/0.0.0", "why")
    store.close()
    rows, _ = rows_for(folder, None)
    assert {row["prompt"][-1]["content"]: row["completion"][0]["content"] for row in rows} == {
        "root": "why+Y",
        "x": "why",
    }
