"""Rows of a learned overseer name its tools, and end as its plans do; commands know its role."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import reflux
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstration_file import demonstration_of
from reflux.agents.overseers.model import ModelOverseer
from reflux.cli import admin
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.finetune.distillation import overseer_sft
from reflux.finetune.learned_overseer import learned_overseer
from reflux.overseers import id_of_overseer, overseer_named
from tests.support.run_folders import make_run

NAME = "student-x:overseer"


async def test_its_tools_are_named_in_training_as_in_serving() -> None:
    """`to` becomes the tool's name before the colon, and the other way round."""
    to_tools = demonstration_of(
        {
            "question": "2 + 3 + 4",
            "ask": [{"to": "calculator", "question": "2 + 3"}, "Is {0} more than 4?"],
        }
    )
    row = overseer_rows([to_tools], tools=["sandbox"]).rows[0]
    assert row.prompt[0]["content"].endswith(" begins with `calculator:`, `sandbox:`.")
    assert row.reply == "1. calculator: 2 + 3\n2. Is {1} more than 4?"
    client = ScriptedClient(lambda r: row.reply if r.model == NAME else "yes")
    tools = {"sandbox": reflux.Calculator(), "calculator": reflux.Calculator()}
    result = await reflux.amplify(
        "2 + 3 + 4", learned_overseer(NAME), client=client, tools=tools, weighing=None
    )
    asked = next(r for r in client.requests if r.model == NAME)
    assert [{"role": t[0], "content": t[1]} for t in asked.messages] == list(row.prompt)
    assert [child.answered_by for child in result.tree.children] == ["tool:calculator", "base"]


def test_a_plan_that_ends_in_another_answer_is_written_step_by_step() -> None:
    """Which continent Lima lies on goes into the answer, and is not the answer."""
    body = {
        "question": "Is Lima in Europe?",
        "ask": ["Lima is in which country?", "{0} is in which continent?"],
        "answers": ["Peru", "America"],
    }
    for answer, plan in (("No", False), ("America", True), ("", True)):
        assert overseer_rows([demonstration_of({**body, "answer": answer})]).style.plan is plan


async def test_a_reason_is_learned_and_written_before_the_answer() -> None:
    demo = demonstration_of(
        {
            "question": "Is Lima in Europe?",
            "steps": [
                {"ask": ["Lima is in which country?"], "answers": ["Peru"]},
                {"ask": ["Peru is in which continent?"], "answers": ["America"]},
            ],
            "reason": "Peru is in America.",
            "answer": "No",
        }
    )
    made = overseer_rows([demo])
    replies = {row.prompt[-1]["content"]: row.reply for row in made.rows}
    assert [*replies.values()][-1] == "Peru is in America.\nAnswer: No"
    answers = dict(zip(demo.questions[1:], ("Peru", "America"), strict=True))
    client = ScriptedClient(lambda r: {**answers, **replies}[r.messages[-1][1]])
    overseer = replace(learned_overseer(NAME), plan=False)
    result = await reflux.amplify(demo.question, overseer, client=client, weighing=None)
    assert (result.answer, result.tree.note) == ("No", "Peru is in America.")


@pytest.mark.parametrize(
    ("rows", "sft", "expected"),
    [
        (100, {}, {"num_train_epochs": 5}),
        (300, {"learning_rate": 1e-4}, {"num_train_epochs": 2, "learning_rate": 1e-4}),
        (900, {}, {"num_train_epochs": 1}),
        (100, {"max_steps": 2}, {"max_steps": 2}),
        (100, {"num_train_epochs": 1}, {"num_train_epochs": 1}),
    ],
)
def test_few_demonstrations_are_seen_several_times(
    rows: int, sft: dict[str, float], expected: dict[str, float]
) -> None:
    assert overseer_sft(sft, rows) == expected


def test_the_students_of_both_roles_are_listed_and_rolled_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, ["a", "a:overseer", "b:overseer"])
    for evaluation in (tmp_path / "students").glob("*.evaluation.json"):
        evaluation.unlink()  # Which holds less than a real one.
    admin.list_students(tmp_path, as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["role"], each["current"]) for each in listed] == [
        ("a", "agent", True), ("a:overseer", "overseer", False), ("b:overseer", "overseer", True),
    ]  # fmt: skip
    admin.promote_student("a:overseer", tmp_path)
    assert f"rollback --role overseer --run {tmp_path}" in " ".join(capsys.readouterr().out.split())
    for id in ("b:overseer", "a:overseer", None):
        admin.rollback_student(tmp_path, "overseer")
        assert (f"{id or 'none'} is the overseer again") in capsys.readouterr().out
        current = folder.registry.current("overseer")
        assert (current.id if current else None) == id
    assert folder.current_model() == "a"


def test_a_question_records_the_overseer_that_the_promoted_one_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ["a", "a:overseer"])
    names = ("student:overseer", "a:overseer", "model", "app.py:overseer", "json:overseer")
    found = [id_of_overseer(name, folder) for name in names]
    assert found == ["a:overseer", "a:overseer", *names[2:]]
    assert isinstance(overseer_named("a:overseer"), ModelOverseer)
    with pytest.raises(UsageError, match="there is no student 'c:overseer'"):
        id_of_overseer("c:overseer", folder)
