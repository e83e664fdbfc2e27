"""Trajectories in SQLite: append-only, so a correction is a new row.

`questions` are the roots; `calls` are the steps, model calls and tool calls below them; `links` are
the votes of chains; `judgements` refer to all of them.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError, from_os_error
from reflux.graphs.traces.database import (
    INDEXES,
    ROOT_ENDED,
    SCHEMA,
    SCHEMA_VERSION,
    Rows,
    Statement,
    Writer,
    from_sqlite_error,
    is_closed,
    missing_columns,
    read_only,
)
from reflux.graphs.voting.voting import Vote

ROOTS = f"""
CREATE TEMP VIEW roots AS SELECT q.*, j.kind, j.ok, j.detail
FROM questions q JOIN judgements j ON j.id = {ROOT_ENDED}
"""  # noqa: S608 - the part is a constant of ours
"""Questions that have ended, with the judgement that states how."""

COPY_LINKS = """
INSERT OR IGNORE INTO links
SELECT ?, path, attempt, number, batch, asked, votes, answer, calls, tokens, created FROM links
WHERE question=? AND path=? AND attempt=?
"""
CHAINS = """
SELECT l.path, l.attempt, count(DISTINCT l.number) AS links, sum(l.calls) AS calls,
  sum(l.tokens) AS tokens, count(DISTINCT CASE WHEN l.batch > 0 THEN l.number END) AS doubtful,
  max(l.number) AS last,
  (SELECT detail ->> 'model' FROM judgements j WHERE j.question = l.question AND j.path = l.path
   AND j.kind = 'chain_begun' ORDER BY j.id DESC LIMIT 1) AS model
FROM links l WHERE l.question = ? GROUP BY l.path, l.attempt ORDER BY l.path, l.attempt
"""
LINKS = """
SELECT path, attempt, number, batch, asked, votes, answer FROM links
WHERE question = ? AND path = ? AND attempt = ? AND number >= ? ORDER BY number, batch
"""
CHAIN_SO_FAR = """
SELECT coalesce(sum(calls), 0) AS calls, coalesce(sum(tokens), 0) AS tokens, max(number) AS last,
  count(DISTINCT CASE WHEN votes LIKE '[[%' THEN number END) AS disputed FROM links
