"""What a config asks: paths, checks, overseers and tools, and what is refused before a question."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.configs.run import RoundsConfig, config_from, read_config
from reflux.finetune.data.questions import check_questions, planned_questions, question_lines
from reflux.finetune.run_folder import RunFolder
from reflux.tasks import run_task, task_named, task_of

CODE = """
import reflux

def divide(question, transcript, may_ask):
    return reflux.PASS

def short(question, answer):
    if answer == "?":
        raise ValueError("a question mark is no answer")
    return len(answer) < 9

def right(question, answer, truth):
    return answer.lower() == truth.lower()

class Colors(reflux.Task):
    def questions(self):
        return [f"What color is number {i}?" for i in range(40)]

class Numbers(reflux.Task):
    def questions(self):
        return list(range(40))

class Broken(reflux.Task):
    def questions(self):
        raise ValueError("mine")

class Nobody(Colors):
    def overseers(self):
        return ()

class Levels(Colors):
    def questions(self):
        return ()
    def sample(self, n, level, split, seed):
        return [f"{split} {level} {i}?" for i in range(n)] if level < 3 else []
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a config: questions, a schema, a template, documents and code."""
    folder = tmp_path / "project"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.md").write_text("Number 3 is green.")
    rows = [{"id": i, "question": f"What is {i}?", "answer": str(i)} for i in range(50)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "open.jsonl").write_text(
        "".join(json.dumps({"ask": r["question"]}) + "\n" for r in rows)
    )
    (folder / "one.jsonl").write_text(json.dumps(rows[0]))
    (folder / "s.json").write_text('{"type": "object"}')
    (folder / "t.jinja").write_text("{{ question }} Briefly.")
    (folder / "half.jsonl").write_text('{"question": "\\ud800", "ask": []}')
    (folder / "own.py").write_text(CODE)
    return folder


def read(folder: Path, **body: Any) -> RoundsConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"rounds": 2, **body}))
    return read_config(path)


def test_paths_start_at_the_config_and_a_saved_run_needs_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    config = read(
        folder.relative_to(folder.parent), questions="q.jsonl", template="t.jinja",
        score="own.py:right", check=["json", "s.json", "own.py:short"], overseer="own.py:divide",
        tools="documents:notes", max_tokens=20,
    )  # fmt: skip
    assert config.questions == str(folder / "q.jsonl")
    assert config.template == "{{ question }} Briefly."
    assert config.score == f"{folder}/own.py:right"
    assert config.check == ("json", f"{folder}/s.json", f"{folder}/own.py:short")
    assert config.overseer.name == f"{folder}/own.py:divide"
    assert config.tools == (f"documents:{folder}/notes",)
    run = RunFolder(folder.parent / "run")
    run.save_config(config.model_dump(mode="json"))
    monkeypatch.chdir("/")
    assert run.config() == config
    task = task_named(task_of(run, None), run)
    assert task is run_task(config)
    assert task.name == "q" and "What is 3? Briefly." in task.questions()
    assert task.answer_tokens("?") == 20
    assert [overseer.name for overseer in task.overseers()] == [f"script:{folder}/own.py:divide"]
    assert task.tool_names == (f"documents:{folder}/notes",)


@pytest.mark.parametrize(
    ("answer", "rule", "reason"),
    [
        ("{}", "", ""),
        ("3", "s.json", "'object'"),
        ("?", "json", "no JSON"),
        ('{"many": "characters"}', "own.py:short", "it returned False"),
    ],
)
def test_checks_are_applied_in_order_and_say_why(
    answer: str, rule: str, reason: str, folder: Path
) -> None:
    config = read(folder, questions="q.jsonl", check=["json", "s.json", "own.py:short"])
    verdict = run_task(config).checker().check("?", answer)
    assert (verdict.ok, verdict.rule) == (not rule, rule)
    assert reason in verdict.reason
    words = read(folder, questions="q.jsonl", check="own.py:short")
    assert run_task(words).checker().check("?", "?").reason == "a question mark is no answer"


def test_a_config_replaces_what_a_task_brings(folder: Path) -> None:
    own = read(folder, task="own.py:Colors")
    assert run_task(own).overseers()[0].name == "model:X"
    changed = read(folder, task="own.py:Colors", overseer={"model": "big"}, tools="calculator")
    task = run_task(changed)
    assert task.overseers()[0].name == "model:big"
    assert (task.name, task.tool_names) == ("colors", ("calculator",))
    assert task.sample(9, 1, "train", 0) == run_task(own).sample(9, 1, "train", 0)


@pytest.mark.parametrize(
    ("rounds", "planned"),
    [
        (3, 3 * ["share"]),
        ([{"questions": 5}, {}], [5, "rest"]),
        ([{"questions": 1}, {"questions": 2}], [1, 2]),
    ],
)
def test_rounds_share_the_questions_of_a_file(
    rounds: Any, planned: list[Any], folder: Path
) -> None:
    config = read(folder, questions="q.jsonl", rounds=rounds)
    task = run_task(config)
    size = task.size("train") or 0
    known = {"share": size // 3, "rest": size - 5}
    assert planned_questions(config, task) == [known.get(each, each) for each in planned]
    check_questions(config, task)
    total = min(500, max(16, sum(planned_questions(config, task))))
    assert f"the base answers {total} general prompts" in question_lines(config, task)[1]
    other = config.model_copy(update={"anchor": 3})
    assert "answers 3 general prompts" in question_lines(other, task)[1]
    assert question_lines(config, task)[-1].endswith("held-out questions, scored by normalised.")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"questions": "none.jsonl"}, r"there is no file .*project/none\.jsonl"),
    ({"questions": "q.jsonl", "question_key": "frage"}, 'it lacks "frage"; it has answer'),
    ({"questions": "q.jsonl", "answer_key": "truth"}, "name another answer_key, or leave it out"),
    ({"questions": "open.jsonl"}, "a question: name it by question_key"),
    ({"questions": "q.jsonl", "template": "{{ subject }}"}, "template names subject, no column"),
    ({"questions": "q.jsonl", "template": "{{ id / 0 }}"}, "line 1: template: ZeroDivisionError"),
    (
        {"questions": "open.jsonl", "question_key": "ask", "score": "exact"},
        "or leave the score out",
    ),
    ({"questions": "q.jsonl", "score": "own.py:wrong"}, "has no 'wrong'"),
    ({"questions": "q.jsonl", "check": "xml"}, "there is no check 'xml': write json"),
    ({"questions": "q.jsonl", "check": "none.json"}, r"there is no file .*none\.json"),
    ({"questions": "q.jsonl", "check": "q.jsonl"}, "there is no check"),
    ({"questions": "q.jsonl", "overseer": "boss"}, "no overseer is called 'boss'"),
    ({"questions": "one.jsonl"}, "has 1 different questions, of which their hash holds out"),
    ({"questions": "q.jsonl", "rounds": [{"questions": 60}]}, "1 rounds are to ask 60: lower"),
    ({"questions": "q.jsonl", "rounds": [{"questions": 45}, {}]}, "rounds"),
    ({"questions": "q.jsonl", "rounds": [{"held_out": 40}]}, "held_out: 40, and q has 50"),
    ({"questions": "q.jsonl", "rounds": 99}, "99 rounds leave none for one of them"),
    ({"questions": "q\0.jsonl"}, "a path in it cannot be read .embedded null byte"),
    ({"questions": "q.jsonl", "seed": -5}, "seed: Input should be greater than or equal to 0"),
    ({"questions": "q.jsonl", "seed": 2**32}, "seed: Input should be less than 4294967296"),
    ({"questions": "q.jsonl", "overseer": {"demos": "half.jsonl"}}, "half a surrogate pair"),
    ({"task": "own.py:Numbers"}, r"questions\(\) gives 0; let it return texts"),
    ({"task": "own.py:Nobody"}, r"overseers\(\) gives none"),
    ({"task": "own.py:Levels", "rounds": [{"level": 3}]}, "no training question at level 3"),
    ({"task": "addition"}, "go from level 1 to 1"),
]


@pytest.mark.parametrize(("body", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_cannot_be_run_is_refused_before_anything_is_asked(
    body: dict[str, Any], says: str, folder: Path
) -> None:
    with pytest.raises(RefluxError, match=says) as refused:
        config = read(folder, **body)
        check_questions(config, run_task(config))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_a_task_whose_code_fails_is_told_with_its_lines(folder: Path) -> None:
    with pytest.raises(
        RefluxError, match=r"questions\(\) fails or gives no list .ValueError: mi"
    ) as it:
        run_task(read(folder, task="own.py:Broken"))
    assert 'raise ValueError("mine")' in it.value.__notes__[0]


def test_a_config_of_a_thousand_brackets_is_no_yaml(folder: Path) -> None:
    (folder / "run.yaml").write_text("[" * 3_000)
    with pytest.raises(UsageError, match="is not YAML"):
        read_config(folder / "run.yaml")


def test_a_task_of_ones_own_with_levels_needs_no_more(folder: Path) -> None:
    config = read(folder, task="own.py:Levels", rounds=[{"level": 1}, {"level": 2}])
    check_questions(config, run_task(config))
    assert planned_questions(config, run_task(config)) == [1000, 1000]
    with pytest.raises(UsageError, match="a task or questions"):
        config_from({"rounds": 1, "task": ""}, "x.yaml")
