"""Question files in the forms and formats that data sets come in."""

import csv
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import MissingError, UsageError
from reflux.graphs.evals.questions.files import read_questions
from reflux.graphs.evals.questions.forms import ASK_LETTER, Keys

CHOICES = f"Cap?\n\nA) Rome\nB) Paris\n{ASK_LETTER}"


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("body", "question", "answers", "unused"),
    [
        ({"question": "Cap?", "choices": ["Rome", "Paris"], "answer": 1, "subject": "geo"},
         CHOICES, ("B", "Paris"), ("subject",)),
        ({"question": "Cap?", "choices": ["Rome", "Paris"], "answer": "b"}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "choices": ["Rome", "Paris"], "answer": "Paris"}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "choices": {"text": ["Rome", "Paris"], "label": ["1", "2"]},
          "answerKey": "2"}, CHOICES, ("B", "Paris"), ()),
        ({"question": "Cap?", "choices": {"A": "Rome", "B": "Paris"}, "answer": "B"}, CHOICES,
         ("B", "Paris"), ()),
        ({"ctx": "Cap?", "endings": ["Rome", "Paris"], "label": "1"}, CHOICES, ("B", "Paris"), ()),
        ({"question": "Cap?", "A": "Rome", "B": "Paris", "answer": "B"}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "opa": "Rome", "opb": "Paris", "answer": 1}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "option1": "Rome", "option2": "Paris", "answer": "2"}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "opa": "Rome", "opb": "Paris", "cop": 1}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "answerA": "Rome", "answerB": "Paris", "label": "2"}, CHOICES,
         ("B", "Paris"), ()),
        ({"question": "Cap?", "option_a": "Rome", "option_b": "Paris", "answer": "option_b"},
         CHOICES, ("B", "Paris"), ()),
        ({"Question": "Cap?", "a": "Rome", "b": "Paris", "Answer": "b"}, CHOICES,
         ("B", "Paris"), ()),
        ({" question": "Q?", "Correct Answer": "x", "Incorrect Answer 1": "y"}, "Q?", ("x",),
         ("Incorrect Answer 1",)),
        ({"input": "Q?", "expectedOutput": "x", "tags": []}, "Q?", ("x",), ("tags",)),
        ({"Problem": "Q?", "Answer": 33, "ID": "I-1"}, "Q?", ("33",), ("ID",)),
        ({"Question": "Q?", "question": "R?", "answer": "x"}, "R?", ("x",), ("Question",)),
        ({"Question": "Q?", "Best Answer": "x", "Correct Answers": "x; y"}, "Q?", ("x", "y"),
         ("Best Answer",)),
        ({"question": "Q?", "documents": [{"title": "T", "text": "a"}, "b"], "answer": "x"},
         "T: a\n\nb\n\nQ?", ("x",), ()),
        ({"question": "Q?", "documents": [12, 15], "answer": "x"}, "Q?", ("x",), ("documents",)),
        ({"input": [turn("system", "Be brief."), turn("user", "Cap?")], "ideal": ["Paris"]},
         "Cap?", ("Paris",), ()),
        ({"question": "is it", "answer": "TRUE"}, "is it", ("yes", "true"), ()),
        ({"input": "Cap?", "target": "B", "choices": ["Rome", "Paris"], "id": 7}, CHOICES,
         ("B", "Paris"), ("id",)),
        ({"input": "Cap?", "target": ["A", "B"], "choices": ["Rome", "Paris"]}, CHOICES,
         ("A, B",), ()),
        ({"context": "C.", "question": "Q?", "answers": {"text": ["x", "y", "x"],
          "answer_start": [1, 2, 3]}, "title": "T"}, "C.\n\nQ?", ("x", "y"), ("title",)),
        ({"question": "Q?", "context": {"title": ["T", "U"], "sentences": [["a. ", "b."], ["c"]]},
          "answer": "x"}, "T: a. b.\n\nU: c\n\nQ?", ("x",), ()),
        ({"question": "Q?", "context": [["T", ["a."]]], "answer": "x"}, "T: a.\n\nQ?", ("x",), ()),
        ({"question": "Q?", "contexts": ["one", "two"], "answer": "x"}, "one\n\ntwo\n\nQ?",
         ("x",), ()),
        ({"question": "Q?", "context": {"a": 1}, "answer": "x"}, "Q?", ("x",), ("context",)),
        ({"question": "Q?", "answer": "48/2 = 24\n#### 1,024"}, "Q?", ("1,024",), ()),
        ({"problem": "Q?", "solution": "so $\\boxed{\\frac{1}{2}}$"}, "Q?", ("\\frac{1}{2}",), ()),
        ({"problem": "Q?", "solution": "so 3", "answer": "3"}, "Q?", ("3",), ("solution",)),
        ({"question": "Q?", "answer": {"value": "X", "aliases": ["Y"]}}, "Q?", ("X", "Y"), ()),
        ({"question": "is it", "passage": "P", "answer": True}, "P\n\nis it",
         ("yes", "true"), ()),
        ({"question": "is it", "answer": False}, "is it", ("no", "false"), ()),
        ({"instruction": "Do", "input": "this", "output": "done"}, "Do\n\nthis", ("done",), ()),
        ({"instruction": "Do", "input": "", "output": "done"}, "Do", ("done",), ("input",)),
        ({"question": "Größe? 你好", "answer": 1.50}, "Größe? 你好", ("1.5",), ()),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
         "q", ("a",), ()),
        ({"messages": [turn("user", [{"type": "text", "text": "q"}]), turn("assistant", "a")]},
         "q", ("a",), ()),
        ({"messages": [turn("user", "1"), turn("assistant", "2"), turn("user", "3")],
          "answer": "4"}, "User: 1\n\nAssistant: 2\n\nUser: 3", ("4",), ()),
        ({"input": [turn("user", "1"), turn("assistant", "2"), turn("user", "3")],
          "target": "4"}, "User: 1\n\nAssistant: 2\n\nUser: 3", ("4",), ()),
    ],
)  # fmt: skip
def test_a_known_form_is_read_without_options(
    tmp_path: Path, body: dict[str, Any], question: str, answers: tuple[str, ...],
    unused: tuple[str, ...],
) -> None:  # fmt: skip
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(body), encoding="utf-8")
    found = read_questions(path)
    (row,) = found.rows
    assert (row.question, row.answers, found.unused) == (question, answers, unused)
    assert row.choices == (("Rome", "Paris") if "Rome" in question else ())


