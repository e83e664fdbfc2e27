"""What an SQLite file that fails means to a user: no space, no access, another process, damage."""

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agents.errors import NO_ACCESS, NO_SPACE, RefluxError, UsageError

T = TypeVar("T")
FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
CLOSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
RESTORE = "restore it, or name another --run"


def of_sqlite(path: Path, error: sqlite3.Error, damaged: str = RESTORE) -> RefluxError:
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
        raise of_sqlite(path, error) from error
    try:
        database.row_factory = sqlite3.Row
        yield database
    except sqlite3.Error as error:
        raise of_sqlite(path, error) from error
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
