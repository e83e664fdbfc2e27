"""The review queue: nodes that wait for a human, disputed nodes, and a random sample of the rest.

An item is a node of a trajectory's newest revision. A human's verdict removes it from the queue; a
verdict is a judgement, and a later one replaces it. Held-out questions and canaries are queued only
where they wait, because no row is made of them.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from reflux.agents.errors import UsageError
from reflux.agents.redaction import redact
from reflux.graphs.traces.database import BY_HUMANS, DISPUTED, Rows
from reflux.graphs.traces.reviewers.opinions import Subject, opinions, required, waits_for
from reflux.graphs.traces.revisions import NEWEST, first_of, newest
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import held

Why = Literal["escalated", "disputed", "audit"]
WHYS: tuple[Why, ...] = ("escalated", "disputed", "audit")
AUDIT_BLOCK = 100
"""One of this many judgements is drawn for an audit."""
MAX_SCANNED = 20_000
"""Maximum judgements that one page of the queue scans, so that its cost is bounded."""


@dataclass(frozen=True)
class Item:
    """A node for a human to judge."""

    trajectory: str
    path: str
    why: Why
    reason: str
    """In words: how the votes are split, what was rejected."""
    question: str
    answer: str | None
    status: str
    run: str
    round: int
    system: str
    at: int
    """Its position in the queue: a page begins `before` it."""
    form: dict[str, Any] | None = None
    """The form to show where the node waits; see `reflux.agents.types.Defer`."""
    step: int = 0
    attempt: int = 0

    @property
    def id(self) -> str:
        """The name that commands take."""
        return f"{self.trajectory}{self.path}"

    @property
    def subject(self) -> Subject:
        """What reviewers have an opinion on."""
        return Subject(self.trajectory, self.path, self.answer)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"id": self.id, **asdict(self)}


AGAIN = "(v.kind = 'override' AND v.detail ->> 'answer' IS NULL)"
"""SQL: a human had a node asked again, which is not a verdict on its new answer."""
FIRST = "substr(j.question, 1, instr(j.question || '~', '~') - 1)"
ITEMS = """
SELECT j.id AS at, j.question AS trajectory, j.path, j.kind, j.ok, j.detail,
  q.run, q.round, q.system, q.text
FROM judgements j {by} JOIN questions q ON q.id = j.question
"""
QUEUED = f"""{ITEMS}
WHERE {{which}} AND {NEWEST}
  AND NOT EXISTS (SELECT 1 FROM judgements v INDEXED BY reviewed
    WHERE v.question >= {FIRST} AND v.question < {FIRST} || '~~' AND v.path = j.path
    AND {BY_HUMANS.replace("kind", "v.kind")} AND NOT {AGAIN}
    AND (v.question = j.question
      OR (v.question = {FIRST} OR instr(v.question, {FIRST} || '~') = 1)
        AND v.detail ->> 'answer' IS j.detail ->> 'answer'))
"""  # noqa: S608 - every part is a constant of ours
"""A verdict holds in later revisions while the node's answer stays the same."""
WAITING = """
j.kind = 'deferred' AND NOT EXISTS (SELECT 1 FROM calls c
  WHERE c.question = j.question AND c.path = j.path AND c.role = 'overseer'
  AND c.step = j.detail ->> 'step' AND c.attempt = j.detail ->> 'attempt' AND c.error IS NULL)
"""
IN_RUN = f"""
NOT EXISTS (SELECT 1 FROM judgements h WHERE h.question = {FIRST} AND h.kind = 'how')
"""  # noqa: S608
"""Asked by a run of rounds, which records no options with each question."""
WITH_ROWS = "q.split NOT IN ('held_out', 'canary', 'defence')"
IN_DISPUTE = DISPUTED.replace("kind", "j.kind").replace("detail", "j.detail")
AUDITED = f"""
j.id % {AUDIT_BLOCK} = (j.id / {AUDIT_BLOCK} * 2654435761 % 4294967296 >> 8) % {AUDIT_BLOCK}
AND j.kind IN ('direct', 'outcome') AND j.ok = 1 AND ({IN_DISPUTE}) IS NOT TRUE
"""
"""One pseudo-random id of each block, the same on every machine (Knuth 6.4)."""
KINDS: dict[Why, tuple[str, str, str]] = {
    "escalated": ("INDEXED BY deferred", "kind = 'deferred'", WAITING),
    "disputed": ("INDEXED BY disputed", DISPUTED, f"{IN_DISPUTE} AND {WITH_ROWS}"),
    "audit": ("", "id > 0", f"{AUDITED} AND {WITH_ROWS}"),
}
"""SQL of the index, of the judgements that a page scans, and of those that it holds."""
WINDOW = f"""
SELECT min(id) FROM (SELECT id FROM judgements {{by}} WHERE {{scanned}}
  AND id < :before ORDER BY id DESC LIMIT {MAX_SCANNED})
"""  # noqa: S608


