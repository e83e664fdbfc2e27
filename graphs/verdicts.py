"""What persons say of nodes: verdicts, comments, and what follows from them for training."""

import json

from agents.errors import UsageError
from agents.screen import redact
from graphs.review import Item
from graphs.revision import first_of, newest
from graphs.schema import BY_PERSONS
from graphs.traces import TraceStore


async def judge(store: TraceStore, item: Item, approved: bool, comment: str = "") -> None:
    """A person's verdict on a node; what a person rejects leaves the training rows."""
    detail = {"answer": item.answer, "comment": redact(comment)}
    await store.add_judgement(
        item.trajectory, item.path, "verdict", approved, detail, author="person"
    )


async def remark(store: TraceStore, item: Item, comment: str) -> None:
    """A person's comment on a node, which stays in the queue.

    Raises:
        UsageError: there is nothing in it.
    """
    if not comment.strip():
        raise UsageError("an empty comment says nothing")
    detail = {"comment": redact(comment)}
    await store.add_judgement(item.trajectory, item.path, "comment", None, detail, author="person")


def rejected_by_persons(store: TraceStore) -> set[str]:
    """Trajectories, by their first id, with a node that a person rejected, whose answer is still
    that one, and which nobody has approved or overridden since."""
    standing: dict[tuple[str, str], str | None] = {}
    sql = f"SELECT question, path, ok, detail FROM judgements WHERE {BY_PERSONS} ORDER BY id"  # noqa: S608
    for row in store.select(sql):
        place = first_of(row["question"]), row["path"]
        standing.pop(place, None)
        if not row["ok"]:
            standing[place] = json.loads(row["detail"])["answer"]
    return {
        first
        for (first, path), answer in standing.items()
        if _answer_now(store, first, path, answer) == answer
    }


def _answer_now(store: TraceStore, first: str, path: str, unknown: str | None) -> str | None:
    ended = store.how_ended(newest(store, first), path)
    return ended["answer"] if ended else unknown


def edited_by_persons(store: TraceStore) -> set[str]:
    """Trajectories, by their first id, with an answer that a person put in."""
    sql = f"SELECT question FROM judgements WHERE {BY_PERSONS}"  # noqa: S608
    rows = store.select(f"{sql} AND kind = 'override' AND detail ->> 'answer' IS NOT NULL")
    return {first_of(row["question"]) for row in rows}
