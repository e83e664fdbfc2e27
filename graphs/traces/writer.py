"""One thread that writes to an SQLite file, many rows a commit."""

import asyncio
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from reflux.agents.errors import ReplayError, UsageError
from reflux.graphs.traces.database import from_sqlite_error

BATCH = 512
"""Most rows in one commit."""


class Writer:
    """Writes what any event loop puts, in order; whoever puts a row waits for its commit."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """
        Args:
            path: of the file, for what is said of it.
            connection: the thread's own from now on.
        """
        self._path = path
        self._queue: SimpleQueue[_Row | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._write, args=(connection,), name="trace-writer", daemon=True
        )
        self._thread.start()

    async def put(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement; returns after its commit.

        Raises:
            ReplayError: a row with this key is there already.
            UsageError: SQLite cannot hold the values, or the file is damaged.
            RefluxError: the disk is full, or another process holds the file.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Row(sql, values, done))
        await done

    def close(self) -> None:
        """Write what is queued, and end."""
        self._queue.put(None)
        self._thread.join()

    def _write(self, connection: sqlite3.Connection) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            stop = False
            while len(batch) < BATCH and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    stop = True
                    break
                batch.append(item)
            self._commit(connection, batch)
            if stop:
                break
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: Sequence["_Row"]) -> None:
        """Insert a batch and commit it; a row that fails does not take the others with it."""
        failures: dict[int, Exception] = {}

        def lose(before: int, error: sqlite3.Error) -> None:
            connection.rollback()
            for index in range(before):
                failures.setdefault(index, from_sqlite_error(self._path, error))

        for index, row in enumerate(batch):
            try:
                connection.execute(row.sql, row.values)
            except sqlite3.IntegrityError as error:
                message = (
                    f"a row with this key is recorded already ({error}): another process works on "
                    "the same questions in this folder; wait for it, then give the command again"
                )
                failures[index] = ReplayError(message)
            except sqlite3.Error as error:
                # SQLite may have rolled back on its own; what was to be kept is not there.
                lose(index + 1, error)
            except (ValueError, OverflowError) as error:
                failures[index] = UsageError(f"a row that SQLite cannot hold: {error}")
        try:
            connection.commit()
        except sqlite3.Error as error:
            lose(len(batch), error)
        _tell(batch, failures)


class _Row(NamedTuple):
    """A row on its way, and who waits for its commit."""

    sql: str
    values: Sequence[Any]
    done: asyncio.Future[None]


def _tell(batch: Sequence[_Row], failures: Mapping[int, Exception]) -> None:
    """Wake those who wait: each event loop once, because to wake one from a thread is dear."""
    waiting: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], Exception | None]]]
    waiting = {}
    for index, row in enumerate(batch):
        waiting.setdefault(row.done.get_loop(), []).append((row.done, failures.get(index)))
    for loop, results in waiting.items():
        with suppress(RuntimeError):  # The loop was closed: nobody waits any more.
            loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for done, error in results:
        if done.cancelled():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