def page(
    store: Rows, why: Why, limit: int = 20, before: int | None = None, reviewer: str = ""
) -> tuple[list[Item], int | None]:
    """(items of one kind, newest first; where the next page begins, None at the end).

    A page that isn't the last may hold fewer than `limit` items: it scans at most `MAX_SCANNED`
    judgements. Where an item needs several reviewers, those that this one has judged are left out.
    """
    needed = required(store)
    by, scanned, which = KINDS[why]
    window, start = WINDOW.format(by=by, scanned=scanned), 2**62 if before is None else before
    ((first,),) = store.select(window, {"before": start})
    if first is None:
        return [], None
    sql = QUEUED.format(by=by, which=which)
    sql += " AND j.id < :before AND j.id >= :first ORDER BY j.id DESC"
    items: dict[str, Item] = {}
    for row in store.select(sql, {"before": start, "first": first}):
        item = _item(row, why)
        if needed > 1 and why != "escalated":
            given = opinions(store, item.subject)
            if not waits_for(given, reviewer):
                continue
            if len(given) >= needed:
                item = replace(item, reason=f"{item.reason}; {len(given)} reviewers disagree")
        items.setdefault(item.id, item)
        if len(items) == limit:
            return list(items.values()), item.at
    ((more,),) = store.select(window, {"before": first})
    return list(items.values()), None if more is None else first


def queue(
    store: TraceStore, limit: int = 20, whys: Sequence[Why] = WHYS, reviewer: str = ""
) -> list[Item]:
    """The first items of all kinds: waiting, disputed, audited."""
    items: dict[str, Item] = {}
    for why in whys:
        start: int | None = None
        while len(items) < limit:
            batch, start = page(store, why, limit - len(items), start, reviewer)
            for item in batch:
                items.setdefault(item.id, item)
            if start is None:
                break
    return list(items.values())


def waiting_in_run(store: Rows, trajectory: str = "") -> list[Item]:
    """What waits for a human in a run of rounds, in the order of asking; of one trajectory, or of
    all."""
    sql = f"{ITEMS.format(by='INDEXED BY deferred')} WHERE {WAITING} AND {IN_RUN}"
    rows = store.select(f"{sql} AND ? IN ('', j.question) ORDER BY j.id", (trajectory,))
    return [_item(row, "escalated") for row in rows]


def _item(row: Any, why: Why) -> Item:
    detail: dict[str, Any] = json.loads(row["detail"])
    form: dict[str, Any] | None = detail["form"] if why == "escalated" else None
    question = detail.get("question") or (form and form.get("question")) or row["text"]
    return Item(
        row["trajectory"], row["path"], why, _reason(detail, why), str(question),
        detail.get("answer"), detail.get("status", "waiting"), *_origin(row), row["at"], form,
        detail.get("step", 0), detail.get("attempt", 0),
    )  # fmt: skip


def _origin(row: Any) -> tuple[str, int, str]:
    """(run, round, system) of a root question."""
    return row["run"] or "", -1 if row["round"] is None else row["round"], row["system"] or ""


def _reason(detail: dict[str, Any], why: Why) -> str:
    if why == "escalated":
        return "waiting for human input"
    if why == "audit":
        return "random audit"
    reasons: list[str] = []
    if detail["status"] == "rejected":
        reasons.append(detail.get("error") or "no answer passed the check")
    if len(tally := detail.get("tally", ())) > 1:
        total = sum(weight for _, weight in tally)
        reasons.append(f"votes are split, {tally[0][1] / total:.0%} for the first")
    if detail.get("disagreement"):
        reasons.append(f"experts disagree, {detail['disagreement']:.0%} with the first")
    return "; ".join(reasons)


