"""Trajectories in SQLite: append-only, written by one thread (`reflux.graphs.traces.writer`).

Three tables. `questions` are the roots; `calls` is every step and every model call below them;
`judgements` refer to either. Nothing is rewritten: a correction is a new row.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError, from_os_error
from reflux.graphs.traces.database import (
    INDEXES,
    NODE_ENDED,
    ROOT_ENDED,
    SCHEMA,
    SCHEMA_VERSION,
    from_sqlite_error,
)
from reflux.graphs.traces.writer import Writer

ROOTS = f"""
CREATE TEMP VIEW roots AS SELECT q.*, j.kind, j.ok, j.detail
FROM questions q JOIN judgements j ON j.id = {ROOT_ENDED}
"""  # noqa: S608 - the part is a constant of ours
"""Questions that have ended, with the judgement that says how; for whoever reads."""

LAST_LINK = """
SELECT * FROM links WHERE question=:question AND path=:path AND attempt=:attempt AND number = (
  SELECT max(number) FROM links WHERE question=:question AND path=:path AND attempt=:attempt)
ORDER BY batch
"""
COPY_LINKS = """
INSERT OR IGNORE INTO links
SELECT ?, path, attempt, number, batch, asked, votes, answer, calls, tokens, created FROM links
WHERE question=? AND path=? AND attempt=?
"""
DISPUTED_LINKS = """
SELECT count(DISTINCT number) FROM links
WHERE question=:question AND path=:path AND attempt=:attempt AND votes LIKE '[[%'
"""
SPENT_ON_LINKS = """
SELECT coalesce(sum(calls), 0), coalesce(sum(tokens), 0) FROM links
WHERE question=:question AND path=:path AND attempt=:attempt
"""


@dataclass(frozen=True)
class CallKey:
    """Where in which tree a call stands. No two successful calls share one."""

    question: str
    """Id of the root question."""
    path: str
    """Node: one `/attempt.step.index` for each level below the root, which is empty."""
    role: str
    step: int = 0
    attempt: int = 0
    vote: int = 0


@dataclass(frozen=True)
class LinkKey:
    """A chain: its question's place in its tree, and the number of its retry."""

    question: str
    path: str
    attempt: int = 0


def _columns(values: Mapping[str, Any]) -> tuple[str, str]:
    return ", ".join(values), ", ".join("?" for _ in values)


