"""A question can wait for a human, for days and through restarts.

The checkpoint holds only what is pending. Finished calls stand in the call log, so a question that
resumes repeats none of them. Checkpoints are an SQLite file in JSON: a pickle would run its code.
"""

# pyright: reportMissingTypeStubs=false

import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.overseers.protocol import validate_step
from reflux.agents.types import Ask, step_from_json
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.screening import begin
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.amplify.steps import approved
from reflux.graphs.traces.database import RESTORE, from_sqlite_error
from reflux.graphs.traces.losses import find_failure
from reflux.graphs.traces.store import TraceStore, last_call_id


def with_spend_limit(context: AmplifyContext) -> AmplifyContext:
    """The context of one root question: its seconds count from now, and the run's limit holds."""
    limits = context.limits
    if limits.seconds is None and limits.money is None:
        return context
    spend_limit = context.spend_limit.for_question(limits.seconds, limits.money)
    return replace(context, spend_limit=spend_limit)


def recursion_limit(context: AmplifyContext) -> int:
    """The most super-steps that one question can take: LangGraph must not end it first."""
    limits = context.limits
    # Sub-questions that need one another run one batch each. Of an attempt's last two
    # super-steps, one finds that no step is left, the other checks.
    return max(1, limits.attempts) * (limits.steps * (1 + 2 * limits.fanout) + 2) + 10


class StrictSerializer(JsonPlusSerializer):
    """Checkpoints that hold plain values: LangGraph's default calls whatever function a file names.

    Its `allowed_msgpack_modules` warns and calls by default; `None` calls nothing but its own list
    of safe types. Pickles, and the JSON of its early versions, are not read at all.
    """

    def __init__(self, path: Path, damaged: str) -> None:
        """`path` and the remedy `damaged` are for the error message."""
        super().__init__(allowed_msgpack_modules=None)
        self._about = path, damaged

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value of a checkpoint.

        Raises:
            UsageError: it is of another kind, or damaged.
        """
        path, damaged = self._about
        if data[0] not in PLAIN:
            raise UsageError(f"{path} holds a {data[0]!r:.40}, which is not read; {damaged}")
        try:
            return super().loads_typed(data)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} holds a damaged checkpoint: {error}; {damaged}") from error


PLAIN = ("null", "bytes", "bytearray", "msgpack")
"""The types of values that `StrictSerializer` writes."""


@asynccontextmanager
async def open_checkpoints(path: Path, damaged: str = RESTORE) -> AsyncGenerator[AsyncSqliteSaver]:
    """The checkpointer of a file, which is created if it is missing.

    An SQLite error inside the block is this file's: trajectories raise their own errors.

    Args:
        damaged: the remedy for a file that is not a whole database.

    Raises:
        UsageError: the file is damaged, or cannot be written.
        RefluxError: the disk is full, or another process holds the file.
    """
    try:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            saver.serde = StrictSerializer(path, damaged)
            yield saver
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error, damaged) from error


@dataclass(frozen=True)
class Pending:
    """A step that waits for a human."""

    id: str
    """The key of a reply; it stays the same until the reply comes."""
    path: str
    """Node of the tree; the root's is empty."""
    form: Mapping[str, Any]
    """What the human is shown; see `reflux.agents.types.Defer`."""


@dataclass(frozen=True)
class Answered:
    """How far a question came."""

    trajectory: str
    outcome: Outcome | None
    """None while a human has to reply first."""
    pending: Sequence[Pending] = ()
    failure: EndpointError | None = None
    """A call that got no reply this time, whatever was answered without it."""

    def check_endpoint(self) -> "Answered":
        """Return self; an endpoint that is down must not look like an agent that fails.

        Raises:
            EndpointError: the question failed with its last call.
        """
        failed = self.outcome is not None and self.outcome["status"] == "failed"
        if failed and self.failure is not None and self.failure.is_last:
            raise self.failure
        return self


def how_far(
    store: TraceStore,
    question_id: str,
    outcome: Outcome | None,
    after: int,
    interrupts: Sequence[Any] = (),
) -> Answered:
    """How far a question came, with the failure of its calls `after` a call's number."""
    failure = None if outcome is None else find_failure(store, question_id, after)
    pending = [Pending(i.id, i.value["path"], i.value["form"]) for i in interrupts]
    pending.sort(key=lambda each: (each.path, each.id))
    return Answered(question_id, outcome, tuple(pending), failure)


