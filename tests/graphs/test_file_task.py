"""A file of questions as a task: what is held out, checked and scored, and what a user types."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.answer_checks import compact_json, json_check, schema_check
from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.evals.file_task import FileTask
from reflux.graphs.evals.questions.forms import Keys
from reflux.graphs.evals.task import Task, is_held_out, score_held_out

ROWS = [{"id": i, "text": f"What is {i} plus {i}?", "sum": str(2 * i)} for i in range(60)]


def task_of_rows(folder: Path, rows: list[dict[str, Any]], **options: Any) -> FileTask:
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = options.pop("keys", Keys("text", "sum"))
    return FileTask("sums", str(path), keys, **options)


def test_every_question_is_held_out_or_trained_on_and_samples_only_grow(tmp_path: Path) -> None:
    task = task_of_rows(tmp_path, [*ROWS, {**ROWS[0], "text": "  What is 0   plus 0? "}])
    train, held_out = (task.sample(99, 1, split, 3) for split in ("train", "held_out"))
    assert sorted([*train, *held_out]) == sorted(row["text"] for row in ROWS)
    assert (len(train), len(held_out)) == (task.size("train"), task.size("held_out"))
    assert 4 <= len(held_out) <= 20
    assert all(map(lambda question: is_held_out(task, question), held_out))
    assert not any(map(lambda question: is_held_out(task, question), train))
    assert task.sample(10, 7, "train", 3) == train[:10]
    assert task.sample(10, 1, "train", 4) != train[:10]


def test_some_questions_may_lack_their_answer(tmp_path: Path) -> None:
    rows = [row if row["id"] % 2 else {**row, "sum": None} for row in ROWS]
    task = task_of_rows(tmp_path, rows, score="number")
    held_out = task.sample(99, 1, "held_out", 0)
    known = [question for question in held_out if task.has_truth(question)]
    assert 0 < len(known) < len(held_out)
    for question in known:
        number = int(question.split()[2])
        assert score_held_out(task, question, f"It is {2 * number}.")
        assert not score_held_out(task, question, str(2 * number + 1))
        assert not score_held_out(task, question, None)


def test_answers_are_compared_by_the_score_also_with_each_other(tmp_path: Path) -> None:
    task = task_of_rows(tmp_path, ROWS, score="number")
    assert task.same_answer("?", "It is 1,200.", "1200")
    assert not task.same_answer("?", "1200", "1201")
    untold = task_of_rows(tmp_path, [{"text": row["text"]} for row in ROWS], keys=Keys("text"))
    assert untold.scored is None and not any(map(untold.has_truth, untold.questions()))
    assert untold.same_answer("?", "The Cat.", "the cat")
    with pytest.raises(UsageError, match="knows no true answer"):
        untold.score("?", "1")


def test_a_template_writes_the_question_also_of_what_a_user_types(tmp_path: Path) -> None:
    task = task_of_rows(tmp_path, ROWS, keys=Keys("text", "sum", "Q: {{ text }} A:"))
    assert task.from_user("What is 1 plus 2?") == "Q: What is 1 plus 2? A:"
    known = task.questions()[0]
    assert known == "Q: What is 0 plus 0? A:" == task.from_user(known)
    more = task_of_rows(tmp_path, ROWS, keys=Keys("text", "sum", "{{ id }}: {{ text }}"))
    assert more.from_user("What is 1 plus 2?") == "What is 1 plus 2?"
    alone = task_of_rows(tmp_path, ROWS, keys=Keys(template="Number {{ id }}?"))
    assert alone.questions()[:2] == ("Number 0?", "Number 1?")


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (ROWS, {"keys": Keys("ask", "sum")}, 'line 1: it lacks "ask"; it has id, sum, text'),
        (ROWS, {"keys": Keys("text", "total", "", True, ("q", "answer_key", "t"))},
         "an answer in 'total'; the columns are id, text, sum: name another answer_key"),
        (ROWS, {"keys": Keys("text", "sum", "{{ nothing }}", True, ("q", "a", "template"))},
         "line 1: template names nothing, no column of it"),
        (ROWS, {"keys": Keys("text", "sum", "{{ text")}, "is no Jinja template"),
        (ROWS, {"score": "rouge"}, "there is no score 'rouge'"),
        (ROWS, {"score": "judge:gpt"}, "is for `reflux eval`"),
        ([{"text": "a"}], {"keys": Keys("text"), "score": "number"},
         "no line of .* has an answer: name its column by"),
        ([{"text": "a", "sum": "many"}], {"score": "number"}, "no form that the score number"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_asked_or_scored_is_refused_in_one_sentence(
    rows: list[dict[str, Any]], options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        task_of_rows(tmp_path, rows, **options)


class Colors(Task):
    """A class with nothing but its questions."""

    def questions(self) -> list[str]:
        return [f"What color is number {i}?" for i in range(40)]


def test_a_task_needs_nothing_but_its_questions() -> None:
    task = Colors()
    assert task.name == "colors"
    assert task.primitives() == ()
    train, held_out = task.size("train"), task.size("held_out")
    assert train and held_out and train + held_out == 40
    assert not any(map(task.has_truth, task.questions()))
    task.check_levels([1, 1, 1])


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"n": 1}', ""),
        ('```json\n{"n": 1}\n```', ""),
        ('Here it is:\n```JSON\n{\n "n": 1}```\nIt says one.', ""),
        ('```json\n{"n": 1}\n```\n```json\n{"n": 2}\n```', "no JSON"),
        ('{"n": "one"}', r"\$\.n: 'one' is not of type 'integer'"),
        ("{}", "'n' is a required property"),
        ('Here it is: {"n": 1}', "no JSON"),
        ('{"n": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_an_answer_is_held_against_a_schema(answer: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text(json.dumps(SCHEMA))
    said = schema_check(path)("?", answer)
    assert re.search(reason, said) if reason else said == ""


def test_equal_json_is_equal_text() -> None:
    texts = ('{"a": 1, "b": ["é"]}', '```json\n{"a":1,\n "b":["\\u00e9"]}\n```')
    assert {compact_json(text) for text in texts} == {'{"a": 1, "b": ["é"]}'}
    assert compact_json(" no JSON ") == "no JSON"
    assert not json_check("?", " 3 ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file"),
        ("{", "is no JSON Schema: Expecting"),
        ("[]", "holds a list, not an object"),
        ('{"type": "objekt"}', "is no JSON Schema: at type, 'objekt' is not valid"),
    ],
)
def test_a_schema_that_is_none_is_refused(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=says):
        schema_check(path)


def test_no_schema_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text('{"$ref": "http://127.0.0.1:9/other.json"}')
    check: Callable[[str, str], str] = schema_check(path)
    with pytest.raises(RefluxError, match=r"refers to 'http://127\.0\.0\.1:9/other\.json'"):
        check("?", "{}")
