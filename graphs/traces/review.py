"""The review queue: what waits for a person, what is in dispute, and a random sample of the rest.

An item is a node of a trajectory's newest revision. It leaves the queue with a person's verdict,
which is a judgement like any other: nothing is rewritten, and a later verdict takes its place.
Held-out questions and canaries are not queued: no row is made of them.

What persons say of nodes: verdicts, comments, and what follows from them for training.

Answers that were stopped before their end: whoever had asked left, or interrupted.

A stop is a mark beside what was recorded, not an end: what goes on later, from its checkpoint or
with a person's word, ends as anything does. A killed process leaves no mark.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reflux.agents.errors import UsageError
from reflux.agents.redaction import redact
from reflux.graphs.traces.database import BY_HUMANS, DISPUTED, Rows
from reflux.graphs.traces.revisions import NEWEST, first_of, newest
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import find_question, held

Why = Literal["escalated", "disputed", "audit"]
WHYS: tuple[Why, ...] = ("escalated", "disputed", "audit")
AUDITED = 100
"""One judgement in so many is drawn for an audit."""
LOOKED_AT = 20_000
"""Most judgements that one page of the queue looks at, so that a page costs the same in any run."""


@dataclass(frozen=True)
class Item:
    """A node that a person is to judge."""

    trajectory: str
    path: str
    why: Why
    reason: str
    """In words: how the votes were split, what was refused, who is waited for."""
    question: str
    answer: str | None
    status: str
    run: str
    round: int
    system: str
    at: int
    """Its place: a page begins `before` it."""
    form: dict[str, Any] | None = None
    """What a person is shown, where one is waited for; see `reflux.agents.types.Defer`."""
    step: int = 0
    attempt: int = 0
    """Of H, where it waits."""

    @property
    def id(self) -> str:
        """What the commands call it."""
        return f"{self.trajectory}{self.path}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"id": self.id, **asdict(self)}


AGAIN = "(kind = 'override' AND v.detail ->> 'answer' IS NULL)"
"""SQL: that a person had a node asked again, which says nothing of what came of it."""
FIRST = "substr(j.question, 1, instr(j.question || '~', '~') - 1)"
ITEMS = """
SELECT j.id AS at, j.question AS trajectory, j.path, j.kind, j.ok, j.detail,
  q.run, q.round, q.system, q.text
FROM judgements j {by} JOIN questions q ON q.id = j.question
"""
QUEUED = f"""{ITEMS}
WHERE {{which}} AND q.split NOT IN ('held_out', 'canary') AND {NEWEST}
  AND NOT EXISTS (SELECT 1 FROM judgements v INDEXED BY reviewed
    WHERE v.question >= {FIRST} AND v.question < {FIRST} || '~~' AND v.path = j.path
    AND {BY_HUMANS.replace("kind", "v.kind")} AND NOT {AGAIN.replace("kind", "v.kind")}
    AND (v.question = j.question
      OR (v.question = {FIRST} OR instr(v.question, {FIRST} || '~') = 1)
        AND v.detail ->> 'answer' IS j.detail ->> 'answer'))
"""  # noqa: S608 - every part is a constant of ours
"""A verdict holds in later revisions, too, as long as the node's answer is the same."""
WAITING = """
j.kind = 'deferred' AND NOT EXISTS (SELECT 1 FROM calls c
  WHERE c.question = j.question AND c.path = j.path AND c.role = 'overseer'
  AND c.step = j.detail ->> 'step' AND c.attempt = j.detail ->> 'attempt' AND c.error IS NULL)
"""
IN_DISPUTE = DISPUTED.replace("kind", "j.kind").replace("detail", "j.detail")
WINDOW = f"""
SELECT min(id) FROM (SELECT id FROM judgements INDEXED BY {{index}} WHERE {{which}}
  AND id < :before ORDER BY id DESC LIMIT {LOOKED_AT})
"""  # noqa: S608


