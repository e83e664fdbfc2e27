"""SQLite of trace files: tables, read-only connections, the writer thread, and error messages."""

import asyncio
import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from reflux.agents.errors import NO_ACCESS, NO_SPACE, RefluxError, ReplayError, UsageError

SCHEMA_VERSION = 2
"""Reflux 0.1 wrote version 1."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS questions (
  id TEXT PRIMARY KEY, run TEXT, round INTEGER, system TEXT, task TEXT, split TEXT,
  text TEXT NOT NULL, created REAL NOT NULL, revises TEXT, source TEXT, about TEXT);
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, question TEXT NOT NULL REFERENCES questions(id),
  path TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
  vote INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT, model_digest TEXT,
  request_digest TEXT, messages TEXT, completion TEXT, logprobs TEXT, finish_reason TEXT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
  sampling TEXT, cached INTEGER NOT NULL, retries TEXT, error TEXT, created REAL NOT NULL,
  tool_calls TEXT, reasoning TEXT, notes TEXT, tools TEXT);
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
CREATE INDEX IF NOT EXISTS called ON calls (question);
CREATE TABLE IF NOT EXISTS conversations (
  digest BLOB NOT NULL, question TEXT NOT NULL, step INTEGER NOT NULL, continued INTEGER NOT NULL,
  created REAL NOT NULL, PRIMARY KEY (digest, question)) WITHOUT ROWID;
"""
"""`questions.source` is NULL for our own trees; see `reflux.graphs.traces.trajectories`. Of
`conversations`, see `reflux.graphs.traces.recording.prefixes`."""
DISPUTED = (
    "kind IN ('direct', 'outcome') AND (detail ->> 'status' = 'rejected'"
    " OR json_array_length(detail, '$.tally') > 1 OR detail ->> 'disagreement' > 0)"
)
"""SQL: copies, experts or a check disagree with the answer of a judgement."""
HOW_IT_ENDED = "kind IN ('outcome', 'direct') ORDER BY kind = 'outcome' DESC, id DESC LIMIT 1"
"""SQL: of the judgements of one node, the one that states how it ended."""
ROOT_ENDED = f"(SELECT id FROM judgements WHERE question = q.id AND path = '' AND {HOW_IT_ENDED})"  # noqa: S608
"""SQL: id of the judgement that states how the root `q` of `questions` ended."""
NODE_ENDED = f"SELECT detail FROM judgements WHERE question=? AND path=? AND {HOW_IT_ENDED}"  # noqa: S608
STOPPED = (
    "EXISTS (SELECT 1 FROM judgements s"
    " WHERE s.question = q.id AND s.path = '' AND s.kind = 'stopped')"
)
"""SQL: the root `q` was stopped before its end; see `reflux.graphs.traces.review`."""
BY_HUMANS = "kind IN ('verdict', 'override')"
ADDED = {"calls": ("reasoning", "notes", "tools"), "questions": ("source", "about")}
"""Columns, by table, that the first files of this version lack."""
INDEXES = f"""
CREATE INDEX IF NOT EXISTS revised ON questions (revises) WHERE revises IS NOT NULL;
CREATE INDEX IF NOT EXISTS deferred ON judgements (id) WHERE kind = 'deferred';
CREATE INDEX IF NOT EXISTS disputed ON judgements (id) WHERE {DISPUTED};
CREATE INDEX IF NOT EXISTS reviewed ON judgements (question, path) WHERE {BY_HUMANS};
CREATE INDEX IF NOT EXISTS opinions ON judgements (question, path) WHERE kind = 'opinion';
"""
BATCH = 512
"""Maximum rows of one commit."""

T = TypeVar("T")
FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
CLOSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
RESTORE = "restore it, or name another --run"


def from_sqlite_error(path: Path, error: sqlite3.Error, damaged: str = RESTORE) -> RefluxError:
    """The error to raise; `damaged` is the remedy for a damaged database."""
    code = _code(error)
    if code in FULL:
        return RefluxError(f"{path} cannot be written: {error}; {NO_SPACE}")
    if is_closed(error):
        return UsageError(f"{path} cannot be opened: {error}; {NO_ACCESS}")
    if code in BUSY:
        return RefluxError(
            f"another process holds {path}: {error}; wait for it to end, then repeat the command"
        )
    return UsageError(f"{path} is not a whole database: {error}; {damaged}")


def is_closed(error: sqlite3.Error) -> bool:
    """Whether the file or its folder must not be written."""
    return _code(error) in CLOSED


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # Higher bits are a finer cause.


class Rows:
    """A connection to read from: the store itself, or a separate one for long reads."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        connection.row_factory = sqlite3.Row

    def how_ended(self, question: str, path: str = "") -> dict[str, Any] | None:
        """The judgement that ended a node: `question`, `answer`, `status` and more; None where it
        has not ended, or the overseer answered it at once."""
        rows = self.select(NODE_ENDED, (question, path))
        return next((json.loads(row["detail"]) for row in rows), None)

    def select(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[sqlite3.Row]:
        """Rows of a read-only query, in order.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            yield from self.connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise from_sqlite_error(self.path, error) from error


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, not even beside the file.

    Raises:
        sqlite3.Error: the file is damaged or unreadable.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.Error as error:
        connection.close()
        if not is_closed(error):
            raise
        # A read-only folder, in which SQLite cannot share memory with a writer: there is none.
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, check_same_thread=False)
    for table, columns in missing_columns(connection):
        if columns:
            nulls = ", ".join(f"NULL AS {column}" for column in columns)
            body = f"SELECT rowid AS rowid, *, {nulls} FROM main.{table}"  # noqa: S608
            connection.execute(f"CREATE TEMP VIEW {table} AS {body}")
    return connection


