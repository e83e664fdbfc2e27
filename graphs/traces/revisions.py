"""Revisions of a trajectory: the same root once more, with a person's word in one of its places.

A revision is a root question of its own, `ID~1`, `ID~2`, …, which says what it revises. Its calls
are its own rows; what is asked as before is taken from the newest revision that holds it, without
asking anybody. Nothing is rewritten, so every revision can be looked at.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.store import TraceStore

AGAIN = 10_000
"""Retries are counted on from here where a question is asked again: its seeds are other ones."""

NEWEST = "NOT EXISTS (SELECT 1 FROM questions later WHERE later.revises = q.id)"
"""SQL: of a row `q` of `questions`, that no later revision has taken its place."""


@dataclass(frozen=True)
class Override:
    """What a person put in the place of one node's outcome."""

    question: str
    """Of the node: where another question stands at its place, this word is not for it."""
    answer: str | None
    """None: the node is asked again, with other seeds."""
    again: int = 0
    """How often it was asked again."""
    calls: int = 0
    """What the node had spent; it stays charged, so the budget of the others stays as it was."""
    tokens: int = 0


def first_of(question_id: str) -> str:
    """The trajectory as it was asked at first."""
    return question_id.partition("~")[0]


def number_of(question_id: str) -> int:
    """The number of a revision; 0 of the trajectory as it was asked."""
    number = question_id.partition("~")[2]
    return int(number) if number.isdecimal() else 0


def revision(question_id: str, number: int) -> str:
    """The id of a revision."""
    return f"{first_of(question_id)}~{number}" if number else first_of(question_id)


def before(question_id: str) -> Iterator[str]:
    """The revisions before this one, the newest first."""
    for number in range(number_of(question_id) - 1, -1, -1):
        yield revision(question_id, number)


def newest(store: Rows, question_id: str) -> str:
    """The newest revision of a trajectory that a word was put into."""
    first = first_of(question_id)
    rows = store.select(
        "SELECT id FROM questions q WHERE id > :first || '~' AND id < :first || '~~' AND EXISTS"
        " (SELECT 1 FROM judgements o WHERE o.question = q.id AND o.kind = 'override')",
        {"first": first},
    )
    return max((row["id"] for row in rows), key=number_of, default=first)


def overrides_of(store: TraceStore, question_id: str) -> dict[str, Override]:
    """Every person's word that holds in a revision, by path: those of the revisions before, too."""
    found: dict[str, Override] = {}
    for id in [*reversed(list(before(question_id))), question_id]:
        for path, detail in overrides_made(store, id):
            found[path] = override_from(detail)
    return found


def overrides_made(store: TraceStore, question_id: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, detail) of the word that made this revision; none of the trajectory as it was asked.

    Where two were put in at once, the first has the revision.
    """
    rows = store.select(
        "SELECT path, detail FROM judgements WHERE question = ? AND kind = 'override'"
        " ORDER BY id LIMIT 1",
        (question_id,),
    )
    return [(row["path"], json.loads(row["detail"])) for row in rows]


def override_from(detail: Mapping[str, Any]) -> Override:
    """The inverse of `override_json`."""
    return Override(**{name: detail[name] for name in vars(Override("", None))})


def override_json(override: Override) -> dict[str, Any]:
    """Plain JSON types."""
    return dict(vars(override))
