"""Passages: a text cut into pieces of some 100 to 200 words, each with the lines it stands on.

Look-up in a folder of the user's documents, by words, in SQLite's full-text index (FTS5).

Text is cut into passages of some 100 to 200 words, which keep their file and lines, so that a
reply can be checked and a report can name its source. Words match by their stem, English ones
best; a passage that holds rarer words of the query, and more of them, comes first (BM25).
"""

import asyncio
import json
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.tools.protocol import ToolReply, guarded, text_argument
from reflux.agents.types import ToolSpec

FEWEST_WORDS = 100
"""A passage of so many words ends at the next blank line or heading."""
MOST_WORDS = 200
MOST_CHARS = 1_500
"""A text without spaces is cut by this."""


@dataclass(frozen=True)
class Passage:
    """A piece of a text, with its first and last line, counted from 1."""

    first: int
    last: int
    text: str


def passages(text: str) -> Iterator[Passage]:
    """Cut a text into passages, in order, of whole lines where these are short enough.

    Every word of the text is in one passage. The last of a text may be shorter than 100 words,
    as may one before a long paragraph.
    """
    held: list[tuple[int, str]] = []
    words = chars = 0
    for number, piece in _pieces(text.split("\n")):
        count = len(piece.split())
        full = words + count > MOST_WORDS or chars + len(piece) + 1 > MOST_CHARS
        if full or (words >= FEWEST_WORDS and (not count or piece.startswith("#"))):
            yield from _passage(held)
            held, words, chars = [], 0, 0
        held.append((number, piece))
        words += count
        chars += len(piece) + 1
    yield from _passage(held)


def _passage(held: list[tuple[int, str]]) -> Iterator[Passage]:
    said = [(number, piece) for number, piece in held if piece.strip()]
    if said:
        first, last = said[0][0], said[-1][0]
        lines = "\n".join(piece for number, piece in held if first <= number <= last)
        yield Passage(first, last, lines)


