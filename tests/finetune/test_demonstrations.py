"""Demonstrations out of the record and of scripts: accepted, humans' first, none held out."""

import json
from pathlib import Path
from typing import Any

import pytest

import reflux
from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstration_file import (
    demonstration_of,
    read_demonstrations,
    write_demonstrations,
)
from reflux.agents.overseers.demonstrations import Demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.types import Completion
from reflux.finetune.configs.run import config_from, read_config
from reflux.finetune.configs.task import TaskConfig
from reflux.finetune.data.demonstrations import (
    Made,
    check_demonstrations,
    from_record,
)
from reflux.finetune.data.scripted_demonstrations import from_script
from reflux.graphs.evals.task import is_held_out
from reflux.graphs.recompute import revise
from reflux.graphs.traces.review import find_item, judge
from reflux.graphs.traces.store import TraceStore
from reflux.tasks import run_task, task_named

ANSWERS = {"2 + 3": "5", "5 + 4": "9", "1 + 1": "2", "2 + 6": "8"}


def divide(question: str, transcript: Any, may_ask: bool) -> reflux.Step:
    """`a+b+c` in two sums, one after the other; anything else goes to the agent."""
    terms = question.split("+")
    if not may_ask or len(terms) != 3:
        return reflux.PASS
    if not transcript:
        return reflux.Ask.of(f"{terms[0]} + {terms[1]}")
    if len(transcript) == 1:
        return reflux.Ask.of(f"{transcript[0].answer} + {terms[2]}")
    return reflux.Answer(transcript[-1].answer, "the second sum is the whole")


async def asked(
    path: Path, *questions: str, to: str = "", ok: bool = True, end: str = "stop"
) -> list[str]:
    """Ids of questions that are answered and on record, accepted by a check or `unchecked`."""

    def routed(*of: Any) -> reflux.Step:
        step = divide(*of)
        if isinstance(step, reflux.Ask) and step.subquestions and to:
            return reflux.Ask(tuple(reflux.SubQuestion(s.text, to=to) for s in step.subquestions))
        return step

    def reply(request: Any) -> Completion:
        return Completion(ANSWERS.get(request.messages[-1][1], "no"), finish_reason=end)

    client = reflux.ScriptedClient(reply)
    checker = reflux.RuleChecker({"a number": lambda q, a: a.isdigit()}) if ok else None
    for question in questions:
        await reflux.amplify(
            question,
            reflux.ScriptedOverseer("sums", routed),
            client=client,
            checker=checker,
            traces=path,
            experts=(reflux.Expert("x"),) if to else (),
        )
    store = TraceStore(path)
    ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY created")]
    store.close()
    return ids


def made_of(path: Path, n: int = 9, unchecked: bool = False, held_out: Any = ()) -> Made:
    store = TraceStore(path)
    made = from_record(store, n, unchecked, lambda text: text in held_out)
    store.close()
    return made


FIRST = {
    "question": "2+3+4",
    "steps": [{"ask": ["2 + 3"], "answers": ["5"]}, {"ask": ["5 + 4"], "answers": ["9"]}],
    "reason": "the second sum is the whole",
    "answer": "9",
}


async def test_accepted_trees_are_demonstrations_and_the_rest_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    await asked(path, "2+3+4", "1+1+6", "7+7+7", "2 + 3")
    made = made_of(path, held_out={"1+1+6"})
    assert [item.to_json() for item in made.items] == [FIRST]
    assert made.sources == {"accepted": 1}
    assert made.left_out == {"held out": 1, "not accepted": 1, "undivided": 1}


async def test_unchecked_trees_are_taken_where_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    await asked(path, "2+3+4", "2+3+4", ok=False)
    assert made_of(path).left_out == {"unchecked": 2}
    made = made_of(path, unchecked=True)
    assert [item.to_json() for item in made.items] == [FIRST]
    assert made.left_out == {"asked more than once": 1}


async def test_what_humans_edited_or_approved_comes_first_and_rejected_not_at_all(
    tmp_path: Path,
) -> None:
    path = tmp_path / "traces.db"
    edited, approved, rejected, _ = await asked(
        path, "2+3+4", "1+1+6", "2+3+4 ", "1+1+6 ", ok=False
    )
    store = TraceStore(path)
    await revise(store, edited, "", "nine")
    await judge(store, find_item(store, approved), True)
    await judge(store, find_item(store, rejected), False)
    store.close()
    made = made_of(path, n=2, unchecked=True)
    assert {item.question: item.answer for item in made.items} == {"2+3+4": "nine", "1+1+6": "8"}
    assert made.items[0].steps or made.items[1].steps
    assert made.sources == {"edited or approved by a human": 2}
    assert made.left_out.total() == 2


