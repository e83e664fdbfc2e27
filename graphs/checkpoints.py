"""LangGraph's checkpoints in an SQLite file, in JSON alone: a pickle would run what it holds."""

# pyright: reportMissingTypeStubs=false

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from graphs.database import RESTORE, of_sqlite


@asynccontextmanager
async def open_checkpoints(path: Path, damaged: str = RESTORE) -> AsyncGenerator[AsyncSqliteSaver]:
    """The checkpointer of a file, which is made where there is none; trajectories raise errors of
    their own, so what fails here as SQLite's is this file.

    Args:
        damaged: the remedy where the file is no whole database.

    Raises:
        UsageError: the file is damaged, or not to be written.
        RefluxError: the disk is full, or another process holds the file.
    """
    try:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            yield saver
    except sqlite3.Error as error:
        raise of_sqlite(path, error, damaged) from error
