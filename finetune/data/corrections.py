"""Rows of what persons edited: wherever a question was asked, its edited answer is learned.

Answers that were asked for, in a chat or at the command line, are no training rows. Once a person
has put an answer into their tree they are, unless a task holds their question out. A sub-question
whose answer is a person's is a row of its own, beside that of the root which was recomputed with
it.
"""

from collections.abc import Iterator
from typing import Any

from reflux.agents.errors import UsageError
from reflux.finetune.data.rows import Row, row_of, rows_where
from reflux.graphs.evals.task import Task, is_held_out
from reflux.graphs.traces.review import edited_by_humans, rejected_by_humans
from reflux.graphs.traces.revisions import NEWEST, before, first_of
from reflux.graphs.traces.store import TraceStore

ASKED = """
q.revises IS NOT NULL AND q.split NOT IN ('train', 'primitive', 'held_out', 'canary')
"""
PARTS = f"""
SELECT q.id, q.run, q.round, q.system, q.task, o.path, o.detail ->> 'question' AS text,
  o.detail ->> 'answer' AS answer
FROM questions q JOIN judgements o ON o.question = q.id AND o.kind = 'outcome' AND o.path != ''
WHERE q.revises IS NOT NULL AND q.split NOT IN ('held_out', 'canary') AND {NEWEST}
  AND o.detail ->> 'by' = 'human' AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.path = o.path
    AND c.question = substr(q.id, 1, instr(q.id, '~') - 1) AND c.role = 'tool')
ORDER BY q.round, q.id, o.path
"""  # noqa: S608 - the part is a constant of ours
"""Sub-questions with a person's answer, but for those that H asked a tool."""


def edited(store: TraceStore, task: Task) -> Iterator[Row]:
    """Rows of the newest revision of every trajectory that persons edited: of its root, unless it
    is one of the run's own training questions, which `accepted` has, and of the sub-questions that
    they answered; none of a held-out question."""
    by_persons = edited_by_humans(store)

    def system_prompt(name: str) -> str:
        return task.system_prompt if name == task.name else ""

    for row in rows_where(store, ASKED, {}, system_prompt):
        if first_of(row.provenance["trajectory"]) in by_persons and not _kept_out(task, row):
            yield row
    rejected = rejected_by_humans(store)
    for found in store.select(PARTS):
        prompt, replaced = system_prompt(found["task"]), _replaced(store, found)
        part = row_of(found, found["answer"], prompt, replaced, path=found["path"])
        if first_of(found["id"]) not in rejected and not _kept_out(task, part):
            yield part


def _replaced(store: TraceStore, found: Any) -> str | None:
    """The last other answer to a sub-question, in the revisions before."""
    for earlier in before(found["id"]):
        was = store.how_ended(earlier, found["path"])
        if was is None or was["question"] != found["text"]:
            continue
        if was["answer"] not in (None, found["answer"]):
            return str(was["answer"])
    return None


def _kept_out(task: Task, row: Row) -> bool:
    """True of a held-out question of the task, in the task's own form or as a person types it."""
    try:
        return is_held_out(task, task.from_user(row.question))
    except UsageError:
        return False