def missing_columns(connection: sqlite3.Connection) -> list[tuple[str, list[str]]]:
    """(table, its `ADDED` columns that it lacks) of each table that is there."""
    missing: list[tuple[str, list[str]]] = []
    for table, added in ADDED.items():
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        missing.append((table, [each for each in added if each not in columns] if columns else []))
    return missing


@contextmanager
def reading(path: Path) -> Generator[Rows]:
    """A read-only connection for the length of a block, in any thread.

    Raises:
        UsageError: the file is damaged or unreadable.
    """
    try:
        database = read_only(path)
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error) from error
    with closing(database):
        yield Rows(path, database)


async def read_apart(path: Path, read: Callable[[Rows], T]) -> T:
    """The result of `read`, run in a thread so that long reads don't block the event loop.

    Raises:
        UsageError: the file is damaged or unreadable.
    """

    def run() -> T:
        with reading(path) as rows:
            return read(rows)

    return await asyncio.to_thread(run)


Statement = tuple[str, Sequence[Any] | Mapping[str, Any]]
"""SQL and the values of its parameters."""


class Writer:
    """A thread that writes rows in order, many to a commit; `put` returns after the commit."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """The thread takes over the `connection`; `path` is for error messages."""
        self._path = path
        self._queue: SimpleQueue[_Row | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._write, args=(connection,), name="trace-writer", daemon=True
        )
        self._thread.start()

    async def put(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement; returns after its commit.

        Raises:
            ReplayError: a row with this key exists.
            UsageError: SQLite cannot hold the values, or the file is damaged.
            RefluxError: the disk is full, or another process holds the file.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Row(((sql, values),), done))
        await done

    def submit(self, statements: Sequence[Statement]) -> "Future[None]":
        """Execute statements all or none, from any thread; the future is done after their commit,
        and raises as `put` does."""
        done: Future[None] = Future()
        self._queue.put(_Row(statements, done))
        return done

    def close(self) -> None:
        """Write what is queued, and end."""
        self._queue.put(None)
        self._thread.join()

    def _write(self, connection: sqlite3.Connection) -> None:
        row = self._queue.get()
        while row is not None:
            batch = [row]
            while len(batch) < BATCH and not self._queue.empty():
                if (row := self._queue.get()) is None:
                    break
                batch.append(row)
            self._commit(connection, batch)
            row = row and self._queue.get()
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: Sequence["_Row"]) -> None:
        """Insert a batch, commit it and resolve its futures; a row that fails doesn't affect the
        others."""
        failures: dict[int, Exception] = {}

        def roll_back(count: int, error: sqlite3.Error) -> None:
            connection.rollback()
            for index in range(count):
                failures.setdefault(index, from_sqlite_error(self._path, error))

        for index, row in enumerate(batch):
            try:
                _execute(connection, row.statements)
            except sqlite3.IntegrityError as error:
                failures[index] = ReplayError(
                    f"a row with this key is already recorded ({error}): another process works on "
                    "the same questions in this folder; wait for it, then repeat the command"
                )
            except sqlite3.Error as error:
                # SQLite may have rolled back by itself, so the rows before this one are lost, too.
                roll_back(index + 1, error)
            except (ValueError, OverflowError) as error:
                failures[index] = UsageError(f"a row that SQLite cannot hold: {error}")
        try:
            connection.commit()
        except sqlite3.Error as error:
            roll_back(len(batch), error)
        # One wake-up for each event loop: waking one is expensive.
        loops: defaultdict[asyncio.AbstractEventLoop, list[_Resolved]] = defaultdict(list)
        for index, row in enumerate(batch):
            if isinstance(row.done, asyncio.Future):
                loops[row.done.get_loop()].append((row.done, failures.get(index)))
            else:
                _resolve([(row.done, failures.get(index))])
        for loop, resolved in loops.items():
            with suppress(RuntimeError):  # The loop is closed: nothing waits any more.
                loop.call_soon_threadsafe(_resolve, resolved)


def _execute(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    """Execute statements, all or none."""
    if len(statements) == 1:
        connection.execute(*statements[0])
        return
    if not connection.in_transaction:
        connection.execute("BEGIN")
    connection.execute("SAVEPOINT whole")
    try:
        for statement in statements:
            connection.execute(*statement)
    except BaseException:
        if connection.in_transaction:  # A full disk ends the transaction by itself.
            connection.execute("ROLLBACK TO whole")
        raise
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE whole")


class _Row(NamedTuple):
    statements: Sequence[Statement]
    done: "asyncio.Future[None] | Future[None]"


_Resolved = tuple["asyncio.Future[None] | Future[None]", Exception | None]


def _resolve(resolved: Sequence[_Resolved]) -> None:
    for done, error in resolved:
        if not done.cancelled():
            done.set_exception(error) if error else done.set_result(None)
