"""Rows as they are curated: cleaned, none twice, balanced, and in the order of training.

They pass one at a time and lie in a file of SQLite, so that a million takes no more memory than a
thousand. What is left out is counted by reason, with examples.

Near duplicates are found by MinHash (Broder 1997; `datasketch`): rows whose words, in threes, are
the same for at least a share, in what was said and in what was replied. The first of them stays.
The signatures lie in the same file, in bands that similar ones share (Leskovec et al., Mining of
Massive Datasets, 3.4).

A row leaks if a text of the evaluation is one of its messages, or shares 13 words in a row with one
(Brown et al. 2020, arXiv 2005.14165, appendix C).
"""

import hashlib
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from reflux.finetune.data.cleaning import Markers, redacted_row
from reflux.finetune.data.recorded import LeftOut
from reflux.finetune.data.rows import Row

PERMUTATIONS, BANDS = 64, 16
SHINGLE, LEAK = 3, 13
"""Words."""
SHORT = 20
"""Words below which only the same are alike."""
CANDIDATES = 200
"""Rows that one row is compared with, at most."""
Signature = NDArray[np.uint64]
SCHEMA = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
CREATE TABLE rows (id INTEGER PRIMARY KEY, place BLOB, body TEXT, provenance TEXT, kind TEXT);
CREATE TABLE seen (digest BLOB PRIMARY KEY, copies INTEGER) WITHOUT ROWID;
CREATE TABLE signatures (id INTEGER PRIMARY KEY, whole BLOB, reply BLOB);
CREATE TABLE bands (band INTEGER, signature INTEGER, PRIMARY KEY (band, signature)) WITHOUT ROWID;
CREATE TABLE ordered (rank INTEGER PRIMARY KEY, row INTEGER);
"""
Balance = Literal["node", "outcome", "source"]


@dataclass(frozen=True)
class Curation:
    """What is done to rows before they are learned."""

    exact: bool = True
    """Whether a row that is the same as one before is left out."""
    near: float = 0.9
    """Similarity from which on a row is a near duplicate; 0 keeps all."""
    balance: Balance | None = None
    """What no value of may have more rows than others."""
    ratio: float = 1.0
    """Rows of any value, at most, for each row of the rarest."""
    redact: bool = False
    markers: Literal["escape", "refuse"] = "escape"
    against: Sequence[str] = ()
    """Texts of an evaluation."""


@dataclass
class Counts:
    """What became of the rows."""

    seen: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    redacted: Counter[str] = field(default_factory=Counter[str])
    """Replaced by kind."""
    escaped: int = 0
    """Rows with markers of the base."""


class CuratedRows(Sequence[Mapping[str, Any]]):
    """Curated rows in the form of `Row.train`, in the order of training, in a file."""

    def __init__(self, seed: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reflux-rows-")
        self._database = sqlite3.connect(
            Path(self._folder.name) / "rows.db", check_same_thread=False
        )
        self._database.executescript(SCHEMA)
        self._seed = seed
        self.digest = ""
        """As `reflux.finetune.data.rows.rows_digest`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, row: Row, curation: Curation, left_out: LeftOut) -> bool:
        """Add a row unless it is a duplicate; whether it was added."""
        trajectory = str(row.provenance.get("trajectory", ""))
        body = row.train()
        content = json.dumps(body, sort_keys=True)
        digest = hashlib.sha256(content.encode()).digest()[:16]
        (copies,) = self._database.execute(
            "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET copies = copies + 1"
            " RETURNING copies",
            (digest,),
        ).fetchone()
        if copies and curation.exact:
            left_out.add("exact duplicates", trajectory, row.reply or row.question)
            return False
        if not copies and curation.near and self._is_near(row, curation.near):
            left_out.add("near duplicates", trajectory, row.reply or row.question)
            return False
        place = hashlib.sha256(f"{self._seed}:{copies}:{content}".encode()).digest()
        kind = str(row.provenance.get(curation.balance or "", ""))
        self._database.execute(
            "INSERT INTO rows (place, body, provenance, kind) VALUES (?, ?, ?, ?)",
            (place, json.dumps(body), json.dumps(row.provenance), kind),
        )
        return True

    def _is_near(self, row: Row, share: float) -> bool:
        """Whether what was said and what was replied are both nearly as in a row before."""
        replies = _replies(row)
        words = _told(row).split() + replies
        if len(words) < SHORT:
            return False
        whole, reply = _signature(words), _signature(replies)
        bands = [
            int.from_bytes(
                hashlib.sha256(bytes([number]) + band.tobytes()).digest()[:8], "big", signed=True
            )
            for number, band in enumerate(whole.reshape(BANDS, -1))
        ]
        marks = ", ".join("?" * BANDS)
        found = f"SELECT signature FROM bands WHERE band IN ({marks}) LIMIT {CANDIDATES}"  # noqa: S608
        near = f"SELECT whole, reply FROM signatures WHERE id IN ({found})"  # noqa: S608
        for other in self._database.execute(near, bands):
            theirs = (np.frombuffer(blob, dtype=np.uint64) for blob in other)
            if all(map(partial(_alike, share=share), (whole, reply), theirs)):
                return True
        made = self._database.execute(
            "INSERT INTO signatures (whole, reply) VALUES (?, ?)",
            (whole.tobytes(), reply.tobytes()),
        )
        self._database.executemany(
            "INSERT INTO bands VALUES (?, ?)", [(band, made.lastrowid) for band in set(bands)]
        )
        return False

    def finish(self, curation: Curation, left_out: LeftOut) -> None:
        """Balance the rows, and put them in order."""
        if curation.balance:
            self._balance(curation, left_out)
        self._database.execute("INSERT INTO ordered (row) SELECT id FROM rows ORDER BY place")
        digest = hashlib.sha256()
        for row in self:
            digest.update(json.dumps(row, sort_keys=True).encode())
        self.digest = digest.hexdigest()[:32]

    def _balance(self, curation: Curation, left_out: LeftOut) -> None:
        sizes = dict(self._database.execute("SELECT kind, count(*) FROM rows GROUP BY kind"))
        most = max(1, int(min(sizes.values(), default=0) * curation.ratio))
        for kind, size in sizes.items():
            if size <= most:
                continue
            beyond = "SELECT id FROM rows WHERE kind = ? ORDER BY place LIMIT -1 OFFSET ?"
            reason = f"beyond the balance by {curation.balance}"
            left_out.add(reason, "", f"{curation.balance} {kind}: {size - most:,}", size - most)
            self._database.execute(
                f"DELETE FROM rows WHERE id IN ({beyond})",  # noqa: S608 - a constant of ours
                (kind, most),
            )

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM ordered").fetchone()[0])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        rank = index + 1 if index >= 0 else len(self) + index + 1
        row = self._database.execute(
            "SELECT body FROM rows JOIN ordered ON id = row WHERE rank = ?", (rank,)
        ).fetchone()
        if row is None:
            raise IndexError(index)
        return json.loads(row[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (body for body, _ in self.with_provenance())

    def with_provenance(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(row, where it comes from) of each."""
        sql = "SELECT body, provenance FROM ordered JOIN rows ON id = row ORDER BY rank"
        for body, provenance in self._database.execute(sql):
            yield json.loads(body), json.loads(provenance)


def _told(row: Row) -> str:
    """What a row's prompt is told from others by: the first question, and what was said last."""
    users = [turn["content"] for turn in row.prompt if turn["role"] == "user"][:1]
    last = row.prompt[-1]["content"] if row.prompt else ""
    return " ".join([*users, *([last] if last not in users else [])]).lower()


def _replies(row: Row) -> list[str]:
    """The words of what is learned, tool calls included."""
    words: list[str] = []
    for turn in row.completion:
        words += turn["content"].lower().split()
        for call in turn.get("tool_calls", ()):
            words += [call["function"]["name"], *call["function"]["arguments"].split()]
    return words


def _signature(words: Sequence[str]) -> Signature:
    """(PERMUTATIONS) of many words; the digest of a few, which are the same or not."""
    if len(words) < SHORT:
        return np.frombuffer(hashlib.sha256(" ".join(words).encode()).digest(), dtype=np.uint64)
    sketch = MinHash(num_perm=PERMUTATIONS)
    grams = zip(*(words[i:] for i in range(SHINGLE)), strict=False)
    sketch.update_batch({" ".join(gram).encode() for gram in grams})
    return np.asarray(sketch.hashvalues, dtype=np.uint64)


def _alike(ours: Signature, theirs: Signature, share: float) -> bool:
    if len(ours) != len(theirs):
        return False
    same = float(np.mean(ours == theirs))
    return same >= share if len(ours) == PERMUTATIONS else same == 1.0


class LeakCheck:
    """Whether a row holds what an evaluation asks."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[str] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            words = _words(text)
            self._whole.add(" ".join(words))
            self._grams.update(_grams(words))
        self._whole.discard("")

    def holds(self, row: Row) -> bool:
        """Whether a message of the row is a text of the evaluation, or shares words with one."""
        for turn in (*row.prompt, *row.completion):
            words = _words(turn["content"])
            if turn["role"] != "system" and " ".join(words) in self._whole:
                return True
            if self._grams and any(gram in self._grams for gram in _grams(words)):
                return True
        return " ".join(_words(row.question)) in self._whole


def _words(text: str) -> list[str]:
    return ["".join(filter(str.isalnum, word)) or word for word in text.casefold().split()]


def _grams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + LEAK]) for i in range(len(words) - LEAK + 1))


def curate(
    rows: Iterable[Row],
    curation: Curation,
    markers: Markers | None,
    counts: Counts,
    seed: int = 0,
) -> CuratedRows:
    """The rows, curated; the caller closes them. `markers` are the base's, where it is known."""
    curated = CuratedRows(seed)
    try:
        leak = LeakCheck(curation.against) if curation.against else None
        for given in rows:
            counts.seen += 1
            row = given
            trajectory = str(row.provenance.get("trajectory", ""))
            if leak is not None and leak.holds(row):
                counts.left_out.add("in the evaluation", trajectory, row.question)
                continue
            if curation.redact:
                row = redacted_row(row, counts.redacted)
            if markers is not None and (marker := markers.find(row)) is not None:
                if curation.markers == "refuse":
                    counts.left_out.add(f"with the base's {marker}", trajectory, row.question)
                    continue
                counts.escaped += 1
                row = markers.escaped(row)
            curated.add(row, curation, counts.left_out)
        curated.finish(curation, counts.left_out)
    except BaseException:
        curated.__exit__()
        raise
    return curated