def _pieces(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a paragraph that is one long line comes in several pieces."""
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if len(line) < MOST_CHARS and len(line.split()) <= MOST_WORDS:
            yield number, line
            continue
        held, words = "", 0
        for word in re.findall(rf"\S{{1,{MOST_CHARS - 1}}}", line):
            if held and (words == MOST_WORDS - 50 or len(held) + len(word) + 2 > MOST_CHARS):
                yield number, held
                held, words = "", 0
            held, words = f"{held} {word}".strip(), words + 1
        yield number, held


SUFFIXES = (".txt", ".md")
MAX_FILES = 10_000
MAX_FILE_BYTES = 10 * 2**20
"""A larger file is skipped, with this as the reason."""
PASSAGES = 5
"""Passages in one reply, at most."""
QUERY_WORDS = 32
"""Different words of a query that are looked for; later ones are not."""
SECONDS = 20.0
COMMON = (
    " a an and are as at be by can did do does for from has have how i in is it me my of on or our "
    "should that the their there they this to was we were what when where which who why will with "
    "you your "
)
"""Words that say nothing about where to look; they count only where a query has no others."""
SCHEMA = """
CREATE TABLE files(name TEXT PRIMARY KEY, stamp TEXT);
CREATE VIRTUAL TABLE passages USING fts5(
    text, name UNINDEXED, first UNINDEXED, last UNINDEXED,
    tokenize = "porter unicode61 remove_diacritics 2"
);
"""


@dataclass(frozen=True)
class Found:
    """A passage that a query found."""

    source: str
    """File, from the folder down, and lines: `notes/law.md:12-20`."""
    text: str


class Documents:
    """Finds passages in the .txt and .md files under a folder.

    Links are never followed, so that nothing outside the folder is read. Each look-up first reads
    again what has changed, by time and size. `skipped` tells what was not read, and why.
    """

    spec = ToolSpec(
        "documents",
        "Look up passages in the user's own documents by words. Each comes with its file and "
        "lines: cite them.",
        json.dumps(
            {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "Words to look for"}},
                "required": ["query"],
                "additionalProperties": False,
            }
        ),
    )

    def __init__(self, folder: Path) -> None:
        """Index the folder; the index is a temporary file that goes with this object.

        Raises:
            UsageError: no folder, nothing in it that can be read, or too many files.
        """
        self._folder = folder
        self.skipped: dict[str, str] = {}
        if not folder.is_dir():
            raise UsageError(f"{str(folder)!r} is no folder; name one that holds documents")
        self._lock = threading.Lock()
        self._index = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._index.executescript(SCHEMA)
        if self.refresh() == 0:
            reasons = "; ".join(f"{name}: {why}" for name, why in [*self.skipped.items()][:5])
            raise UsageError(
                f"{str(folder)!r} holds no document that can be read ({reasons or 'no files'}); "
                f"documents are {' and '.join(SUFFIXES)} files in UTF-8"
            )

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Look up `query`, which may be any text."""
        return await guarded(self._call(arguments), SECONDS)

    async def answer(self, question: str) -> ToolReply:
        """Look up the words of the question."""
        return await guarded(self._call({"query": question}), SECONDS)

    async def _call(self, arguments: Mapping[str, Any]) -> ToolReply:
        query = text_argument(arguments, "query")
        found = await asyncio.to_thread(self.find, query)
        if not found:
            return ToolReply("no passage of the documents holds any of these words")
        return ToolReply("\n\n".join(f"[{each.source}]\n{each.text}" for each in found))

    def find(self, query: str, most: int = PASSAGES) -> list[Found]:
        """The passages that fit a query best, in order; none where no word of it occurs."""
        words = list(dict.fromkeys(re.findall(r"[^\W_]+", query.lower())))
        words = [word for word in words if f" {word} " not in COMMON] or words
        if not words:
            return []
        # Quoted, a word is never an operator of FTS5.
        match = " OR ".join(f'"{word}"' for word in words[:QUERY_WORDS])
        with self._lock:
            self._refresh()
            rows = self._index.execute(
                "SELECT name, first, last, text FROM passages WHERE passages MATCH ? "
                "ORDER BY rank, name, first LIMIT ?",
                (match, most),
            ).fetchall()
        return [Found(f"{name}:{first}-{last}", text) for name, first, last, text in rows]

    def refresh(self) -> int:
        """Read again what has changed since the last time; the number of documents there are.

        Raises:
            UsageError: more than `MAX_FILES`.
        """
        with self._lock:
            return self._refresh()

    def _refresh(self) -> int:
        self.skipped = {}
        known = dict(self._index.execute("SELECT name, stamp FROM files").fetchall())
        seen: set[str] = set()
        self._index.execute("BEGIN")
        try:
            for path, stamp in self._files():
                name = path.relative_to(self._folder).as_posix()
                if len(seen) == MAX_FILES:
                    raise UsageError(
                        f"{str(self._folder)!r} holds more than {MAX_FILES} documents; name a "
                        "folder further down"
                    )
                if known.get(name) == stamp or self._read(path, name, stamp):
                    seen.add(name)
            for name in known.keys() - seen:
                self._forget(name)
        finally:
            self._index.execute("COMMIT")
        return len(seen)

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Documents under the folder, each with what tells whether it changed."""
        for at, folders, names in os.walk(self._folder, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(at, name)
                try:
                    found = path.lstat()
                except OSError as error:
                    self._unreadable(error)
                    continue
                place = path.relative_to(self._folder).as_posix()
                shown = os.fsencode(place).decode("utf-8", "replace")
                why = _unfit(path, found)
                if why or shown != place:
                    self.skipped[shown] = why or "its name is not UTF-8: rename it"
                else:
                    yield path, f"{found.st_mtime_ns}:{found.st_size}"

    def _unreadable(self, error: OSError) -> None:
        self.skipped[str(error.filename)] = error.strerror or "cannot be read"

    def _read(self, path: Path, name: str, stamp: str) -> bool:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            self.skipped[name] = str(why)
            return False
        self._forget(name)
        self._index.execute("INSERT INTO files VALUES (?, ?)", (name, stamp))
        self._index.executemany(
            "INSERT INTO passages(text, name, first, last) VALUES (?, ?, ?, ?)",
            ((each.text, name, each.first, each.last) for each in passages(text)),
        )
        return True

    def _forget(self, name: str) -> None:
        self._index.execute("DELETE FROM files WHERE name = ?", (name,))
        self._index.execute("DELETE FROM passages WHERE name = ?", (name,))


def _unfit(path: Path, found: os.stat_result) -> str | None:
    """Why a file is not read; None for a document."""
    if stat.S_ISLNK(found.st_mode):
        return "a link, and links are not followed"
    if not stat.S_ISREG(found.st_mode):
        return "no file"
    if path.suffix.lower() not in SUFFIXES:
        return f"neither {' nor '.join(SUFFIXES)}"
    if found.st_size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES // 2**20} MiB"
    return None