def page(
    store: Rows, why: Why, limit: int = 20, before: int | None = None
) -> tuple[list[Item], int | None]:
    """(items of one kind, the newest first; where the next page begins, None at the end).

    A page may hold fewer than `limit` items and not be the last: it looks at no more than
    `LOOKED_AT` judgements.
    """
    start = 2**62 if before is None else before
    if why == "audit":
        return _audit(store, limit, start)
    index = "deferred" if why == "escalated" else "disputed"
    bare = "kind = 'deferred'" if why == "escalated" else DISPUTED
    window = WINDOW.format(index=index, which=bare)
    (row,) = store.select(window, {"before": start})
    if (first := row[0]) is None:
        return [], None
    which = WAITING if why == "escalated" else IN_DISPUTE
    sql = QUEUED.format(by=f"INDEXED BY {index}", which=which)
    sql += " AND j.id < :before AND j.id >= :first ORDER BY j.id DESC"
    items: list[Item] = []
    seen: set[str] = set()
    for row in store.select(sql, {"before": start, "first": first}):
        item = _item(row, why)
        if item.id not in seen:
            seen.add(item.id)
            items.append(item)
        if len(items) == limit:
            return items, item.at
    return items, first if _more(store, bare, index, first) else None


def queue(store: TraceStore, limit: int = 20, whys: Sequence[Why] = WHYS) -> list[Item]:
    """The first items of all kinds: those that wait, those in dispute, those drawn by chance."""
    items: dict[str, Item] = {}
    for why in whys:
        start: int | None = None
        while len(items) < limit:
            found, start = page(store, why, limit - len(items), start)
            for item in found:
                items.setdefault(item.id, item)
            if start is None:
                break
    return list(items.values())


def _more(store: Rows, bare: str, index: str, first: int) -> bool:
    rows = store.select(WINDOW.format(index=index, which=bare), {"before": first})
    return next(rows)[0] is not None


