"""Eval tasks: questions of a file or a task, and what may be scored."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.evals.eval_task import FileEvalTask, LevelEvalTask
from reflux.graphs.evals.questions.files import QuestionFile, Row, read_questions
from reflux.graphs.evals.task import is_held_out
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.tasks.addition import Addition
from reflux.tasks.arithmetic import Products


def written(folder: Path, *lines: Any) -> Path:
    """A file of lines; what is no text is written as JSON."""
    path = folder / "asked.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_every_form_of_a_row_is_a_question_with_its_answers(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"question": "a", "answer": "1"},
        {"question": "b", "answer": 2, "source": "mine"},
        {"question": "c", "answer": ["3", 4, "3"]},
        "",
        {"prompt": "d", "completion": "5"},
        {"prompt": [message("user", "e")], "completion": [message("assistant", "6")]},
        {"messages": [message("system", ""), message("user", "f"), message("assistant", "7")]},
        {"messages": [message("user", "g"), message("assistant", "8\u2028and a line")]},
    )
    found = read_questions(path)
    assert [(row.question, row.answers, row.line) for row in found.rows] == [
        ("a", ("1",), 1),
        ("b", ("2",), 2),
        ("c", ("3", "4"), 3),
        ("d", ("5",), 5),
        ("e", ("6",), 6),
        ("f", ("7",), 7),
        ("g", ("8\u2028and a line",), 8),
    ]
    assert found.system == ""


def test_a_system_message_that_all_rows_share_is_kept(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                message("system", "Be brief."),
                message("user", q),
                message("assistant", "x"),
            ]
        }
        for q in ("a", "b")
    ]
    found = read_questions(written(tmp_path, *rows))
    assert found.system == "Be brief."
    rows.append({"question": "c", "answer": "x"})
    found = read_questions(written(tmp_path, *rows))
    assert found.system == ""
    assert [row.question for row in found.rows] == ["Be brief.\n\na", "Be brief.\n\nb", "c"]


def test_a_row_that_is_there_twice_is_asked_once(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "1"}
    found = read_questions(written(tmp_path, row, {"question": "b", "answer": "2"}, row))
    assert ([r.question for r in found.rows], found.repeats) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "a", "ans', "Unterminated string"),
        ("[1, 2]", "a JSON list, no object"),
        ({"question": "a"}, "name it by --answer-key"),
        ({"answer": "a"}, "name it by --question-key"),
        ({"text": "a", "label": 1}, "it has label, text, and none is known"),
        ({}, "it has no columns"),
        ({"question": "a", "answer": None}, '"answer" is no text'),
        ({"question": "a", "answer": {"spans": 1}}, "for example answer.spans"),
        ({"question": "a", "answer": "E", "choices": ["x", "y"]}, "none of the 2 choices"),
        ({"question": "a", "answer": []}, '"answer" is an empty list'),
        ({"question": "a", "answer": [" "]}, '"answer" is empty'),
        ({"question": " ", "answer": "1"}, '"question" is empty'),
        ('{"question": "a", "answer": NaN}', "NaN is no JSON"),
        ('{"question": "a", "answer": -Infinity}', "-Infinity is no JSON"),
        ({"question": ["a"], "answer": "1"}, '"question" holds what is no message'),
        ('{"question": "\\ud800", "answer": "1"}', "half a surrogate pair"),
        ({"messages": "a"}, "none is known to hold the answer"),
        ({"messages": {"a": 1}}, '"messages" is no list'),
        ({"messages": ["a"]}, "holds what is no message"),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": [message("user", "a"), message("user", "b")]}, "messages of user, user"),
        ("[" * 100_000, "recursion"),
        ({"question": "first", "answer": "2"}, "line 1 with another answer"),
    ],
)
def test_a_broken_line_is_told_by_its_number(tmp_path: Path, line: Any, says: str) -> None:
    path = written(tmp_path, {"question": "first", "answer": "1"}, "", line)
    with pytest.raises(UsageError) as failure:
        read_questions(path)
    assert f"{path}, line 3: " in str(failure.value)
    assert says in str(failure.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "holds no file of questions"),
        (lambda path: path.write_text("\n \n"), "holds no questions"),
        (lambda path: path.write_bytes(b'{"question": "a"\n\xff\xfe'), "line 2: not UTF-8"),
    ],
)
def test_a_file_without_questions_is_told(
    tmp_path: Path, make: Callable[[Path], Any], says: str
) -> None:
    path = tmp_path / "asked.jsonl"
    make(path)
    with pytest.raises(UsageError, match=says):
        read_questions(path)


def asked(*rows: tuple[str, str]) -> QuestionFile:
    return QuestionFile(
        Path("asked.jsonl"), tuple(Row(q, (a,), i) for i, (q, a) in enumerate(rows, start=1))
    )


def test_an_answer_is_right_where_it_is_as_good_as_any_true_one() -> None:
    file = QuestionFile(Path("f.jsonl"), (Row("q", ("Paris", "Lutetia"), 1),))
    eval_task = FileEvalTask(file, "normalised")
    assert eval_task.right("q", "LUTETIA.")
    assert not eval_task.right("q", "Rome")
    assert eval_task.true_answers("q") == ("Paris", "Lutetia")
    assert eval_task.part_right("q", "paris") is True
    assert eval_task.part_right("another", "paris") is None


def test_a_true_answer_that_the_rule_cannot_compare_is_told_before_anything_is_asked() -> None:
    with pytest.raises(UsageError, match=r"line 2: the answer 'two' has no form .* number"):
        FileEvalTask(asked(("a", "1"), ("b", "two")), "number")
    with pytest.raises(UsageError, match="no score 'rouge'; there are: exact, normalised"):
        FileEvalTask(asked(("a", "1")), "rouge")


def boom(*_: str) -> bool:
    raise KeyError("where")


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        (boom, "the scorer 'mine:f' failed on 'a': KeyError: 'where'"),
        (lambda *_: 0.7, "says 0.7 of the answer to 'a', not True or False"),
        (lambda *_: None, "says None"),
        (lambda *_: "yes", "says 'yes'"),
        (lambda q, a: True, "TypeError"),
        (lambda *_: sys.exit(0), "SystemExit: 0"),
    ],
)
def test_a_scorer_that_fails_or_says_nonsense_is_an_error_and_no_wrong_answer(
    scorer: Any, says: str
) -> None:
    with pytest.raises(RefluxError) as failure:
        FileEvalTask(asked(("a", "1")), "mine:f", scorer)
    assert says in str(failure.value)
    assert "every answer is recorded" in str(failure.value)
    assert failure.value.exit_code == 1


async def slowly(question: str, answer: str, truth: str) -> bool:
    await asyncio.sleep(0)
    return answer == truth


@pytest.mark.parametrize(
    "scorer", [slowly, lambda q, a, t: numpy.bool_(a == t), lambda q, a, t: float(a == t)]
)
async def test_a_scorer_may_be_a_coroutine_function_and_return_zero_or_one(scorer: Any) -> None:
    eval_task = FileEvalTask(asked(("a", "1")), "mine:f", scorer)
    assert eval_task.right("a", "1") is True
    assert eval_task.right("a", "2") is False


def test_a_scorer_sees_question_answer_and_truth() -> None:
    seen: list[tuple[str, ...]] = []

    def scorer(*given: str) -> bool:
        seen.append(given)
        return given[1] == "x"

    eval_task = FileEvalTask(asked(("a", "1")), "mine:f", scorer)
    assert eval_task.right("a", "x")
    assert not eval_task.right("a", "y")
    assert seen == [("a", "1", "1"), ("a", "x", "1"), ("a", "y", "1")]


def test_a_limit_draws_the_same_questions_for_every_seed() -> None:
    eval_task = FileEvalTask(asked(*((f"q{i}", "1") for i in range(50))), "exact", limit=7)
    drawn = eval_task.questions(1)
    assert len(set(drawn)) == 7
    assert drawn == eval_task.questions(2)
    assert list(drawn) != [f"q{i}" for i in range(7)]
    assert len(FileEvalTask(eval_task.file, "exact", limit=90).questions(1)) == 50


def test_a_task_is_evaluated_on_held_out_questions_that_the_seed_draws() -> None:
    eval_task = LevelEvalTask(Addition(), 3, 20)
    one, other = eval_task.questions(1), eval_task.questions(2)
    assert one != other
    assert all(is_held_out(eval_task.task, question) for question in (*one, *other))
    assert eval_task.same_question("123+456=") == eval_task.same_question("456+123=")
    with pytest.raises(UsageError, match="holds out no question at --level 1"):
        LevelEvalTask(Addition(), 1, 5).questions(1)


def test_a_task_brings_its_own_overseers_texts_and_answers(store: TraceStore) -> None:
    eval_task, task = LevelEvalTask(Addition(), 3, 20), Addition()
    client = RecordedClient(ScriptedClient(lambda _: ""), store)
    context = eval_task.context(AmplifyContext(client, "base", ()))
    assert context.system_prompt == task.system_prompt
    assert [each.name for each in context.overseers] == [each.name for each in task.overseers()]
    assert eval_task.same_answer(" 765 ") == task.normalise(" 765 ") == "765"


def test_a_file_brings_its_system_message_and_the_forms_of_its_answers(store: TraceStore) -> None:
    file = replace(asked(("a", "1")), system="Answer in a word.")
    client = RecordedClient(ScriptedClient(lambda _: ""), store)
    context = FileEvalTask(file, "number").context(AmplifyContext(client, "base", (), seed=7))
    assert (context.system_prompt, context.seed) == ("Answer in a word.", 7)
    assert FileEvalTask(file, "number").same_answer("it is 2.0") == "2"
    assert FileEvalTask(file, "number").same_answer("no number") == "no number"
    by_function = FileEvalTask(file, "mine:f", lambda question, answer, truth: True)
    assert by_function.same_answer("The Tower!") == "tower"


def test_parts_of_a_tree_are_marked_where_they_are_held_out_and_nowhere_else() -> None:
    eval_task = LevelEvalTask(Addition(), 4, 20)
    for question in Addition().sample(20, 2, "held_out", 0):
        a, b = (int(part[::-1]) for part in question.rstrip("=").split("+"))
        assert eval_task.part_right(question, str(a + b).zfill(3)[::-1]) is True
        assert eval_task.part_right(question, "no sum") is False
    for question in Addition().sample(20, 2, "train", 0):
        assert eval_task.part_right(question, "000") is None
    assert eval_task.part_right("3+4=", "70") is None  # A primitive.
    assert eval_task.part_right("what is love?", "000") is None
    gym = LevelEvalTask(Products(), 1, 5)
    assert gym.part_right("Calculate 12 * 3.", "36") is None  # Its key is not known.


def test_a_tasks_scorer_that_fails_is_an_error() -> None:
    class Broken(Addition):
        def score(self, question: str, answer: str) -> bool:
            raise RuntimeError("out of order")

    eval_task = LevelEvalTask(Broken(), 2, 5)
    with pytest.raises(RefluxError, match=r"the scorer 'addition' failed .* out of order"):
        eval_task.right(eval_task.questions(1)[0], "1")


def test_a_scorer_never_sees_the_answer_that_is_missing() -> None:
    eval_task = FileEvalTask(
        asked(("a", "1")), "mine:f", lambda q, answer, truth: int(answer) == int(truth)
    )
    assert eval_task.part_right("a", None) is False
    assert eval_task.part_right("another", None) is None
    assert LevelEvalTask(Addition(), 2, 5).part_right("21+43=", None) in (False, None)
    assert LevelEvalTask(Addition(), 2, 5).part_right("what is love?", None) is None


def test_questions_that_differ_in_a_sign_alone_are_two() -> None:
    eval_task = FileEvalTask(asked(("3 + 2?", "5"), ("3 - 2?", "1")), "exact")
    assert eval_task.same_question("3 + 2?") != eval_task.same_question("3 - 2?")
    assert eval_task.same_question("3 + 2?") == eval_task.same_question(" 3 +\n2? ")


def test_a_number_is_the_answer_as_it_is_written(tmp_path: Path) -> None:
    numbers = ("3.14159265358979323846264338327950288", "1e999", "7", "0.50")
    path = written(tmp_path, *(f'{{"question": "{n}?", "answer": {n}}}' for n in numbers))
    answers = [row.answers[0] for row in read_questions(path).rows]
    assert answers == [numbers[0], "1E+999", "7", "0.50"]