ROWS = [{"q": "a; b", "a": "1", "n": "x"}, {"q": 'c "d"\ne', "a": "2", "n": "y"}]
KEYS = Keys("q", "a")


def test_a_column_of_floats_holds_whole_numbers_and_gaps(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "q.parquet"
    rows = [{"question": "a", "answer": 72.0}, {"question": "b", "answer": 0.5}]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    assert [row.answers for row in read_questions(path).rows] == [("72",), ("0.5",)]
    rows.append({"question": "c", "answer": float("nan")})
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    with pytest.raises(UsageError, match='line 3: "answer" is empty'):
        read_questions(path)


def as_csv(delimiter: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def as_parquet(path: Path) -> None:
    pytest.importorskip("datasets").Dataset.from_list(ROWS).to_parquet(str(path))


def as_saved(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([{"q": "of train", "a": "0", "n": ""}])
    datasets.DatasetDict(train=train, test=datasets.Dataset.from_list(ROWS)).save_to_disk(str(path))


def as_folder(path: Path) -> None:
    path.mkdir()
    for index, row in enumerate(ROWS):
        (path / f"{index}.jsonl").write_text(json.dumps(row))
    (path / "README.md").write_text("no questions")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.jsonl", {"question": [{"type": "text", "text": "a"}, {"type": "image_url"}],
         "answer": "x"}, '"question" holds image_url, and questions are text'),
        ("q.jsonl", {"messages": [turn("user", [{"type": "image"}]), turn("assistant", "x")]},
         '"content" holds image, and questions are text'),
        ("q.jsonl", {"frage": "a", "antwort": "b"},
         "a question or an answer: name them by --question-key and --answer-key"),
        ("q.jsonl", {"frage": "a", "answer": "b"}, "a question: name it by --question-key"),
        ("q.xlsx", {}, "is a spreadsheet: save it as CSV"),
        ("q.yaml", {}, "is YAML: save it as JSON"),
        ("q.jsonl", {"input": {"query": "a"}, "answer": "b"},
         "by --question-key, for example input.query"),
        ("q.json", {"question": ["a", "b"], "answer": ["c", "d"]}, "a record holds one question"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_told_with_its_remedy(
    tmp_path: Path, name: str, text: Any, says: str
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(text))
    with pytest.raises(UsageError) as failure:
        read_questions(path)
    assert says in str(failure.value)


LINES = "\r\n\r\n".join(json.dumps(row) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("q.jsonl", lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode())),
        ("joined.jsonl", lambda path: path.write_text("\ufeff" + LINES.replace("\n", "\n\ufeff"))),
        ("q.json", lambda path: path.write_text(json.dumps(ROWS, indent=1))),
        ("lines.json", lambda path: path.write_text(LINES)),
        ("data.json", lambda path: path.write_text(json.dumps({"data": ROWS}))),
        ("examples.json", lambda path: path.write_text(json.dumps({"examples": ROWS}))),
        (
            "splits.json",
            lambda path: path.write_text(json.dumps({"train": ROWS[:1], "test": ROWS})),
        ),
        ("bars.csv", as_csv("|")),
        ("q.ndjson.gz", lambda path: path.write_bytes(gzip.compress(LINES.encode()))),
        ("q.csv", as_csv(",")),
        ("semicolons.csv", as_csv(";")),
        ("q.tsv", as_csv("\t")),
        ("q.parquet", as_parquet),
        ("saved", as_saved),
        ("folder", as_folder),
    ],
)
def test_a_format_gives_the_same_questions(
    tmp_path: Path, name: str, write: Callable[[Path], Any]
) -> None:
    write(tmp_path / name)
    found = read_questions(tmp_path / name, KEYS)
    assert [(row.question, row.answers) for row in found.rows] == [
        ("a; b", ("1",)), ('c "d"\ne', ("2",))
    ]  # fmt: skip
    assert found.unused == ("n",)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.json", '[\n{"question": "a", "answer": "1"},\n\n{"question"', "line 4: "),
        ("q.json", '[{"question": "a", "answer": "1"}', "line 1: "),
        ("q.json", '[{"question": "a", "answer": "1"},\n 7]', "line 2: a JSON int, no object"),
        ("q.csv", "question,answer\na,1\nb\n", "line 3: it has not the 2 columns"),
        ("q.csv", "question,answer\na,1\nb,2,3\n", "line 3: it has not the 2 columns"),
        ("q.csv", 'question,answer\na,"1', "line 2: unexpected end of data"),
        ("q.csv", "question,answer\na,\n", 'line 2: "answer" is empty'),
        ("q.jsonl.gz", "no gzip", "is no whole gzip file"),
        ("q.eval", "no zip", "is no log of Inspect"),
        ("q.parquet", "no parquet", "is no Parquet file"),
        ("q.json", "[]", "holds no questions"),
    ],
)
def test_what_is_broken_is_named_by_file_and_line(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as failure:
        read_questions(path)
    assert str(path) in str(failure.value)
    assert says in str(failure.value)


def test_squad_is_read_as_it_is_published(tmp_path: Path) -> None:
    qas = [{"id": "1", "question": "Where?", "answers": [{"text": "Peru", "answer_start": 11}]}]
    body = {"data": [{"title": "T", "paragraphs": [{"context": "Lima is in Peru.", "qas": qas}]}]}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(body))
    (row,) = read_questions(path).rows
    assert (row.question, row.answers) == ("Lima is in Peru.\n\nWhere?", ("Peru",))