def _audit(store: Rows, limit: int, start: int) -> tuple[list[Item], int | None]:
    """Judgements whose number is drawn: one in each block, the same whenever it is asked."""
    (row,) = store.select("SELECT max(id) FROM judgements")
    last = min(start - 1, row[0] or 0)
    sql = QUEUED.format(
        by="", which=f"j.kind IN ('leaf', 'outcome') AND ({IN_DISPUTE}) IS NOT TRUE"
    )
    sql += " AND j.ok = 1 AND j.id IN (SELECT value FROM json_each(?)) ORDER BY j.id DESC"
    items: list[Item] = []
    for block in range(last // AUDITED, -1, -limit):
        drawn = [at for b in range(block, max(-1, block - limit), -1) if (at := _drawn(b)) <= last]
        for row in store.select(sql, (json.dumps(drawn),)):
            items.append(_item(row, "audit"))
            if len(items) == limit:
                return items, items[-1].at
        if (last // AUDITED - block) * AUDITED > LOOKED_AT * 10:
            return items, max(0, block - limit) * AUDITED
    return items, None


def _drawn(block: int) -> int:
    """A number of the block, which looks drawn and is the same on every machine (Knuth 6.4)."""
    return block * AUDITED + (block * 2_654_435_761 % 2**32 >> 8) % AUDITED


def _item(row: Any, why: Why) -> Item:
    detail: dict[str, Any] = json.loads(row["detail"])
    form: dict[str, Any] | None = detail["form"] if why == "escalated" else None
    question = detail.get("question") or (form and form.get("question")) or row["text"]
    return Item(
        row["trajectory"],
        row["path"],
        why,
        _reason(detail, why),
        str(question),
        detail.get("answer"),
        detail.get("status", "waiting"),
        row["run"] or "",
        -1 if row["round"] is None else row["round"],
        row["system"] or "",
        row["at"],
        form,
        detail.get("step", 0),
        detail.get("attempt", 0),
    )


def _reason(detail: dict[str, Any], why: Why) -> str:
    if why == "escalated":
        return "a person is waited for"
    if why == "audit":
        return "drawn by chance"
    said: list[str] = []
    if detail["status"] == "rejected":
        said.append(detail.get("error") or "no answer passed the check")
    if len(tally := detail.get("tally", ())) > 1:
        cast = sum(weight for _, weight in tally)
        said.append(f"votes are split, {tally[0][1] / cast:.0%} for the first")
    if detail.get("disagreement"):
        said.append(f"experts disagree, {detail['disagreement']:.0%} with the first")
    return "; ".join(said)


def state_of(store: TraceStore, item: Item) -> tuple[object, ...]:
    """What a judgement of an item rests on: where it is another than when the item was shown,
    somebody else was first, or what is asked has another answer.

    Raises:
        UsageError: the node is not there any more.
    """
    first = first_of(item.trajectory)
    now = find_item(store, f"{first}{item.path}")
    said = store.select(
        f"SELECT max(id) FROM judgements WHERE {BY_HUMANS} AND path = :path"  # noqa: S608
        " AND (question = :first OR question > :first || '~' AND question < :first || '~~')",
        {"path": item.path, "first": first},
    )
    return now.trajectory, now.answer, now.status, now.why == "escalated", next(said)[0]


def find_item(store: Rows, id: str) -> Item:
    """The item of an id, `TRAJECTORY/PATH`, whether it is in the queue or not; in the newest
    revision where none is named.

    Raises:
        UsageError: there is no such node.
    """
    name, slash, rest = id.partition("/")
    trajectory, text = find_question(store, name)
    trajectory = trajectory if "~" in name else newest(store, trajectory)
    path = slash + rest
    waiting = f"{ITEMS.format(by='')} WHERE j.question = ? AND j.path = ? AND {WAITING}"
    row = next(store.select(waiting, (trajectory, path)), None)
    if row is not None:
        return _item(row, "escalated")
    _, node = held(store, trajectory, path)
    (asked,) = store.select("SELECT run, round, system FROM questions WHERE id=?", (trajectory,))
    return Item(
        trajectory, path, "audit", "named", node.question or text, node.answer, node.status,
        asked["run"] or "", -1 if asked["round"] is None else asked["round"],
        asked["system"] or "", 0,
    )  # fmt: skip


async def judge(store: TraceStore, item: Item, approved: bool, comment: str = "") -> None:
    """A person's verdict on a node; what a person rejects leaves the training rows."""
    detail = {"answer": item.answer, "comment": redact(comment)}
    await store.add_judgement(
        item.trajectory, item.path, "verdict", approved, detail, author="human"
    )


async def remark(store: TraceStore, item: Item, comment: str) -> None:
    """A person's comment on a node, which stays in the queue.

    Raises:
        UsageError: there is nothing in it.
    """
    if not comment.strip():
        raise UsageError("an empty comment says nothing")
    detail = {"comment": redact(comment)}
    await store.add_judgement(item.trajectory, item.path, "comment", None, detail, author="human")


def rejected_by_humans(store: TraceStore) -> set[str]:
    """Trajectories, by their first id, with a node that a person rejected, whose answer is still
    that one, and which nobody has approved or overridden since."""
    standing: dict[tuple[str, str], str | None] = {}
    sql = f"SELECT question, path, ok, detail FROM judgements WHERE {BY_HUMANS} ORDER BY id"  # noqa: S608
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


def edited_by_humans(store: TraceStore) -> set[str]:
    """Trajectories, by their first id, with an answer that a person put in."""
    sql = f"SELECT question FROM judgements WHERE {BY_HUMANS}"  # noqa: S608
    rows = store.select(f"{sql} AND kind = 'override' AND detail ->> 'answer' IS NOT NULL")
    return {first_of(row["question"]) for row in rows}


WAITS = f"SELECT EXISTS (SELECT 1 FROM judgements j WHERE j.question = ? AND {WAITING})"  # noqa: S608 - the part is a constant of ours


@asynccontextmanager
async def marked_when_stopped(store: TraceStore, question: str) -> AsyncGenerator[None]:
    """Answer a root question here: where that is cancelled, the record tells, unless somebody is
    waited for, who may still reply."""
    try:
        yield
    except asyncio.CancelledError:
        if not next(store.select(WAITS, (question,)))[0]:
            await store.add_judgement(question, "", "stopped", None, {}, key="0")
        raise
