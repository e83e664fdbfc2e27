"""Look-up in a folder of the user's documents, by words, in SQLite's full-text index (FTS5).

Texts are cut into passages of about 100 to 200 words that keep their file and lines, so that a
reply can be checked and a report can cite its source. Words match by their stem, English ones
best; passages rank by BM25.
"""

import asyncio
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reflux.agents.errors import UsageError
from reflux.agents.tools.protocol import TextTool, ToolReply, text_parameter
from reflux.agents.types import ToolSpec

MIN_WORDS = 100
"""A passage with this many words ends at the next blank line or heading."""
MAX_WORDS = 200
MAX_CHARS = 1_500
"""Cuts a text without spaces."""


@dataclass(frozen=True)
class Passage:
    """A piece of a text, with the numbers of its first and last line from 1."""

    first: int
    last: int
    text: str


def passages(text: str) -> Iterator[Passage]:
    """Cut a text into passages, in order, of whole lines if these are short enough.

    Every word of the text is in one passage. The last passage, and one before a long paragraph, may
    be shorter than 100 words.
    """
    lines: list[tuple[int, str]] = []
    words = chars = 0
    for number, piece in _pieces(text.split("\n")):
        count = len(piece.split())
        full = words + count > MAX_WORDS or chars + len(piece) + 1 > MAX_CHARS
        if full or (words >= MIN_WORDS and (not count or piece.startswith("#"))):
            yield from _passage(lines)
            lines, words, chars = [], 0, 0
        lines.append((number, piece))
        words += count
        chars += len(piece) + 1
    yield from _passage(lines)


def _passage(lines: list[tuple[int, str]]) -> Iterator[Passage]:
    numbers = [number for number, piece in lines if piece.strip()]
    if numbers:
        first, last = numbers[0], numbers[-1]
        text = "\n".join(piece for number, piece in lines if first <= number <= last)
        yield Passage(first, last, text)