def state_of(store: TraceStore, item: Item) -> tuple[object, ...]:
    """The state that a judgement of an item rests on. Where it differs from the state in which the
    item was shown, another human judged the item or its answer changed.

    Raises:
        UsageError: the node no longer exists.
    """
    first = first_of(item.trajectory)
    now = find_item(store, f"{first}{item.path}")
    judgements = store.select(
        f"SELECT max(id) FROM judgements WHERE {BY_HUMANS} AND path = :path"  # noqa: S608
        " AND (question = :first OR question > :first || '~' AND question < :first || '~~')",
        {"path": item.path, "first": first},
    )
    return now.trajectory, now.answer, now.status, now.why == "escalated", next(judgements)[0]


def find_item(store: Rows, id: str) -> Item:
    """The item of an id, `TRAJECTORY/PATH`, in the queue or not; of the newest revision unless the
    id names one.

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
    (root,) = store.select("SELECT run, round, system FROM questions WHERE id=?", (trajectory,))
    return Item(
        trajectory, path, "audit", "named", node.question or text, node.answer, node.status,
        *_origin(root), 0,
    )  # fmt: skip


async def judge(store: TraceStore, item: Item, approved: bool, comment: str = "") -> None:
    """Record a human's verdict on a node; a rejected trajectory leaves the training rows."""
    detail = {"answer": item.answer, "comment": redact(comment)}
    await store.add_judgement(
        item.trajectory, item.path, "verdict", approved, detail, author="human"
    )


async def remark(store: TraceStore, item: Item, comment: str) -> None:
    """Record a human's comment on a node, which stays in the queue.

    Raises:
        UsageError: the comment is empty.
    """
    if not comment.strip():
        raise UsageError("the comment is empty; write at least one character")
    detail = {"comment": redact(comment)}
    await store.add_judgement(item.trajectory, item.path, "comment", None, detail, author="human")


DECISIONS = f"""
SELECT * FROM (
  SELECT id, question, path, kind, ok, detail FROM judgements WHERE {BY_HUMANS}
  UNION ALL SELECT id, question, path, kind, ok, detail FROM judgements
  WHERE kind = 'opinion' AND ok = 0 AND detail ->> 'of' > 1) ORDER BY +id
"""  # noqa: S608
"""Verdicts and overrides, and what one of several reviewers does not approve."""


def rejected_by_humans(store: TraceStore) -> set[str]:
    """First ids of the trajectories with a node whose current answer a human rejected, and which no
    later verdict or override replaced. The doubt of one of several reviewers rejects until they
    decide."""
    rejected: dict[tuple[str, str], str | None] = {}
    for row in store.select(DECISIONS):
        node = first_of(row["question"]), row["path"]
        if row["kind"] != "opinion":
            rejected.pop(node, None)
        if not row["ok"]:
            rejected[node] = json.loads(row["detail"])["answer"]
    still_rejected: set[str] = set()
    for (first, path), answer in rejected.items():
        ended = store.how_ended(newest(store, first), path)
        if ended is None or ended["answer"] == answer:
            still_rejected.add(first)
    return still_rejected


def edited_by_humans(store: TraceStore) -> set[str]:
    """First ids of the trajectories with an answer that a human put in."""
    sql = f"SELECT question FROM judgements WHERE {BY_HUMANS}"  # noqa: S608
    rows = store.select(f"{sql} AND kind = 'override' AND detail ->> 'answer' IS NOT NULL")
    return {first_of(row["question"]) for row in rows}


WAITS = f"SELECT EXISTS (SELECT 1 FROM judgements j WHERE j.question = ? AND {WAITING})"  # noqa: S608


@asynccontextmanager
async def marked_when_stopped(store: TraceStore, question: str) -> AsyncGenerator[None]:
    """Record a `stopped` judgement when the block that answers a root question is cancelled.

    A question that waits for a human is left as it is. A stopped question can be resumed, and then
    ends as any other does. A killed process leaves no judgement.
    """
    try:
        yield
    except asyncio.CancelledError:
        if not next(store.select(WAITS, (question,)))[0]:
            await store.add_judgement(question, "", "stopped", None, {}, key="0")
        raise