WHERE question=:question AND path=:path AND attempt=:attempt
"""


@dataclass(frozen=True)
class CallKey:
    """The position of a call in a tree, unique among successful calls."""

    question: str
    """Id of the root question."""
    path: str
    """Node: one `/attempt.step.index` for each level below the root, whose path is empty."""
    role: str
    step: int = 0
    attempt: int = 0
    vote: int = 0


@dataclass(frozen=True)
class LinkKey:
    """A chain: the node of its question, and the number of the retry."""

    question: str
    path: str
    attempt: int = 0


class TraceStore(Rows):
    """The trajectories of one run folder. Reads are direct; one thread writes."""

    def __init__(self, path: Path) -> None:
        """Open or create. A file that must not be written can be read; `add_…` refuses.

        Raises:
            UsageError: written by another version, not a trace file, or not readable.
            RefluxError: the disk is full.
        """
        self.path = path
        connect = self._connect
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(connect(), writable=True)
            except sqlite3.Error as error:
                if not is_closed(error) or not path.is_file():
                    raise
                connect = partial(read_only, path)
                self._open(connect(), writable=False)
            self._writer = Writer(path, connect())
        except OSError as error:
            raise from_os_error(error) from error
        except sqlite3.Error as error:
            raise from_sqlite_error(path, error) from error
        self._closed = False

    def _open(self, connection: sqlite3.Connection, writable: bool) -> None:
        """Create the tables of a new file; an existing file must be of this version."""
        super().__init__(self.path, connection)
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            if tables and "meta" not in tables:
                raise UsageError(f"{self.path} is not a trace file; name another --run")
            if tables:
                self._check_version()
            if writable:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(SCHEMA + INDEXES)
                for table, columns in missing_columns(connection):
                    for column in columns:
                        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} TEXT")
                version = ("schema_version", str(SCHEMA_VERSION))
                connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", version)
                connection.commit()
            self._check_version()
            connection.execute(ROOTS)
        except BaseException:
            connection.close()
            raise

    def _check_version(self) -> None:
        for (version,) in self.select("SELECT value FROM meta WHERE key='schema_version'"):
            if version == "1":
                raise UsageError(
                    f"{self.path} was written by Reflux 0.1, and this version cannot open it: read "
                    "it with Reflux 0.1, or name another --run"
                )
            if version != str(SCHEMA_VERSION):
                raise UsageError(
                    f"{self.path} has trace version {version}, this Reflux writes {SCHEMA_VERSION};"
                    " name another --run"
                )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    async def add_question(self, values: Mapping[str, Any]) -> None:
        """Record a root question, unless it is recorded."""
        await self._insert("questions", {**values, "created": time.time()}, ignore=True)

    async def add_call(self, key: CallKey, values: Mapping[str, Any]) -> None:
        """Record a call; returns after the commit.

        Raises:
            ReplayError: a successful call has this key.
        """
        await self._insert("calls", {**vars(key), **values, "created": time.time()})

    async def add_link(self, key: LinkKey, values: Mapping[str, Any]) -> None:
        """Record a batch of votes on a link of a chain; returns after the commit.

        Raises:
            ReplayError: this batch is recorded.
        """
        await self._insert("links", {**vars(key), **values})

    async def copy_links(self, source: LinkKey, target: LinkKey) -> None:
        """Copy the links of a chain to another, in one commit."""
        await self._put(COPY_LINKS, (target.question, *vars(source).values()))

    def chain_so_far(self, key: LinkKey) -> sqlite3.Row:
        """`calls` and `tokens` of a chain, the number of its `last` link, None before the first,
        and how many links are `disputed`: their votes disagreed, or one was refused."""
        return next(self.select(CHAIN_SO_FAR, vars(key)))

    def batches(self, key: LinkKey, begin: int) -> Iterator[sqlite3.Row]:
        """The batches of votes on the links of a chain from number `begin` on, in order."""
        return self.select(LINKS, (*vars(key).values(), begin))

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
        """Record a check, a vote, an outcome or a human's judgement.

        With a `key`, a judgement that a replay repeats is one row; a different one under the same
        key is a second row, and the newest counts.
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
            "key": None if key is None else f"{question}{path}:{kind}:{key}:{digest}",
            "created": time.time(),
        }
        await self._insert("judgements", values, ignore=key is not None)

    def find_call(self, key: CallKey) -> sqlite3.Row | None:
        """The successful call under this key."""
        rows = self.select(
            "SELECT * FROM calls WHERE question=:question AND path=:path AND role=:role"
            " AND step=:step AND attempt=:attempt AND vote=:vote AND error IS NULL",
            vars(key),
        )
        return next(rows, None)

    async def _insert(self, table: str, values: Mapping[str, Any], ignore: bool = False) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        verb = "INSERT OR IGNORE" if ignore else "INSERT"
        # Table and column names are ours; every value is bound.
        await self._put(f"{verb} INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    def submit(self, statements: Sequence[Statement]) -> "Future[None]":
        """Execute statements all or none, from any thread; the future is done after the commit.

        Raises:
            UsageError: the store is closed.
        """
        if self._closed:
            raise UsageError(f"{self.path} was closed; open it again to write")
        return self._writer.submit(statements)

    async def _put(self, sql: str, values: Sequence[Any]) -> None:
        if self._closed:
            raise UsageError(f"{self.path} was closed; open it again to write")
        await self._writer.put(sql, values)

    def close(self) -> None:
        """Write what is queued, and close; closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self.connection.close()


@dataclass(frozen=True)
class Link:
    """One question of a chain."""

    number: int
    question: str
    votes: tuple[tuple[str, bool], ...]
    """(answer, whether it counted) of each vote, in the order in which they were asked."""
    answer: str | None
    """None while no vote is accepted."""


def links(
    store: Rows, question: str, path: str = "", attempt: int = 0, begin: int = 0
) -> Iterator[Link]:
    """The links of one chain from number `begin` on, in constant memory."""
    rows = store.select(LINKS, (question, path, attempt, begin))
    for number, group in groupby(rows, key=lambda row: row["number"]):
        batches = list(group)
        votes = tuple((text, ok) for row in batches for text, ok, _ in read_votes(row["votes"]))
        yield Link(number, batches[0]["asked"], votes, batches[-1]["answer"])


def write_votes(votes: Sequence[Vote]) -> str:
    """A batch of votes as JSON: `[text, n]` where all agree, otherwise `[text, whether it counts,
    reason]` of each."""
    first = votes[0]
    if first.ok and all(vote.ok and vote.text == first.text for vote in votes):
        return json.dumps([first.text, len(votes)])
    return json.dumps([[vote.text, vote.ok, vote.flag] for vote in votes])


def read_votes(text: str) -> list[tuple[str, bool, str]]:
    """The votes of a batch, in the order in which they were asked."""
    body: list[Any] = json.loads(text)
    if isinstance(body[0], str):
        return [(body[0], True, "")] * body[1]
    return [(text, ok, flag) for text, ok, flag in body]


def chains(store: Rows, question: str) -> Iterator[tuple[str, dict[str, Any], int, int, str]]:
    """(path, `reflux.graphs.traces.tree.Node.chain`, calls, tokens, model) of each attempt of each
    chain of a trajectory."""
    for row in list(store.select(CHAINS, (question,))):
        key = question, row["path"], row["attempt"]
        ends = [next(links(store, *key, begin=number)) for number in (0, row["last"])]
        first, last = ((link.question, link.answer) for link in ends)
        body = {"links": row["links"], "doubtful": row["doubtful"], "first": first, "last": last}
        yield row["path"], body, row["calls"], row["tokens"], row["model"] or ""


def last_call_id(store: TraceStore) -> int:
    """The number of the newest call on record; 0 before the first."""
    ((number,),) = store.select("SELECT coalesce(max(id), 0) FROM calls")
    return number