class InterruptibleRun:
    """The amplification graph on a checkpointer: a deferred step waits until a human replies."""

    def __init__(self, context: AmplifyContext, saver: BaseCheckpointSaver[Any]) -> None:
        self.context = context
        self._graph = cast(Any, build_graph()).compile(checkpointer=saver)
        self._store = context.recorded_client.store
        self._after = last_call_id(self._store)

    async def ask(self, question: str, question_id: str) -> Answered:
        """Begin a question; one that has begun resumes instead."""
        if (await self._state(question_id)).values:
            return await self.look(question_id)
        return await self._run(question_id, begin(question, question_id, self.context))

    async def look(self, question_id: str) -> Answered:
        """How far a question is; one that a crash stopped resumes.

        Raises:
            UsageError: it has not begun.
        """
        state = await self._state(question_id)
        if not state.values:
            raise UsageError(f"there is no question {question_id!r} to resume; ask it first")
        if state.next and not state.interrupts:
            return await self._run(question_id, None)
        outcome = state.values.get("outcome")
        return how_far(self._store, question_id, outcome, self._after, state.interrupts)

    async def pending(self, question_id: str) -> Sequence[Pending]:
        """The steps of a question that wait for humans. Nothing runs, nothing is spent."""
        state = await self._state(question_id)
        return how_far(self._store, question_id, None, 0, state.interrupts).pending

    async def reply(self, question_id: str, replies: Mapping[str, Any]) -> Answered:
        """Answer some of what is pending, by id, in any order; the rest keeps waiting.

        A reply is a step as JSON: `{"kind": "answer", "text": ...}`, `{"kind": "ask",
        "subquestions": [{"text": ..., "needs": []}]}`, or `{"kind": "approve"}` if the form holds
        a proposal.

        Raises:
            UsageError: nothing waits under an id, or a reply is not a valid step; all keep waiting.
        """
        pending = {each.id: each for each in (await self.look(question_id)).pending}
        if unknown := sorted(set(replies) - set(pending)):
            known = ", ".join(sorted(pending)) or "nothing"
            raise UsageError(f"nothing waits under {', '.join(unknown)}; pending: {known}")
        for id, reply in replies.items():
            check_reply(pending[id], reply)
        return await self._run(question_id, Command(resume=dict(replies)))

    async def _run(self, question_id: str, put: Any) -> Answered:
        context = with_spend_limit(self.context)
        columns = "SELECT run, round, system FROM questions WHERE id=?"
        # No row where the question is not in the store.
        origin = dict(next(self._store.select(columns, (question_id,)), ()))
        config = _config(question_id) | {"recursion_limit": recursion_limit(context)}
        with context.recorded_client.spans.run(question_id, origin) as span:
            state = await self._graph.ainvoke(put, config, context=context)
            outcome, waiting = state.get("outcome"), state.get("__interrupt__", ())
            span.ended(outcome["status"] if outcome else "waiting")
        return how_far(self._store, question_id, outcome, self._after, waiting)

    async def _state(self, question_id: str) -> Any:
        return await self._graph.aget_state(_config(question_id))


def _config(question_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": question_id}}


def check_reply(pending: Pending, reply: Any) -> None:
    """Check a reply before the graph takes it: an invalid one would be used up with its question.

    Raises:
        UsageError: it is not a step, or not one that is possible here.
    """
    try:
        if reply.get("kind") == "approve" and "proposal" not in pending.form:
            raise UsageError(
                f"there is no proposal to approve under {pending.id}; reply with a step"
            )
        step = validate_step(step_from_json(approved(reply, pending.form)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the reply to {pending.id} is not a step ({type(error).__name__}: {error}); write "
            '{"kind": "answer", "text": "..."} or {"kind": "ask", "subquestions": [{"text": "...", '
            '"needs": []}]}'
        ) from error
    if isinstance(step, Ask) and step.subquestions and pending.form.get("may_ask") is False:
        raise UsageError(
            f"{pending.id} lies as deep as sub-questions go (limits.depth): answer it, or pass"
        )


@asynccontextmanager
async def open_interruptible_run(
    context: AmplifyContext, path: Path
) -> AsyncGenerator[InterruptibleRun]:
    """An interruptible run whose checkpoints are in an SQLite file."""
    async with open_checkpoints(path) as saver:
        yield InterruptibleRun(context, saver)
