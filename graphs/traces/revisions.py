"""Revisions of a trajectory: the same root again, with a human's override of one node.

A revision is a separate root question, `ID~1`, `ID~2`, …, with its own rows in `calls`. A call
whose request has not changed takes its reply from the newest earlier revision that holds it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.store import TraceStore

AGAIN = 10_000
"""First retry number of a question that is asked again, so that its seeds are new."""

NEWEST = "NOT EXISTS (SELECT 1 FROM questions later WHERE later.revises = q.id)"
"""SQL: no later revision replaces the row `q` of `questions`."""
CALLS_OF = "iif(q.source IS NULL, q.id, substr(q.id, 1, instr(q.id || '~', '~') - 1))"
"""SQL: the trajectory whose calls are those of the row `q`. A revision of our own tree makes them
again; what another program did is not repeated, so a revision of it has the original's."""


@dataclass(frozen=True)
class Override:
    """A human's replacement of one node's outcome."""

    question: str
    """Of the node: the override doesn't apply where the node's question has changed."""
    answer: str | None
    """None: ask the node again, with other seeds."""
    again: int = 0
    calls: int = 0
    """What the node had spent. It stays charged, so the budgets of the other nodes don't change."""
    tokens: int = 0


def first_of(question_id: str) -> str:
    """The id of the original trajectory."""
    return question_id.partition("~")[0]


def number_of(question_id: str) -> int:
    """The number of a revision; 0 for the original."""
    number = question_id.partition("~")[2]
    return int(number) if number.isdecimal() else 0


def revision(question_id: str, number: int) -> str:
    """The id of a revision."""
    return f"{first_of(question_id)}~{number}" if number else first_of(question_id)


def before(question_id: str) -> Iterator[str]:
    """The revisions before this one, newest first."""
    for number in range(number_of(question_id) - 1, -1, -1):
        yield revision(question_id, number)


def newest(store: Rows, question_id: str) -> str:
    """The newest revision of a trajectory whose override is recorded."""
    first = first_of(question_id)
    rows = store.select(
        "SELECT id FROM questions q WHERE id > :first || '~' AND id < :first || '~~' AND EXISTS"
        " (SELECT 1 FROM judgements o WHERE o.question = q.id AND o.kind = 'override')",
        {"first": first},
    )
    return max((row["id"] for row in rows), key=number_of, default=first)


def overrides_of(store: TraceStore, question_id: str) -> dict[str, Override]:
    """The overrides of a revision and of those before it, by path."""
    overrides: dict[str, Override] = {}
    for id in [*reversed(list(before(question_id))), question_id]:
        for path, detail in overrides_made(store, id):
            overrides[path] = Override(**detail)
    return overrides


def overrides_made(store: TraceStore, question_id: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, `vars` of the `Override`) of the override that made this revision; none for the
    original.

    Of two that were put in at once, the first counts.
    """
    rows = store.select(
        "SELECT path, detail FROM judgements WHERE question = ? AND kind = 'override'"
        " ORDER BY id LIMIT 1",
        (question_id,),
    )
    return [(row["path"], json.loads(row["detail"])) for row in rows]
