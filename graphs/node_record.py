"""All that is recorded of one node: every call with its messages, and every judgement."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agents.errors import UsageError
from agents.purse import Price
from graphs.database import reading

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
