"""The tables of a trace file and its indexes.

What an SQLite file that fails means to a user: no space, no access, another process, damage.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from reflux.agents.errors import NO_ACCESS, NO_SPACE, RefluxError, UsageError

SCHEMA_VERSION = 2
"""Reflux 0.1 wrote version 1."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS questions (
  id TEXT PRIMARY KEY, run TEXT, round INTEGER, system TEXT, task TEXT, split TEXT,
  text TEXT NOT NULL, created REAL NOT NULL, revises TEXT);
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
  vote INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT, model_digest TEXT,
  request_digest TEXT, messages TEXT, completion TEXT, logprobs TEXT, finish_reason TEXT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
  sampling TEXT, cached INTEGER NOT NULL, retries TEXT, error TEXT, created REAL NOT NULL,
  tool_calls TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS call_key
  ON calls (question, path, role, step, attempt, vote) WHERE error IS NULL;
CREATE TABLE IF NOT EXISTS judgements (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, kind TEXT NOT NULL, ok INTEGER, detail TEXT NOT NULL, author TEXT NOT NULL,
  key TEXT UNIQUE, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS links (
  question TEXT NOT NULL, path TEXT NOT NULL, attempt INTEGER NOT NULL, number INTEGER NOT NULL,
  batch INTEGER NOT NULL, asked TEXT, votes TEXT NOT NULL, answer TEXT, calls INTEGER NOT NULL,
  tokens INTEGER NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (question, path, attempt, number, batch)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS judged ON judgements (question, path, kind);
"""
DISPUTED = (
    "kind IN ('direct', 'outcome') AND (detail ->> 'status' = 'rejected'"
    " OR json_array_length(detail, '$.tally') > 1 OR detail ->> 'disagreement' > 0)"
)
"""SQL: of a judgement, that copies, experts or a check did not agree with its answer."""
HOW_IT_ENDED = "kind IN ('outcome', 'direct') ORDER BY kind = 'outcome' DESC, id DESC LIMIT 1"
"""SQL: of the judgements of one node, the one that says how it ended."""
ROOT_ENDED = f"(SELECT id FROM judgements WHERE question = q.id AND path = '' AND {HOW_IT_ENDED})"  # noqa: S608
"""SQL: its id, for the root `q` of `questions`."""
NODE_ENDED = f"SELECT detail FROM judgements WHERE question=? AND path=? AND {HOW_IT_ENDED}"  # noqa: S608
STOPPED = (
    "EXISTS (SELECT 1 FROM judgements s"
    " WHERE s.question = q.id AND s.path = '' AND s.kind = 'stopped')"
)
"""SQL: of the root `q`, that it was stopped at some time; see `reflux.graphs.traces.review`."""
BY_HUMANS = "kind IN ('verdict', 'override')"
INDEXES = f"""
CREATE INDEX IF NOT EXISTS revised ON questions (revises) WHERE revises IS NOT NULL;
CREATE INDEX IF NOT EXISTS deferred ON judgements (id) WHERE kind = 'deferred';
CREATE INDEX IF NOT EXISTS disputed ON judgements (id) WHERE {DISPUTED};
CREATE INDEX IF NOT EXISTS reviewed ON judgements (question, path) WHERE {BY_HUMANS};
"""


T = TypeVar("T")
FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
CLOSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
RESTORE = "restore it, or name another --run"


def from_sqlite_error(path: Path, error: sqlite3.Error, damaged: str = RESTORE) -> RefluxError:
    """The error to raise; `damaged` is the remedy where the file is no whole database."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # The rest of it is a finer cause.
    if code in FULL:
        return RefluxError(f"{path} cannot be written: {error}; {NO_SPACE}")
    if code in CLOSED:
        return UsageError(f"{path} cannot be opened: {error}; {NO_ACCESS}")
    if code in BUSY:
        return RefluxError(f"another process holds {path}: {error}; wait for it, then go on")
    return UsageError(f"{path} is not a whole database: {error}; {damaged}")


class Rows(Protocol):
    """Where rows are read from: the store itself, or a `Reader`."""

    def select(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[sqlite3.Row]:
        """Rows of a read-only query, in order."""
        ...


@dataclass(frozen=True)
class Reader:
    """Rows of a connection of one's own (`reading`), so that a thread can read much."""

    database: sqlite3.Connection

    def select(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[sqlite3.Row]:
        """Rows of a read-only query, in order."""
        yield from self.database.execute(sql, parameters)


@contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection]:
    """A connection that only reads, for the length of a block: of a thread of its own, if need be.

    Raises:
        UsageError: the file is damaged, or not to be read.
    """
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error) from error
    try:
        database.row_factory = sqlite3.Row
        yield database
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error) from error
    finally:
        database.close()


async def read_apart(path: Path, read: Callable[[Rows], T]) -> T:
    """What `read` makes of the rows, in a thread: what reads much keeps no other answer waiting.

    Raises:
        UsageError: the file is damaged, or not to be read.
    """

    def there() -> T:
        with reading(path) as database:
            return read(Reader(database))

    return await asyncio.to_thread(there)
