"""Search of trajectories by question, answer, origin and status, and the record of one node.

A page of results reads backwards from the newest row and scans at most `MAX_SCANNED` questions, so
its cost doesn't grow with the store. Each search has its own connection, so it blocks no other.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.graphs.traces.database import ROOT_ENDED, STOPPED, Rows, reading
from reflux.graphs.traces.trajectories import UNFINISHED, Trajectory

MAX_SCANNED = 25_000
"""Maximum questions that one page scans; `benchmarks/page.py` measures the cost."""
NAMED = ("url", "serve", *(f"import:{form}" for form in ("langfuse", "langsmith", "opentelemetry")))
"""Sources whose trajectories a program or a tracer names."""
BY_ID = "SELECT id, text FROM questions WHERE id = :q"
BY_PREFIX = """
SELECT id, text FROM questions WHERE id > :q AND id < :q || char(1114111)
  AND substr(id, 1, length(:q)) = :q AND (revises IS NULL OR instr(:q, '~')) LIMIT 2
"""

STATUS = f"""coalesce(j.detail ->> 'status', CASE WHEN {STOPPED} THEN 'stopped'
  WHEN q.source IS NOT NULL THEN '{UNFINISHED}' ELSE 'running' END)"""
SHOWN = 1_000
"""Maximum characters of a question and of an answer in the list."""
CUT = f"substr({{0}}, 1, {SHOWN}) || iif(length({{0}}) > {SHOWN}, '…', '')"
PAGE = f"""
SELECT q.rowid AS at, q.id, q.run, q.round, q.system, q.task, q.split, q.created,
  {CUT.format("q.text")} AS text, {STATUS} AS status,
  {CUT.format("(j.detail ->> 'answer')")} AS answer
FROM questions q LEFT JOIN judgements j ON j.id = {ROOT_ENDED}
WHERE q.rowid < :before AND q.rowid >= :first
  AND (:system = '' OR q.system = :system) AND (:split = '' OR q.split = :split)
  AND (:text = '' OR q.text LIKE :text ESCAPE '\\' OR q.id LIKE :start ESCAPE '\\'
    OR j.detail ->> 'answer' LIKE :text ESCAPE '\\')
  AND (:status = '' OR {STATUS} = :status)
ORDER BY q.rowid DESC LIMIT :limit
"""  # noqa: S608 - every part is a constant of ours


@dataclass(frozen=True)
class Wanted:
    """Conditions on trajectories; an empty field admits all."""

    text: str = ""
    """Part of the question or of the answer, ignoring ASCII case; or the beginning of the id."""
    system: str = ""
    split: str = ""
    status: str = ""
    """See `reflux.graphs.amplify.state.Status`; or `running`."""


def search(
    path: Path, wanted: Wanted, before: int | None = None, limit: int = 100
) -> tuple[list[dict[str, Any]], int | None]:
    """(trajectories, newest first; where the next page begins, None at the end) of a trace file.

    A page begins `before`, as the previous page returned it.

    Raises:
        UsageError: the file is damaged.
    """
    part = re.sub(r"([\\%_])", r"\\\1", wanted.text)
    with reading(path) as store:
        ((last,),) = store.select("SELECT coalesce(max(rowid), 0) + 1 FROM questions")
        start = min(last, before or last)
        first = max(0, start - MAX_SCANNED)
        parameters = asdict(wanted) | {
            "text": f"%{part}%" if part else "",
            "start": f"{part}%",
            "before": start,
            "first": first,
            "limit": limit,
        }
        rows = [dict(row) for row in store.select(PAGE, parameters)]
    if len(rows) == limit:
        return rows, rows[-1]["at"]
    return rows, first if first > 1 else None


def facets(path: Path) -> dict[str, Any]:
    """The `count` of all trajectories, their `systems` and their `splits`.

    Raises:
        UsageError: the file is damaged.
    """
    with reading(path) as store:
        rows = list(store.select("SELECT system, split, count(*) FROM questions GROUP BY 1, 2"))
    return {
        "count": sum(number for _, _, number in rows),
        "systems": sorted({system for system, _, _ in rows if system}),
        "splits": sorted({split for _, split, _ in rows if split}),
    }


_TURNS = TypeAdapter(list[dict[str, Any]])
MAX_ROWS = 200
"""Maximum calls, and maximum judgements, in the record of one node."""


def node_record(
    path: Path, question: str, node: str, prices: Mapping[str, Price]
) -> dict[str, Any]:
    """`calls`, `judgements` and `cost` of a node, oldest first, as plain JSON types.

    `question` is the id of the root, `node` a path, empty for the root. A call of a model without
    a price has no cost.

    Raises:
        UsageError: there is no such question, or the file is damaged.
    """
    key = (question, node)
    with reading(path) as store:
        root = next(store.select(ROOT, (question,)), None)
        if root is None:
            raise UsageError(
                f"no trajectory has the id {question[:80]!r}; `reflux traces list` shows the ids"
            )
        calls = [_call(row, prices) for row in store.select(CALLS, key)]
        judgements = [dict(row) for row in store.select(JUDGEMENTS, key)]
        ((count,),) = store.select("SELECT count(*) FROM calls WHERE question=? AND path=?", key)
    for row in judgements:
        row["ok"] = None if row["ok"] is None else bool(row["ok"])
        row["detail"] = json.loads(row["detail"])
    costs = [call["cost"] for call in calls if call["kind"] == "model"]
    return {
        "trajectory": question,
        "path": node,
        **dict(root),
        "calls": calls,
        "calls_made": count,
        "cost": None if None in costs else sum(costs),
        "judgements": judgements,
    }


ROOT = "SELECT run, round, system, split, created FROM questions WHERE id = ?"
CALLS = f"""
SELECT id, role, step, attempt, vote, kind, model, completion, finish_reason, prompt_tokens,
  completion_tokens, seconds, error, messages, logprobs, tool_calls, sampling, cached
