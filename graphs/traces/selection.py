"""Recorded calls by an expression of SQL, on a view that reads nothing else.

    score >= 0.8 AND node = 'plan'
    status = 'ok' AND tools LIKE '%search%' AND created > unixepoch('2026-11-01')

The view has one row for each model call that got a reply, with the columns of `COLUMNS`. Of an
edited trajectory it holds the newest revision, with the original's calls where another program
made them. The expression runs on a read-only connection whose authorizer allows functions and the
view's columns only.
"""

import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError
from reflux.graphs.traces.database import ROOT_ENDED, STOPPED, from_sqlite_error, read_only
from reflux.graphs.traces.revisions import CALLS_OF, NEWEST
from reflux.graphs.traces.trajectories import UNFINISHED

_SCORES = "FROM judgements f WHERE f.question = q.id AND f.kind = 'feedback'"
_OF_CALL = f"{_SCORES} AND f.path IN ('', c.path)"
_ENDED = f"FROM judgements j WHERE j.id = {ROOT_ENDED}"
_LAST = (
    "FROM judgements v WHERE v.question = q.id AND v.kind = 'verdict' AND NOT EXISTS"
    " (SELECT 1 FROM judgements w WHERE w.question = q.id AND w.path = v.path"
    " AND w.kind = 'verdict' AND w.id > v.id)"
)
"""The newest verdict on each node."""
_VERDICT = (
    f"CASE WHEN EXISTS (SELECT 1 {_LAST} AND v.ok = 0) THEN 0"
    f" ELSE (SELECT v.ok {_LAST} AND v.path = '') END"
)
COLUMNS = {
    "trajectory": ("q.id", "Its id."),
    "source": ("coalesce(q.source, 'reflux')", "`url`, `callback`, `import:…`; `reflux` for own."),
    "node": ("c.role", "The call's node; of our trees `overseer`, `answer`, `critic`, …"),
    "path": ("c.path", "Where in a tree the call was made; empty where flat."),
    "step": ("c.step", "Number of the call in its trajectory."),
    "model": ("c.model", "As the request names it."),
    "score": (f"(SELECT avg(f.detail ->> 'score') {_OF_CALL})", "Mean of all scores; NULL: none."),
    "feedback": (
        f"(SELECT group_concat(f.detail ->> 'comment', char(10)) {_OF_CALL})",
        "Comments, one a line.",
    ),
    "approved": (f"({_VERDICT})", "1 or 0 (or a node of it) as a human judged it; else NULL."),
    "status": (
        f"coalesce((SELECT j.detail ->> 'status' {_ENDED}),"
        f" CASE WHEN {STOPPED} THEN 'stopped' ELSE '{UNFINISHED}' END)",
        "How the trajectory ended: `ok`, `unchecked`, …, `unfinished`.",
    ),
    "outcome": (f"(SELECT j.detail ->> 'answer' {_ENDED})", "The trajectory's last answer."),
    "question": ("q.text", "What the trajectory is about."),
    "reply": ("c.completion", "Text of the call's reply."),
    "tools": (
        "(SELECT group_concat(t.value ->> 1, ' ') FROM json_each(coalesce(c.tool_calls, '[]')) t)",
        "Names of the tools that the reply calls; NULL: none.",
    ),
    "tokens": ("c.prompt_tokens + c.completion_tokens", "Of the call, prompt and reply."),
    "prompt_tokens": ("c.prompt_tokens", "Of the prompt."),
    "completion_tokens": ("c.completion_tokens", "Of the reply."),
    "seconds": ("c.seconds", "Duration of the call."),
    "finish_reason": ("c.finish_reason", "`stop`, `tool_calls`, `length`, …"),
    "created": ("c.created", "Time of the call in Unix seconds."),
    "tags": ("q.about ->> 'tags'", "Of the trajectory, as JSON."),
    "name": ("q.about ->> 'name'", "Of the trajectory."),
    "metadata": ("q.about ->> 'metadata'", "As JSON: `metadata ->> 'user' = 'ann'`."),
    "system": ("q.system", "Of our own trees: who answered."),
    "split": ("q.split", "Of our own trees: `train`, `asked`, …; else `recorded`."),
    "task": ("q.task", "Of our own trees."),
    "round": ("q.round", "Of our own trees; otherwise -1."),
}
"""By name: the SQL, and what it holds."""
VIEW = "recorded_calls"
REPLAY = "replay"
"""Split of calls that an evaluation asked again, which the view leaves out."""
_HIDDEN = {"call": "c.id", "begun": "q.created"}
"""What the rows are ordered and read by."""
_BODY = f"""
CREATE TEMP VIEW {VIEW} AS
SELECT {", ".join(f"{sql} AS {name}" for name, (sql, _) in COLUMNS.items())},
  {", ".join(f"{sql} AS _{name}" for name, sql in _HIDDEN.items())}
FROM questions q JOIN calls c ON c.question = {CALLS_OF}
WHERE c.kind = 'model' AND c.error IS NULL AND q.split IS NOT '{REPLAY}' AND {NEWEST}
"""  # noqa: S608 - every part is a constant of ours
_ABOUT = f"SELECT source, status, approved, split FROM {VIEW} WHERE _call = ?"  # noqa: S608
_FORBIDDEN = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")