def test_keys_and_a_template_name_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    body = {"ask": {"text": "2+2"}, "is": {"all": ["4", "four"]}, "hint": "count", "z": 1}
    path.write_text(json.dumps(body))
    template = "{{ question }}?{% if hint %} ({{ hint }}){% endif %}"
    found = read_questions(path, Keys("ask.text", "is.all", template))
    assert [(row.question, row.answers) for row in found.rows] == [("2+2? (count)", ("4", "four"))]
    assert found.unused == ("z",)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (Keys(template="{question}"), "with two braces"),
        (Keys(template="{{ question"), "is no Jinja template"),
        (Keys(template="{{ nothing }}"), "line 1: --prompt-template names nothing"),
        (Keys(template="{{ question.__class__.__mro__[1] }}"), "unsafe"),
        (Keys(template="{{ 1 / (question == 'b') }}"), "division by zero"),
        (Keys(question="ask"), 'line 1: it lacks "ask"'),
        (Keys(answer="answer.text"), 'line 1: it lacks "answer.text"'),
    ],
)
def test_a_key_or_a_template_that_does_not_fit_is_told(
    tmp_path: Path, keys: Keys, says: str
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": "1"}')
    with pytest.raises(UsageError, match=says):
        read_questions(path, keys)


def test_the_samples_of_an_inspect_log_are_questions(tmp_path: Path) -> None:
    sample = {"id": 1, "epoch": 1, "input": "Cap?", "target": "B", "choices": ["Rome", "Paris"],
              "output": {"completion": "A"}, "scores": {}}  # fmt: skip
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as log:
        log.writestr("header.json", "{}")
        for epoch in (1, 2):
            log.writestr(f"samples/1_epoch_{epoch}.json", json.dumps(sample | {"epoch": epoch}))
    as_json = tmp_path / "log.json"
    as_json.write_text(json.dumps({"version": 2, "eval": {}, "samples": [sample]}))
    for each in (path, as_json):
        found = read_questions(each)
        assert [(row.question, row.answers) for row in found.rows] == [(CHOICES, ("B", "Paris"))]
        assert found.unused == ()


def test_a_data_set_of_the_hub_is_one_message_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")

    def load(name: str, config: str | None) -> Any:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(MissingError, match=r"org/name is no file here.*OfflineModeIsEnabled"):
        read_questions("org/name")
    splits = {"train": [{"question": "t", "answer": "1"}], "test": [{"question": "s", "answer": 1}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: splits)
    assert read_questions("org/name").rows[0].question == "s"
    assert read_questions("org/name::train").rows[0].question == "t"
    with pytest.raises(UsageError, match="has no split 'dev'; it has train, test"):
        read_questions("org/name:main:dev")