FROM calls WHERE question=? AND path=? ORDER BY id LIMIT {MAX_ROWS}
"""  # noqa: S608
JUDGEMENTS = f"""
SELECT kind, ok, detail, author, created FROM judgements
WHERE question=? AND path=? AND kind NOT IN ('how', 'opinion') ORDER BY id LIMIT {MAX_ROWS}
"""  # noqa: S608


def _call(row: sqlite3.Row, prices: Mapping[str, Price]) -> dict[str, Any]:
    price = prices.get(row["model"])
    return {
        **dict(row),
        "messages": _messages(row["messages"]),
        "logprobs": json.loads(row["logprobs"] or "[]"),
        "tool_calls": json.loads(row["tool_calls"] or "[]"),
        "sampling": json.loads(row["sampling"] or "{}"),
        "cached": bool(row["cached"]),
        "cost": price.of(row["prompt_tokens"], row["completion_tokens"]) if price else None,
    }


def _messages(text: str | None) -> list[dict[str, Any]]:
    """The messages of a model call; a tool call has arguments, which may be any text."""
    if not text:
        return []
    try:
        return _TURNS.validate_json(text)
    except ValidationError:
        return [{"role": "arguments", "content": text}]


def find_question(store: Rows, question: str) -> tuple[str, str]:
    """(id, text) of a root question, by its id, an unambiguous prefix of it, or the name that its
    program or tracer gave it.

    A prefix without `~` is that of an original trajectory, not of its revisions.

    Raises:
        UsageError: no trajectory matches, or several do.
    """
    parameters = {"q": question}
    rows = list(store.select(BY_ID, parameters))
    # By the index: a scan of 100,000 questions would delay everything else.
    rows = rows or list(store.select(BY_PREFIX, parameters))
    rows = rows or [row for id in _named(question) for row in store.select(BY_ID, {"q": id})]
    if len(rows) != 1 and "~" in question and not question.startswith("~"):
        prefix, _, number = question.partition("~")
        id = f"{find_question(store, prefix)[0]}~{number}"
        if id != question:
            return find_question(store, id)
    if len(rows) != 1:
        matches = "several trajectories begin" if rows else "no trajectory begins"
        raise UsageError(f"{matches} with {question!r}; `reflux traces list` shows the ids")
    return rows[0]["id"], rows[0]["text"]


def _named(name: str) -> Iterator[str]:
    """The ids that a trajectory of this name has, by how it was recorded."""
    return (Trajectory(name, source).id for source in NAMED)