class TraceStore:
    """The trajectories of one run folder. Reads are direct; writes go through one thread."""

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            UsageError: written by another version, not a trace file, or not to be written.
            RefluxError: the disk is full.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reader = self._connect()
        except OSError as error:
            raise from_os_error(error) from error
        except sqlite3.Error as error:
            raise from_sqlite_error(path, error) from error
        try:
            self._prepare()
            self._reader.execute(ROOTS)
        except BaseException:
            self._reader.close()
            raise
        self._closed = False
        self._writer = Writer(path, self._connect())

    def _prepare(self) -> None:
        """Make the tables of a new file; an existing one must be of this version as it is."""
        try:
            tables = {row[0] for row in self._reader.execute("SELECT name FROM sqlite_master")}
            if tables and "meta" not in tables:
                raise UsageError(f"{self.path} is not a trace file; name another --run")
            if tables:
                self._check_version()
            self._reader.execute("PRAGMA journal_mode=WAL")
            self._reader.executescript(SCHEMA)
            self._reader.executescript(INDEXES)
            self._reader.execute(
                "INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),)
            )
            self._reader.commit()
            self._check_version()
        except sqlite3.Error as error:
            raise from_sqlite_error(self.path, error) from error

    def _check_version(self) -> None:
        found = self._reader.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
        if found is not None and found[0] == "1":
            raise UsageError(
                f"{self.path} was written by Reflux 0.1, and this version cannot open it: read it "
                "with Reflux 0.1, or name another --run"
            )
        if found is not None and found[0] != str(SCHEMA_VERSION):
            raise UsageError(
                f"{self.path} has trace version {found[0]}, this Reflux writes {SCHEMA_VERSION}; "
                "name another --run"
            )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    async def add_question(self, values: Mapping[str, Any]) -> None:
        """Record a root question; one that is already there stays as it is."""
        await self._insert("questions", {**values, "created": time.time()}, ignore=True)

    async def add_call(self, key: CallKey, values: Mapping[str, Any]) -> None:
        """Record a call; returns after the commit.

        Raises:
            ReplayError: a successful call stands under this key already.
        """
        await self._insert("calls", {**vars(key), **values, "created": time.time()})

    async def add_link(self, key: LinkKey, values: Mapping[str, Any]) -> None:
        """Record a batch of votes on a link of a chain; returns after the commit.

        Raises:
            ReplayError: this batch stands there already.
        """
        await self._insert("links", {**vars(key), **values})

    async def copy_links(self, source: LinkKey, target: LinkKey) -> None:
        """Give a chain the links of another, in one commit."""
        await self._put(COPY_LINKS, (target.question, *vars(source).values()))

    def last_link(self, key: LinkKey) -> list[sqlite3.Row]:
        """The batches of the last link that was begun, in order; none before the first."""
        return list(self.select(LAST_LINK, vars(key)))

    def spent_on_links(self, key: LinkKey) -> tuple[int, int]:
        """Calls and tokens of a chain so far."""
        ((calls, tokens),) = self.select(SPENT_ON_LINKS, vars(key))
        return calls, tokens

    def disputed_links(self, key: LinkKey) -> int:
        """Links of a chain whose votes did not all agree, or had one that was refused."""
        ((links,),) = self.select(DISPUTED_LINKS, vars(key))
        return links

    async def add_judgement(
        self,
        question: str,
        path: str,
        kind: str,
        ok: bool | None,
        detail: Mapping[str, Any],
        *,
        author: str = "reflux",
        key: str | None = None,
    ) -> None:
        """Record a check, a vote, an outcome or a person's word.

        With a `key`, the same judgement made again (on replay) is one row, and another one under
        the same key a row of its own: the newest counts.
        """
        body = json.dumps(detail)
        digest = hashlib.sha256(body.encode()).hexdigest()[:16]
        values = {
            "question": question,
            "path": path,
            "kind": kind,
            "ok": None if ok is None else int(ok),
            "detail": body,
            "author": author,
            "key": f"{question}{path}:{kind}:{key}:{digest}" if key is not None else None,
            "created": time.time(),
        }
        await self._insert("judgements", values, ignore=key is not None)

    def find_call(self, key: CallKey) -> sqlite3.Row | None:
        """The successful call under this key."""
        found = self.select(
            "SELECT * FROM calls WHERE question=? AND path=? AND role=? AND step=? AND attempt=?"
            " AND vote=? AND error IS NULL",
            (key.question, key.path, key.role, key.step, key.attempt, key.vote),
        )
        return next(found, None)

    def how_ended(self, question: str, path: str = "") -> dict[str, Any] | None:
        """What is recorded of how a node ended: `question`, `answer`, `status` and more; None where
        it has not, or H answered it at once."""
        found = self.select(NODE_ENDED, (question, path))
        return next((json.loads(row["detail"]) for row in found), None)

    def select(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[sqlite3.Row]:
        """Rows of a read-only query, in order.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            yield from self._reader.execute(sql, parameters)
        except sqlite3.Error as error:
            raise from_sqlite_error(self.path, error) from error

    async def _insert(self, table: str, values: Mapping[str, Any], ignore: bool = False) -> None:
        names, marks = _columns(values)
        verb = "INSERT OR IGNORE" if ignore else "INSERT"
        # Table and column names are ours; every value is bound.
        await self._put(f"{verb} INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    async def _put(self, sql: str, values: Sequence[Any]) -> None:
        if self._closed:
            raise UsageError(f"{self.path} was closed; open it again to write")
        await self._writer.put(sql, values)

    def close(self) -> None:
        """Write what is queued, and close; once more does nothing."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self._reader.close()
