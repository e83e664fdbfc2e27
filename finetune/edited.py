"""Rows of what persons edited: wherever a question was asked, its edited answer is learned.

Answers that were asked for, in a chat or at the command line, are no training rows. Once a person
has put an answer into their tree they are, unless a task holds their question out.
"""

from collections.abc import Iterator

from agents.errors import UsageError
from finetune.datasets import Row, rows_where
from graphs.revision import first_of
from graphs.task import Task, is_held_out
from graphs.traces import TraceStore
from graphs.verdicts import edited_by_persons

ASKED = """
q.revises IS NOT NULL AND q.split NOT IN ('train', 'primitive', 'held_out', 'canary')
"""


def edited(store: TraceStore, task: Task) -> Iterator[Row]:
    """Rows of the newest revision of every trajectory that persons edited, but for those of the
    run's own training questions, which `accepted` has, and for held-out ones."""
    by_persons = edited_by_persons(store)

    def system_prompt(name: str) -> str:
        return task.system_prompt if name == task.name else ""

    for row in rows_where(store, ASKED, {}, system_prompt):
        if first_of(row.provenance["trajectory"]) in by_persons and not _kept_out(task, row):
            yield row


def _kept_out(task: Task, row: Row) -> bool:
    """True of a held-out question of the task, in the task's own form or as a person types it."""
    try:
        return is_held_out(task, task.from_user(row.question))
    except UsageError:
        return False
