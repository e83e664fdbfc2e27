"""Stores trajectories of any program's agent, whole or as they grow: redacted, and none twice."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from reflux.graphs.traces.database import Statement
from reflux.graphs.traces.recorded_client import row_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    RECORDED,
    UNFINISHED,
    Feedback,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
    is_accepted,
    redacted,
)


class TrajectoryWriter:
    """Stores trajectories, whole or as they grow.

    No method blocks, and each may be called from any thread. What one call stores is committed
    whole or not at all; its future is done after the commit, and raises as `TraceStore.submit`'s.
    """

    def __init__(self, store: TraceStore) -> None:
        self.store = store

    def record(self, trajectory: Trajectory) -> "Future[None]":
        """Store a trajectory with its calls, outcome and feedback; what is stored is not again."""
        statements = [_question(trajectory)]
        id, step = trajectory.id, 0
        for call in trajectory.calls:
            step = step if call.step is None else call.step
            statements.append(_call(id, replace(call, step=step)))
            step += 1
        if trajectory.outcome is not None:
            statements.append(_outcome(id, trajectory.question, trajectory.outcome, once=True))
        statements += (_feedback(id, each, once=True) for each in trajectory.feedback)
        statements += (_refused(id, each) for each in trajectory.rejected)
        return self.store.submit(statements)

    def add(
        self,
        trajectory: Trajectory | str,
        calls: Sequence[RecordedCall],
        outcome: RecordedOutcome | None = None,
        conversations: Sequence[bytes] = (),
        continues: bytes | None = None,
    ) -> "Future[None]":
        """Add calls to a trajectory, and how it stands now.

        Args:
            trajectory: the id of one that is stored, or one that is begun where it is not stored;
                its `calls`, `outcome` and `feedback` are left out.
            outcome: one that is `unfinished` is stored where it says why, or replaces another.
            conversations: digests of what the trajectory has come to, and `continues`, that of what
                it goes on from; see `reflux.graphs.traces.recording.prefixes`.
        """
        text = replace(_NOBODYS, calls=tuple(calls)).question
        statements: list[Statement] = []
        if isinstance(trajectory, Trajectory):
            text = trajectory.text or text
            statements.append(_question(replace(trajectory, text=text)))
        id = trajectory if isinstance(trajectory, str) else trajectory.id
        statements += (_call(id, call) for call in calls)
        now = time.time()
        statements += ((_CONVERSATION, (digest, now)) for digest in conversations)
        if continues is not None:
            statements.append((_CONTINUED, (continues, id)))
        if outcome is not None:
            statements.append(_outcome(id, text, outcome))
        return self.store.submit(statements)

    def end(self, id: str, question: str, outcome: RecordedOutcome) -> "Future[None]":
        """Store how a trajectory ended; a later outcome replaces it."""
        return self.store.submit([_outcome(id, question, outcome)])

    def score(self, id: str, feedback: Feedback) -> "Future[None]":
        """Store a score or a comment on a trajectory that is stored."""
        return self.store.submit([_feedback(id, feedback)])


_NOBODYS = Trajectory("", "")


def _question(trajectory: Trajectory) -> Statement:
    about = {
        "key": redacted(trajectory.key),
        "name": trajectory.name,
        "metadata": dict(trajectory.metadata),
        "tags": list(trajectory.tags),
        "told_by": trajectory.told_by,
    }
    values = {
        "id": trajectory.id,
        "round": -1,
        "system": RECORDED,
        "task": "",
        "split": RECORDED,
        "text": redacted(trajectory.question),
        "created": trajectory.created or time.time(),
        "source": trajectory.source,
        "about": json.dumps(redacted({name: value for name, value in about.items() if value})),
    }
    return _insert("questions", values, "INSERT OR IGNORE")


def _call(id: str, call: RecordedCall) -> Statement:
    reply = call.reply
    tool_calls = tuple(replace(c, arguments=redacted(c.arguments)) for c in reply.tool_calls)
    reply = replace(
        reply,
        text=redacted(reply.text),
        reasoning=redacted(reply.reasoning),
        tool_calls=tool_calls,
    )
    is_tool = call.kind == "tool"
    values = {
        "question": id,
        "path": call.path,
        "role": redacted(call.node),
        "step": call.step,
        "attempt": call.attempt,
        "vote": call.vote,
        "kind": call.kind,
        "model": redacted(call.model),
        "messages": redacted(call.arguments) if is_tool else json.dumps(redacted(call.messages)),
        "tools": json.dumps(redacted(call.tools)) if call.tools else None,
        "sampling": json.dumps(redacted(call.sampling)) if call.sampling else None,
        **row_of(reply),
        "error": None if call.error is None else redacted(call.error),
        "created": call.created or time.time(),
    }
    return _CALL, values


_CALL_COLUMNS = (
    "question", "path", "role", "attempt", "vote", "kind", "model", "messages", "tools", "sampling",
    "completion", "logprobs", "finish_reason", "prompt_tokens", "completion_tokens", "seconds",
    "cached", "retries", "tool_calls", "reasoning", "notes", "error", "created",
)  # fmt: skip
_CALL = f"""
INSERT INTO calls ({", ".join(_CALL_COLUMNS)}, step)
SELECT {", ".join(f":{column}" for column in _CALL_COLUMNS)}, coalesce(:step,
  (SELECT coalesce(max(step) + (:vote = 0), 0) FROM calls WHERE question = :question))
