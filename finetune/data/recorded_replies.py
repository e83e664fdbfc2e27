"""Replies of recorded calls: as messages, as a human edited them, and why some are not learned."""

import json
from typing import Any

from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.selection import Selected

SAYING = """
SELECT max(id) FROM calls WHERE question = ? AND kind = 'model' AND error IS NULL
  AND trim(completion) = trim(?)
"""
FINISHED = ("stop", "tool_calls", "function_call", "end_turn", "tool_use", "completed", "eos", "")
"""Reasons for which a model ends a whole reply."""


def edit_of(store: Rows, selected: Selected) -> tuple[int | None, str | None]:
    """The last call whose reply a human's edit of another program's answer replaces, and the edit;
    no call where none said the answer by itself."""
    first = first_of(selected.id)
    if selected.source == "reflux" or selected.id == first:
        return None, None
    edit, original = ((store.how_ended(id) or {}).get("answer") for id in (selected.id, first))
    return next(store.select(SAYING, (first, original)))[0], edit


def reply_message(row: Any, reasoning: bool, edit: str | None) -> dict[str, Any]:
    """The message that a call answered with, or should have."""
    if edit is not None:
        return {"role": "assistant", "content": edit}
    message: dict[str, Any] = {"role": "assistant", "content": row["completion"] or ""}
    if calls := json.loads(row["tool_calls"] or "[]"):
        message["tool_calls"] = [
            {"id": id, "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ]
    if reasoning and row["reasoning"]:
        message["reasoning_content"] = row["reasoning"]
    return message


def why_not_learned(row: Any) -> str:
    """Why a reply is not to be learned; empty for a whole one."""
    reason = row["finish_reason"] or ""
    if reason in ("length", "max_tokens", "incomplete"):
        return "cut by the token limit"
    if reason not in FINISHED:
        return f"ended by {reason}"
    if not (row["completion"] or "").strip() and not row["tool_calls"]:
        return "an empty reply"
    return ""


def vote_won(store: Rows, row: Any) -> bool:
    """Whether a vote is the answer of its node."""
    answer = (store.how_ended(row["question"], row["path"]) or {}).get("answer")
    return answer is None or answer.strip() in (row["completion"] or "")


def role_of(row: Any) -> str:
    """What a call of Reflux's trees does."""
    role = str(row["role"])
    if role == "overseer":
        return "combine" if row["step"] else "decompose"
    return "answer" if role.startswith(("answer", "chain")) else "check"


def why_unreadable(error: Exception) -> str:
    """The reason for which a call is no row, without what differs between calls."""
    text = str(error)
    if "image" in text or " holds an " in text:
        return "not text alone"
    if isinstance(error, KeyError):
        return f"a message without {error}"
    return "tool calls that are no JSON" if "argument" in text or "JSON" in text else text[:80]