@dataclass(frozen=True)
class Selected:
    """A trajectory with calls that an expression selects."""

    id: str
    source: str
    status: str
    approved: bool | None
    """By a human; None where nobody has judged it."""
    split: str
    calls: frozenset[int]
    """Ids of those that are selected."""


class Selection:
    """The calls of a trace file that an expression selects."""

    def __init__(self, path: Path, connection: sqlite3.Connection, where: str) -> None:
        self.path, self.where = path, where
        self._connection = connection

    def trajectories(self) -> Iterator[Selected]:
        """Every trajectory with a selected call, oldest first; one is held at a time."""
        rows = self._select("trajectory, _call", "ORDER BY _begun, 1, 2")
        for id, group in groupby(rows, key=lambda row: row[0]):
            calls = frozenset(call for _, call in group)
            (about,) = self._connection.execute(_ABOUT, (min(calls),))
            source, status, approved, split = about
            yield Selected(
                id, source, status, None if approved is None else bool(approved), split, calls
            )

    def count(self, *columns: str) -> list[tuple[Any, ...]]:
        """(values of the columns, calls, trajectories), most calls first."""
        names = ", ".join(columns)
        return list(
            self._select(
                f"{names}, count(*), count(DISTINCT trajectory)",
                f"GROUP BY {names} ORDER BY {len(columns) + 1} DESC",
            )
        )

    def _select(self, columns: str, order: str) -> Iterator[tuple[Any, ...]]:
        # The user's own expression, as the authorizer lets it.
        sql = f"SELECT {columns} FROM {VIEW} WHERE ({self.where}\n) {order}"  # noqa: S608
        try:
            # Not `yield from`, which closes the cursor.
            for row in self._connection.execute(sql):  # noqa: UP028
                yield row
        except sqlite3.DatabaseError as error:
            raise _wrong(self.path, self.where, error) from error


@contextmanager
def selecting(path: Path, where: str = "1") -> Generator[Selection]:
    """The calls that an expression selects, for the length of a block.

    Raises:
        UsageError: the expression has an error, names an unknown column, or asks for more than the
            view; the file is damaged or unreadable.
    """
    check_texts(where)
    try:
        database = read_only(path)
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error) from error
    with closing(database):
        database.execute(_BODY)
        database.set_authorizer(_authorize)
        selection = Selection(path, database, where.strip() or "1")
        for _ in selection._select("1", "LIMIT 0"):
            pass
        yield selection


def check_texts(where: str) -> None:
    """Check that only columns stand in double quotes, as SQLite takes anything else for a text.

    Raises:
        UsageError: something else does.
    """
    outside = re.sub(r"'(?:[^']|'')*'", "", where)
    for name in re.findall(r'"([^"]*)"', outside):
        if name not in COLUMNS:
            raise UsageError(
                f"--where {where!r}: \"{name}\" is no column; put texts in single quotes: '{name}'"
            )


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, inside: str | None
) -> int:
    """Allow the view's columns, what the view itself reads, and functions that touch no file."""
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ:
        allowed = VIEW in (first, inside)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _FORBIDDEN:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _wrong(path: Path, where: str, error: sqlite3.DatabaseError) -> Exception:
    """The error to raise for one of SQLite's."""
    text = str(error)
    if column := re.match(r"no such column: (.*)", text):
        return UsageError(
            f"--where {where!r}: there is no column {column[1]}; there are {', '.join(COLUMNS)}"
        )
    if "prohibited" in text or "not authorized" in text:
        return UsageError(f"--where {where!r}: {text}: it may read the columns of a call only")
    if isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError | sqlite3.Warning):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF == sqlite3.SQLITE_ERROR:
            return UsageError(f"--where {where!r}: {text}; it takes one expression of SQL")
    return from_sqlite_error(path, error)
