"""Questions in files: JSONL, JSON, CSV, TSV, Parquet, plain or gzipped, folders, and the Hub.

Texts are read here, because a broken line is named by its number and `1e999` keeps its digits;
Parquet, folders of `save_to_disk` and the Hub are read by the `datasets` library (extra `data`).
"""

import csv
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.files import read_text
from reflux.agents.hub import online
from reflux.agents.redaction import redact
from reflux.graphs.evals.questions.forms import Form, Keys

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".eval")
"""Of the files that are read in a folder."""
SPLITS = ("test", "validation", "valid", "dev", "train")
"""Which split of a data set is read where none is named: the first that exists."""
NESTED = ("samples", "data", "rows", "questions", "examples", "items", "records", *SPLITS)
"""Keys of an object that holds a list of records."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]*){0,2}")
REMEDY = "pip install 'reflux-ida[data]'"


KNOWN_FORMS = Keys()


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its true answers."""

    question: str
    answers: tuple[str, ...]
    line: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file, a folder or a data set."""

    path: Path
    rows: tuple[Row, ...]
    system: str = ""
    """The system message that all rows share."""
    repeats: int = 0
    unused: tuple[str, ...] = ()
    """Columns that are neither asked nor scored."""


@dataclass(frozen=True)
class Record:
    """One record, and where it stands."""

    body: Mapping[str, Any]
    file: str
    line: int
    """From 1; of a file without lines the number of the record."""

    def error(self, message: object) -> UsageError:
        """What is wrong with it."""
        return UsageError(f"{self.file}, line {self.line}: {message}")


def read_questions(source: Path | str, keys: Keys = KNOWN_FORMS) -> QuestionFile:
    """Read questions from a file, a folder or the Hub.

    Raises:
        UsageError: no questions, or a record that is invalid or contradicts another; the message
            has its line.
        MissingError: a package is missing, or the Hub cannot be reached.
    """
    form, used = Form(keys), set[str]()
    examples: list[tuple[str, Row, str]] = []
    columns: dict[str, None] = {}
    for record in read_records(source):
        try:
            example = form.example(record.body)
        except (ValueError, TypeError) as error:
            raise record.error(f"{error}. Correct or remove the line") from error
        columns |= dict.fromkeys(record.body)
        used |= example.used
        row = Row(example.question, example.answers, record.line, example.choices)
        examples.append((example.system, row, record.file))
    if not examples:
        raise UsageError(f"{source} holds no questions")
    if keys.optional and keys.answer and not any(row.answers for _, row, _ in examples):
        raise UsageError(
            f"{source}: no line has an answer in {keys.answer!r}; the columns are "
            f"{', '.join(columns)}: name another {keys.options[1]}, or leave it out"
        )
    systems = {system for system, _, _ in examples}
    rows: dict[str, tuple[Row, str]] = {}
    for system, row, file in examples:
        # A system message that not all share stands in the question.
        own = f"{system}\n\n" if len(systems) > 1 and system else ""
        row = replace(row, question=redact(own + row.question))
        first, where = rows.setdefault(row.question, (row, file))
        if set(first.answers) != set(row.answers):
            raise UsageError(
                f"{file}, line {row.line}: the question of {where}, line {first.line} with another "
                "answer, so no answer to it can be scored; remove one, or give both as a list in "
                "one line"
            )
    return QuestionFile(
        Path(source),
        tuple(row for row, _ in rows.values()),
        systems.pop() if len(systems) == 1 else "",
        len(examples) - len(rows),
        tuple(key for key in columns if key not in used),
    )


def is_hub_id(text: str) -> bool:
    """True for `org/name` and `org/name:config:split`."""
    return bool(HUB_ID.fullmatch(text)) and _suffix(Path(text)) not in SUFFIXES


def read_records(source: Path | str) -> Iterator[Record]:
    """Read the records of a file, a folder, or a data set of the Hub (`org/name:config:split`).

    Raises:
        UsageError: there is none, or a line is invalid; the message has its number.
        MissingError: a package is missing, or the Hub cannot be reached.
    """
    path, text = Path(source), str(source)
    if path.is_dir():
        yield from _read_folder(path)
    elif path.is_file():
        yield from _read_file(path)
    elif path.exists():
        raise UsageError(f"{path} is a pipe or a device; name a file or a folder of questions")
    elif is_hub_id(text):
        yield from _read_hub(text)
    else:
        raise UsageError(
            f"there is no file {text}; name a file ({', '.join(SUFFIXES)}, each also .gz), a "
            "folder, or a data set of the Hub as org/name"
        )


def _read_folder(path: Path) -> Iterator[Record]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        library = _library(path)
        try:
            saved = library.load_from_disk(str(path))
        except Exception as error:
            raise UsageError(f"{path} cannot be read as a saved data set: {error}") from error
        yield from _rows(_split_of(saved, str(path), ""), str(path))
        return
    files = [file for file in sorted(path.rglob("*")) if _suffix(file) in SUFFIXES]
    if not files:
        raise UsageError(f"{path} holds no file of questions ({', '.join(SUFFIXES)})")
    for file in files:
        yield from _read_file(file)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _read_file(path: Path) -> Iterator[Record]:
    match _suffix(path):
        case ".parquet":
            library = _library(path)
            try:
                table = library.Dataset.from_parquet(str(path), keep_in_memory=True)
            except Exception as error:
                raise UsageError(f"{path} is no Parquet file: {error}") from error
            yield from _rows(table, str(path))
        case ".eval":
            yield from _read_inspect(path)
        case ".csv" | ".tsv" as suffix:
            yield from _read_csv(path, read_text(path), suffix)
        case ".json":
            yield from _read_json(path, read_text(path))
        case ".xlsx" | ".xls" | ".ods" | ".numbers":
            raise UsageError(f"{path} is a spreadsheet: save it as CSV")
        case ".yaml" | ".yml":
            raise UsageError(f"{path} is YAML: save it as JSON")
        case _:
            yield from _read_lines(path, read_text(path))


def _raise_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON; write a number, or a text in quotes")


# Decimal: an answer is compared as it is written, also 1e999 and forty digits of pi.
DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=cast(Any, _raise_constant))


def _record(path: Path, line: int, body: object) -> Record:
    record = Record(cast(Mapping[str, Any], body), str(path), line)
    if not isinstance(body, dict):
        raise record.error(f"a JSON {type(body).__name__}, no object; correct or remove the line")
    return record


def _read_lines(path: Path, text: str) -> Iterator[Record]:
    # Not `splitlines`: JSON texts may contain other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip().lstrip("\ufeff"):
            try:
                body = DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"{path}, line {number}: {error}; correct or remove the line"
                ) from error
            yield _record(path, number, body)


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _read_json(path: Path, text: str) -> Iterator[Record]:
    """An array of records, an object that holds one, or lines after all."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] != "[":
        try:
            body: Any = DECODER.decode(text.strip())
        except (ValueError, RecursionError):
            yield from _read_lines(path, text)
            return
        nested = next((body[key] for key in NESTED if _holds_records(body.get(key))), None)
        if nested and all("paragraphs" in each for each in nested):  # SQuAD as it is published.
            nested = [
                {"context": paragraph["context"], **question}
                for article in nested
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
        for index, each in enumerate(nested if isinstance(nested, list) else [body], start=1):
            record = _record(path, index, each)
            yield _inspect_record(path, index, each) if "samples" in body else record
        return
    index = start + 1
    while True:
        index = cast(re.Match[str], re.compile(r"[\s,]*").match(text, index)).end()
        if text[index : index + 1] == "]":
            return
        line = text.count("\n", 0, index) + 1
        try:
            body, index = DECODER.raw_decode(text, index)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {line}: {error}; correct the file") from error
        yield _record(path, line, body)


def _read_csv(path: Path, text: str, suffix: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    header = text.partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;|\t", key=header.count)
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for body in reader:
            record = Record(body, str(path), reader.line_num)
            width = len(reader.fieldnames or ())
            if None in body or None in body.values():
                raise record.error(
                    f"it has not the {width} columns of the first line; put a text with "
                    f"{delimiter!r} in double quotes"
                )
            if any(cell.strip() for cell in body.values()):
                yield record
    except csv.Error as error:
        # The record that is broken begins after the last whole one.
        line = reader.line_num + 1
        raise UsageError(f"{path}, line {line}: {error}; correct the line") from error


def _read_inspect(path: Path) -> Iterator[Record]:
    """The samples of a log of Inspect: their questions and targets, not what was answered."""
    try:
        if sys.version_info < (3, 14) and find_spec("zipfile_zstd"):
            import zipfile_zstd  # noqa: F401  # pyright: ignore - teaches zipfile Zstandard
        with zipfile.ZipFile(path) as log:
            names = sorted(name for name in log.namelist() if name.startswith("samples/"))
            for index, name in enumerate(names, start=1):
                yield _inspect_record(path, index, json.loads(log.read(name)))
    except NotImplementedError as error:
        raise MissingError(f"{path} is compressed by Zstandard: {REMEDY}") from error
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UsageError(f"{path} is no log of Inspect: {error}") from error


def _inspect_record(path: Path, index: int, sample: Mapping[str, Any]) -> Record:
    keys = ("input", "target", "choices")
    return _record(path, index, {key: sample[key] for key in keys if sample.get(key) is not None})


def _library(source: object) -> Any:
    if find_spec("datasets") is None:
        raise MissingError(f"{source} is read by the package datasets: {REMEDY}")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _read_hub(text: str) -> Iterator[Record]:
    library = _library(text)
    name, config, split = [*text.split(":"), "", ""][:3]
    try:
        with online():
            loaded = library.load_dataset(name, config or None)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MissingError(
            f"{text} is no file here, and the Hub does not give it as a data set ({reason}); name "
            "a file, or go online"
        ) from error
    yield from _rows(_split_of(loaded, text, split), text)


def _split_of(loaded: Any, text: str, split: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    splits = cast(dict[str, Any], loaded)
    name = split or next((each for each in SPLITS if each in splits), next(iter(splits), ""))
    if name not in splits:
        raise UsageError(f"{text} has no split {name!r}; it has {', '.join(splits)}")
    return splits[name]


def _rows(table: Any, file: str) -> Iterator[Record]:
    for index, body in enumerate(table, start=1):
        yield Record(body, file, index)
