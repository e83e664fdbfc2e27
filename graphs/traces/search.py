"""Trajectories by question, answer, origin and ending: pages of a list of any length.

A page costs the same in any store: it reads from the newest backwards, in the order of the rows
themselves, and looks at no more than `LOOKED_AT` of them. Each reader has a connection of its own,
so a search blocks neither the writer nor whoever else reads.

All that is recorded of one node: every call with its messages, and every judgement.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.graphs.traces.database import ROOT_ENDED, STOPPED, reading

LOOKED_AT = 25_000
"""Most questions that one page looks at; see `benchmarks/page.py` for what that costs."""

STATUS = f"coalesce(j.detail ->> 'status', CASE WHEN {STOPPED} THEN 'stopped' ELSE 'running' END)"
SHOWN = 1_000
"""Characters of a question and of an answer in the list; the tree has the whole."""
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
    """What a trajectory has to be; an empty field admits all."""

    text: str = ""
    """Part of the question or of the answer, in any case of its ASCII letters; or the beginning of
    the id."""
    system: str = ""
    split: str = ""
    status: str = ""
    """See `reflux.graphs.amplify.state.Status`; or `running`."""


def search(
    path: Path, wanted: Wanted, before: int | None = None, limit: int = 100
) -> tuple[list[dict[str, Any]], int | None]:
    """(trajectories, the newest first; where the next page begins, None at the end).

    Args:
        path: the trace file.
        before: what an earlier page gave.

    Raises:
        UsageError: the file is damaged.
    """
    part = _escaped(wanted.text)
    with reading(path) as database:
        (last,) = database.execute("SELECT coalesce(max(rowid), 0) + 1 FROM questions").fetchone()
        start = min(last, before or last)
        first = max(0, start - LOOKED_AT)
        asked = asdict(wanted) | {
            "text": f"%{part}%" if part else "",
            "start": f"{part}%",
            "before": start,
            "first": first,
            "limit": limit,
        }
        found = [dict(row) for row in database.execute(PAGE, asked)]
    if len(found) == limit:
        return found, found[-1]["at"]
    return found, first if first > 1 else None


def facets(path: Path) -> dict[str, Any]:
    """`count` of all trajectories, and the `systems` and `splits` there are.

    Raises:
        UsageError: the file is damaged.
    """
    with reading(path) as database:
        rows = list(
            database.execute(
                "SELECT coalesce(system, '') AS system, coalesce(split, '') AS split,"
                " count(*) AS number FROM questions GROUP BY 1, 2"
            )
        )
    return {
        "count": sum(row["number"] for row in rows),
        "systems": sorted({row["system"] for row in rows if row["system"]}),
        "splits": sorted({row["split"] for row in rows if row["split"]}),
    }


def _escaped(text: str) -> str:
    for special in ("\\", "%", "_"):
        text = text.replace(special, f"\\{special}")
    return text


_TURNS = TypeAdapter(list[dict[str, Any]])
MOST = 200
"""Calls, and judgements, of one node; a node with more tells how many there are."""


def node_record(
    path: Path, question: str, node: str, prices: Mapping[str, Price]
) -> dict[str, Any]:
    """`calls`, `judgements` and `cost` of a node, oldest first, as plain JSON types.

    Args:
        path: the trace file.
        question: id of the root.
        node: path of the node, empty for the root.
        prices: of models by name; a call of another has no cost.

    Raises:
        UsageError: there is no such question, or the file is damaged.
    """
    at = (question, node)
    with reading(path) as database:
        root = database.execute("SELECT * FROM questions WHERE id = ?", (question,)).fetchone()
        if root is None:
            raise UsageError(
                f"no trajectory is called {question[:80]!r}; `reflux traces list` names them"
            )
        calls = database.execute(
            "SELECT * FROM calls WHERE question=? AND path=? ORDER BY id LIMIT ?", (*at, MOST)
        ).fetchall()
        judged = database.execute(
            "SELECT * FROM judgements WHERE question=? AND path=? AND kind != 'how'"
            " ORDER BY id LIMIT ?",
            (*at, MOST),
        ).fetchall()
        (made,) = database.execute(
            "SELECT count(*) FROM calls WHERE question=? AND path=?", at
        ).fetchone()
    told = [_call(row, prices) for row in calls]
    costs = [call["cost"] for call in told if call["kind"] == "model"]
    return {
        "trajectory": question,
        "path": node,
        "run": root["run"],
        "round": root["round"],
        "system": root["system"],
        "split": root["split"],
        "created": root["created"],
        "calls": told,
        "calls_made": made,
        "cost": None if None in costs else sum(costs),
        "judgements": [_judgement(row) for row in judged],
    }


def _call(row: sqlite3.Row, prices: Mapping[str, Price]) -> dict[str, Any]:
    price = prices.get(row["model"])
    cost = price.of(row["prompt_tokens"], row["completion_tokens"]) if price else None
    return {
        "id": row["id"],
        "role": row["role"],
        "step": row["step"],
        "attempt": row["attempt"],
        "vote": row["vote"],
        "kind": row["kind"],
        "model": row["model"],
        "messages": _messages(row["messages"]),
        "completion": row["completion"],
        "logprobs": json.loads(row["logprobs"] or "[]"),
        "tool_calls": json.loads(row["tool_calls"] or "[]"),
        "sampling": json.loads(row["sampling"] or "{}"),
        "finish_reason": row["finish_reason"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "seconds": row["seconds"],
        "cached": bool(row["cached"]),
        "error": row["error"],
        "cost": cost,
    }


def _messages(text: str | None) -> list[dict[str, Any]]:
    """Of a model's call its messages; of a tool's its arguments, which may be anything."""
    if not text:
        return []
    if (found := _turns(text)) is not None:
        return found
    return [{"role": "arguments", "content": text}]


def _turns(text: str) -> list[dict[str, Any]] | None:
    try:
        return _TURNS.validate_json(text)
    except ValidationError:
        return None


def _judgement(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "kind": row["kind"],
        "ok": None if row["ok"] is None else bool(row["ok"]),
        "detail": json.loads(row["detail"]),
        "author": row["author"],
        "created": row["created"],
    }