async def test_a_sub_answer_that_its_limit_cut_off_is_shown_as_the_overseer_saw_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "traces.db"
    await asked(path, "2+3+4", end="length")
    assert [demo.to_json() for demo in made_of(path).items] == [FIRST]


async def test_parts_for_others_than_copies_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    await asked(path, "2+3+4", to="expert:x")
    assert made_of(path).left_out == {"its sub-questions go to expert:x": 1}


async def test_a_script_answers_what_it_can_on_training_questions() -> None:
    task = task_named("addition")
    made = await from_script(task, 20, 3, 0)
    assert len(made.items) == 20 and made.sources == {"by the script of addition": 20}
    for item in made.items:
        assert not is_held_out(task, item.question)
        assert item.answer and task.has_truth(item.question)


async def test_what_a_script_sends_to_a_tool_is_so_in_the_file(tmp_path: Path) -> None:
    (item,) = (await from_script(task_named("chain_sum"), 1, 1, 0)).items
    write_demonstrations(tmp_path / "demos.jsonl", [item])
    (read,) = read_demonstrations(tmp_path / "demos.jsonl").items
    assert read == item
    assert [sub.to for step in item.steps for sub in step.ask] == ["tool:calculator"] * 2


async def test_a_task_whose_overseer_calls_a_model_is_told_so() -> None:
    class Plain(reflux.Task):
        def questions(self) -> list[str]:
            return [f"question {n}?" for n in range(20)]

    with pytest.raises(UsageError, match="calls a model"):
        await from_script(Plain(), 5, 1, 0)


async def test_demonstrations_of_held_out_questions_are_refused(tmp_path: Path) -> None:
    task = task_named("addition")
    (held_out,) = task.sample(1, 3, "held_out", 0)
    train = task.sample(2, 3, "train", 0)
    path = tmp_path / "demos.jsonl"
    path.write_text("".join(json.dumps({"question": q, "ask": ["1 + 1"]}) + "\n" for q in train))
    config = config_from(
        {"task": "addition", "rounds": 1, "overseer": {"demos": str(path)}}, "run.yaml"
    )
    (overseer,) = run_task(config).overseers()
    assert isinstance(overseer, ModelOverseer) and overseer.demos is not None
    assert [each.question for each in overseer.demos.nearest(train[0], 3)] == [train[1]]
    with path.open("a") as file:
        file.write(json.dumps({"question": held_out, "ask": ["2 + 2"]}) + "\n")
    with pytest.raises(UsageError, match=r"is a held-out question of addition.*1 of 3"):
        check_demonstrations(read_demonstrations(path), task, str(path))


def test_of_listed_questions_only_those_can_be_held_out() -> None:
    class Listed(reflux.Task):
        def questions(self) -> list[str]:
            return [f"question {n}?" for n in range(50)]

    task = Listed()
    (held_out,) = task.sample(1, 1, "held_out", 0)
    others = [f"another {n}?" for n in range(50)]

    def demos(*questions: str) -> Demonstrations:
        bodies = ({"question": q, "ask": ["a", "b"]} for q in questions)
        return Demonstrations(tuple(map(demonstration_of, bodies)))

    check_demonstrations(demos(*others), task, "demos.jsonl")
    with pytest.raises(UsageError, match="is a held-out question of listed"):
        check_demonstrations(demos(*others, held_out), task, "demos.jsonl")


def test_a_config_names_how_a_model_overseer_is_prompted(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "task: addition\nrounds: 1\noverseer: {model: m, form: lines, plan: true, demos: d.jsonl}\n"
    )
    config = read_config(tmp_path / "run.yaml")
    assert config.overseer.demos == str(tmp_path / "d.jsonl")
    assert config.overseer.prompted == {
        "model": "m", "demos": str(tmp_path / "d.jsonl"), "form": "lines", "plan": True
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"no demonstrations at .*d.jsonl: no such file"):
        run_task(config)
    with pytest.raises(ValueError, match="plan is of the overseer `model`, not of 'plain'"):
        TaskConfig.model_validate({"overseer": {"name": "plain", "plan": True}})
    (overseer,) = run_task(TaskConfig.model_validate({"overseer": {"form": "auto"}})).overseers()
    assert overseer == ModelOverseer(form="auto")