def _pieces(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a paragraph on one long line becomes several pieces."""
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        if len(line) < MAX_CHARS and len(line.split()) <= MAX_WORDS:
            yield number, line
            continue
        piece, words = "", 0
        for word in re.findall(rf"\S{{1,{MAX_CHARS - 1}}}", line):
            if piece and (words == MAX_WORDS - 50 or len(piece) + len(word) + 2 > MAX_CHARS):
                yield number, piece
                piece, words = "", 0
            piece, words = f"{piece} {word}".strip(), words + 1
        yield number, piece


SUFFIXES = (".txt", ".md")
MAX_FILES = 10_000
MAX_FILE_BYTES = 10 * 2**20
PASSAGES = 5
QUERY_WORDS = 32
"""Maximum different words of a query; later ones are ignored."""
COMMON = (
    " a an and are as at be by can did do does for from has have how i in is it me my of on or our "
    "should that the their there they this to was we were what when where which who why will with "
    "you your "
)
"""Stop words; they count only in a query without other words."""
SCHEMA = """
CREATE TABLE files(name TEXT PRIMARY KEY, stamp TEXT);
CREATE VIRTUAL TABLE passages USING fts5(
    text, name UNINDEXED, first UNINDEXED, last UNINDEXED,
    tokenize = "porter unicode61 remove_diacritics 2"
);
"""


@dataclass(frozen=True)
class Match:
    """A passage that matches a query."""

    source: str
    """File, relative to the folder, and lines: `notes/law.md:12-20`."""
    text: str


class Documents(TextTool):
    """Finds passages in the .txt and .md files under a folder.

    Links are never followed, so nothing outside the folder is read. Each look-up first rereads
    files whose time or size has changed. `skipped` holds the unread files with the reasons.
    """

    argument = "query"
    seconds = 20.0
    spec = ToolSpec(
        "documents",
        "Look up passages in the user's own documents by words. Each comes with its file and "
        "lines: cite them.",
        text_parameter(argument, "Words to look for"),
    )

    def __init__(self, folder: Path) -> None:
        """Index the folder; the index is a temporary file that lives as long as this object.

        Raises:
            UsageError: no folder, no readable document in it, or too many files.
        """
        self._folder = folder
        self.skipped: dict[str, str] = {}
        if not folder.is_dir():
            raise UsageError(f"{str(folder)!r} is not a folder; name one that holds documents")
        self._lock = threading.RLock()
        self._index = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._index.executescript(SCHEMA)
        if self.refresh() == 0:
            reasons = "; ".join(f"{name}: {why}" for name, why in [*self.skipped.items()][:5])
            raise UsageError(
                f"{str(folder)!r} has no document that can be read ({reasons or 'no files'}); "
                f"documents are {' and '.join(SUFFIXES)} files in UTF-8"
            )

    async def reply(self, text: str) -> ToolReply:
        matches = await asyncio.to_thread(self.find, text)
        if not matches:
            return ToolReply("no passage of the documents holds any of these words")
        return ToolReply("\n\n".join(f"[{match.source}]\n{match.text}" for match in matches))

    def find(self, query: str, limit: int = PASSAGES) -> list[Match]:
        """The best passages for a query, in order; none if no word of it occurs."""
        words = list(dict.fromkeys(re.findall(r"[^\W_]+", query.lower())))
        words = [word for word in words if f" {word} " not in COMMON] or words
        if not words:
            return []
        # A quoted word is never an operator of FTS5.
        expression = " OR ".join(f'"{word}"' for word in words[:QUERY_WORDS])
        with self._lock:
            self.refresh()
            rows = self._index.execute(
                "SELECT name, first, last, text FROM passages WHERE passages MATCH ? "
                "ORDER BY rank, name, first LIMIT ?",
                (expression, limit),
            ).fetchall()
        return [Match(f"{name}:{first}-{last}", text) for name, first, last, text in rows]

    def refresh(self) -> int:
        """Reread what has changed; returns the number of documents.

        Raises:
            UsageError: there are more than `MAX_FILES`.
        """
        with self._lock, self._index:
            self.skipped = {}
            self._index.execute("BEGIN")
            known = dict(self._index.execute("SELECT name, stamp FROM files"))
            seen: set[str] = set()
            for path in self._files():
                name = path.relative_to(self._folder).as_posix()
                readable = os.fsencode(name).decode("utf-8", "replace")
                try:
                    status = path.lstat()
                    stamp = f"{status.st_mtime_ns}:{status.st_size}"
                    reason = _skip_reason(path, status)
                    if reason is None and readable != name:
                        reason = "its name is not UTF-8: rename it"
                    if reason is None and known.get(name) != stamp:
                        self._index_text(name, stamp, path.read_text(encoding="utf-8-sig"))
                except OSError as error:
                    reason = error.strerror or "cannot be read"
                except UnicodeDecodeError:
                    reason = "not UTF-8"
                if reason is not None:
                    self.skipped[readable] = reason
                    continue
                seen.add(name)
                if len(seen) > MAX_FILES:
                    raise UsageError(
                        f"{str(self._folder)!r} holds more than {MAX_FILES} documents; name a "
                        "folder further down"
                    )
            for name in known.keys() - seen:
                self._index.execute("DELETE FROM files WHERE name = ?", (name,))
                self._index.execute("DELETE FROM passages WHERE name = ?", (name,))
        return len(seen)

    def _files(self) -> Iterator[Path]:
        """The files under the folder, in order, but for hidden ones."""

        def skip(error: OSError) -> None:
            self.skipped[str(error.filename)] = error.strerror or "cannot be read"

        for folder, folders, names in os.walk(self._folder, onerror=skip):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))

    def _index_text(self, name: str, stamp: str, text: str) -> None:
        self._index.execute("DELETE FROM passages WHERE name = ?", (name,))
        self._index.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (name, stamp))
        self._index.executemany(
            "INSERT INTO passages(text, name, first, last) VALUES (?, ?, ?, ?)",
            ((each.text, name, each.first, each.last) for each in passages(text)),
        )


def _skip_reason(path: Path, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "a link, and links are not followed"
    if not stat.S_ISREG(status.st_mode):
        return "no file"
    if path.suffix.lower() not in SUFFIXES:
        return f"neither {' nor '.join(SUFFIXES)}"
    if status.st_size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES // 2**20} MiB"
    return None