WHERE :step IS NULL OR NOT EXISTS (SELECT 1 FROM calls WHERE question = :question AND path = :path
  AND role = :role AND step = :step AND attempt = :attempt AND vote = :vote)
"""  # noqa: S608 - the columns are constants
"""The next number is found where it is used, as other processes may write the trajectory, too."""
_CONVERSATION = """
INSERT OR REPLACE INTO conversations
SELECT ?, question, step, 0, ? FROM calls WHERE id = last_insert_rowid()
"""
_CONTINUED = "UPDATE conversations SET continued = 1 WHERE digest = ? AND question = ?"


def _outcome(id: str, question: str, outcome: RecordedOutcome, once: bool = False) -> Statement:
    detail = {"question": question, **vars(outcome)}
    ok = is_accepted(outcome.status)
    sql, values = _judgement(id, "", "outcome", ok, detail, "reflux", once)
    if outcome.status == UNFINISHED and outcome.error is None and not once:
        return f"{sql.replace('VALUES (', 'SELECT ').rstrip(')')} {_WHERE_IT_ENDED}", (*values, id)
    return sql, values


_WHERE_IT_ENDED = f"""
WHERE (SELECT detail ->> 'status' FROM judgements WHERE question = ? AND path = ''
  AND kind = 'outcome' ORDER BY id DESC LIMIT 1) != '{UNFINISHED}'
"""  # noqa: S608 - the part is a constant of ours


def _feedback(id: str, feedback: Feedback, once: bool = False) -> Statement:
    detail = {"score": feedback.score, "name": feedback.name, "comment": feedback.comment}
    return _judgement(id, feedback.path, "feedback", None, detail, feedback.author, once)


def _refused(id: str, answer: str) -> Statement:
    return _judgement(id, "", "check", False, {"answer": answer}, "reflux", once=True)


def _judgement(
    id: str, path: str, kind: str, ok: bool | None, detail: Mapping[str, Any], author: str,
    once: bool,
) -> tuple[str, tuple[Any, ...]]:  # fmt: skip
    body = json.dumps(redacted(detail))
    digest = hashlib.sha256(f"{author}\x1f{body}".encode()).hexdigest()[:16]
    values = {
        "question": id,
        "path": path,
        "kind": kind,
        "ok": None if ok is None else int(ok),
        "detail": body,
        "author": author,
        "key": f"{id}{path}:{kind}:{digest}" if once else None,
        "created": time.time(),
    }
    return _insert("judgements", values, "INSERT OR IGNORE" if once else "INSERT")


def _insert(table: str, values: Mapping[str, Any], verb: str) -> tuple[str, tuple[Any, ...]]:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    return f"{verb} INTO {table} ({names}) VALUES ({marks})", tuple(values.values())
