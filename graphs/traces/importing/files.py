"""Files to import: their objects, one at a time, whatever wraps them.

.jsonl          one object a line, read line by line
.json           an object, a list of them, or what an API answers: `data`, `traces`, `samples`
.eval           Inspect's log: a ZIP file of samples
.parquet        rows, as LangSmith's bulk export writes them
.gz             any of the first two
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.graphs.traces.importing import inspect_logs
from reflux.graphs.traces.protocols.json_values import Body

WRAPPERS = ("data", "traces", "observations", "items", "rows", "conversations")
"""Keys of an object that wraps a list of objects, as APIs answer with."""
KINDS = ((list, "a list"), (str, "a text"), (type(None), "null"), (bool, "true or false"))
NOT_JSON = {
    b"\x7fELF": "a program",
    b"%PDF": "a PDF",
    b"<": "HTML or XML",
    b"SQLite format 3": "an SQLite database; a run folder's is read with --run",
}


@dataclass(frozen=True)
class Item:
    """An object of a file, or why there is none."""

    place: str
    """Where it stands: `line 3`, `item 3`, `samples/1.json`."""
    body: Body
    problem: str = ""


def items_of(path: Path) -> Iterator[Item]:
    """The objects of a file; one that cannot be read has a `problem`.

    Raises:
        UsageError: there is no such file, or it is no JSON at all.
        MissingError: Parquet without pyarrow.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the files in it, such as {path}/*.jsonl")
    if not path.is_file():
        raise UsageError(
            f"{path} is no regular file, and is read twice: save its content to one"
            if path.exists()
            else f"there is no file {path}"
        )
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".eval" or start[:4] == b"PK\x03\x04":
        for name, body in inspect_logs.samples_in(path):
            yield Item(name, body)
    elif start[:4] == b"PAR1":
        yield from _of_parquet(path)
    else:
        kind = next((kind for magic, kind in NOT_JSON.items() if start.startswith(magic)), None)
        if kind is not None:
            raise UsageError(f"{path} is of no known form: it looks like {kind}")
        try:
            with _opened(path, start[:2]) as file:
                yield from _of_text(path, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{path} is no whole gzip file: {error}; export it again") from error


@contextmanager
def _opened(path: Path, magic: bytes) -> Generator[IO[bytes]]:
    """The bytes of a text in UTF-8; one in UTF-16, as Windows writes it, is read whole."""
    with path.open("rb") as file:
        if magic in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield io.BytesIO(file.read().decode("utf-16", "replace").encode())
        elif magic == b"\x1f\x8b":
            yield io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file)))
        else:
            yield file


def _of_text(path: Path, file: IO[bytes]) -> Iterator[Item]:
    first = b""
    while not first.strip():
        if not (line := file.readline()):
            raise UsageError(f"{path} is empty")
        first = line.removeprefix(b"\xef\xbb\xbf")
    head: Any = _loads(first)
    rest = file.readline()
    if isinstance(head, Exception) and first.lstrip()[:1] in (b"{", b"["):
        # One value over many lines, or a first line that is broken.
        if first.strip() in (b"{", b"[") or isinstance(_loads(rest), Exception):
            whole = _loads(first + rest + file.read())
            if isinstance(whole, Exception):
                raise UsageError(f"{path} is no whole JSON: {whole}; export it again")
            yield from _of_value(whole)
            return
    elif isinstance(head, Exception):
        kind = "CSV or a table" if first.count(b",") + first.count(b"\t") > 1 else "plain text"
        raise UsageError(
            f"{path} is of no known form: it looks like {kind}; export it as JSON or JSONL"
        )
    elif not rest.strip():
        yield from _of_value(head, "line 1")
        return
    number = 1
    for line in _lines(first, rest, file):
        if line.strip():
            value: Any = _loads(line)
            if isinstance(value, dict):
                yield from _unwrapped(cast(Body, value), f"line {number}")
            else:
                why = str(value) if isinstance(value, Exception) else "no JSON object"
                yield Item(
                    f"line {number}", {}, f"not JSON: {why}" if why != "no JSON object" else why
                )
        number += 1


def _lines(first: bytes, second: bytes, file: IO[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from file


def _loads(text: bytes) -> Any:
    """A JSON value, or the error of a text that is none."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"its byte {error.start + 1} is no UTF-8: save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return error


def _of_value(value: Any, place: str = "") -> Iterator[Item]:
    if isinstance(value, Mapping):
        yield from _unwrapped(cast(Body, value), place or "the file")
        return
    for number, each in enumerate(
        cast(list[Any], value) if isinstance(value, list) else [value], 1
    ):
        where = f"item {number}"
        if isinstance(each, Mapping):
            yield from _unwrapped(cast(Body, each), where)
        else:
            kind = next((name for types, name in KINDS if isinstance(each, types)), "a number")
            yield Item(where, {}, f"{kind}, no JSON object")


def _unwrapped(body: Body, place: str) -> Iterator[Item]:
    """An object, or the objects of a list that it wraps."""
    if inspect_logs.is_log(body):
        for number, sample in enumerate(inspect_logs.samples_of(body), 1):
            yield Item(f"sample {number}", sample)
        return
    keys = [key for key in WRAPPERS if isinstance(body.get(key), list)]
    inner = cast(list[Any], body[keys[0]]) if keys else []
    if not body.keys() & {"id", "messages"} and inner and _wraps(inner):
        for number, each in enumerate(inner, 1):
            if isinstance(each, Mapping):
                yield from _unwrapped(cast(Body, each), f"{place}, {keys[0]}[{number - 1}]")
        return
    yield Item(place, body)


def _wraps(inner: list[Any]) -> bool:
    """Whether a list holds objects of their own, rather than the turns of one conversation."""
    first = cast(Body, inner[0]) if isinstance(inner[0], Mapping) else {}
    return bool(first) and not first.keys() & {"from", "role"}


def _of_parquet(path: Path) -> Iterator[Item]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingError(f"Parquet files need pyarrow: {pip_install('data')}") from error
    number = 0
    try:
        file: Any = parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                body = {key: value for key, value in row.items() if value is not None}
                yield Item(f"row {number}", json.loads(json.dumps(body, default=str)))
    except ArrowInvalid as error:
        raise UsageError(f"{path} is no whole Parquet file: {error}; export it again") from error
