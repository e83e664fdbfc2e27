"""LangGraph's checkpoints in an SQLite file, in JSON alone: a pickle would run what it holds.

Questions that can wait for a person, for days and through restarts (DESIGN: interrupts).

LangGraph's checkpoint holds what is pending and nothing else that counts: finished calls stand in
the call log, so going on repeats none of them.
"""

# pyright: reportMissingTypeStubs=false

import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import validate_step
from reflux.agents.types import Ask, step_from_json
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import begin, build_graph
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.amplify.steps import approved
from reflux.graphs.ask import recursion_limit, with_spend_limit
from reflux.graphs.traces.database import RESTORE, from_sqlite_error


@asynccontextmanager
async def open_checkpoints(path: Path, damaged: str = RESTORE) -> AsyncGenerator[AsyncSqliteSaver]:
    """The checkpointer of a file, which is made where there is none; trajectories raise errors of
    their own, so what fails here as SQLite's is this file.

    Args:
        damaged: the remedy where the file is no whole database.

    Raises:
        UsageError: the file is damaged, or not to be written.
        RefluxError: the disk is full, or another process holds the file.
    """
    try:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            yield saver
    except sqlite3.Error as error:
        raise from_sqlite_error(path, error, damaged) from error


@dataclass(frozen=True)
class Pending:
    """What waits for a person."""

    id: str
    """To be answered by; the same until it is."""
    path: str
    """Node of the tree; the root's is empty."""
    form: Mapping[str, Any]
    """What the person is shown; see `reflux.agents.types.Defer`."""


@dataclass(frozen=True)
class RunProgress:
    """How far a question came: to its outcome, or to persons who have to answer first."""

    outcome: Outcome | None
    pending: Sequence[Pending] = ()


class InterruptibleRun:
    """Amplify^H(X) on a checkpointer: what H defers is kept until somebody answers."""

    def __init__(self, context: AmplifyContext, saver: BaseCheckpointSaver[Any]) -> None:
        self.context = context
        self._graph = cast(Any, build_graph()).compile(checkpointer=saver)

    async def ask(self, question: str, question_id: str) -> RunProgress:
        """Begin a question, or tell how far it is: one that has begun does not begin again."""
        known = await self._graph.aget_state(self._config(question_id))
        if known.values:
            return await self.look(question_id)
        return await self._go(question_id, begin(question, question_id, self.context))

    async def look(self, question_id: str) -> RunProgress:
        """How far a question is; one that a crash has stopped goes on.

        Raises:
            UsageError: it has not begun.
        """
        known = await self._graph.aget_state(self._config(question_id))
        if not known.values:
            raise UsageError(f"there is no question {question_id!r} to go on with; ask it first")
        if known.next and not known.interrupts:
            return await self._go(question_id, None)
        return RunProgress(known.values.get("outcome"), _pending(known.interrupts))

    async def pending(self, question_id: str) -> Sequence[Pending]:
        """What of a question waits for persons; nothing is set going, nothing is spent."""
        return _pending((await self._graph.aget_state(self._config(question_id))).interrupts)

    async def reply(self, question_id: str, replies: Mapping[str, Any]) -> RunProgress:
        """Answer some of what is pending, by id, in any order; the rest goes on waiting.

        A reply is a step as JSON: `{"kind": "answer", "text": ...}`, `{"kind": "ask",
        "subquestions": [{"text": ..., "needs": []}]}`, or `{"kind": "approve"}` where the form
        holds a proposal.

        Raises:
            UsageError: an id that nobody waits under, or a reply that is no step there; all go on
                waiting.
        """
        waiting = {each.id: each for each in (await self.look(question_id)).pending}
        if strange := sorted(set(replies) - set(waiting)):
            there = ", ".join(sorted(waiting)) or "nothing"
            raise UsageError(f"nothing waits under {', '.join(strange)}; pending: {there}")
        for id, said in replies.items():
            _take(waiting[id], said)
        return await self._go(question_id, Command(resume=dict(replies)))

    async def _go(self, question_id: str, put: Any) -> RunProgress:
        context = with_spend_limit(self.context)
        config = self._config(question_id) | {"recursion_limit": recursion_limit(context)}
        with context.recorded_client.spans.run(question_id, self._asked(question_id)) as span:
            state = await self._graph.ainvoke(put, config, context=context)
            outcome = state.get("outcome")
            span.ended(outcome["status"] if outcome else "waiting")
        return RunProgress(outcome, _pending(state.get("__interrupt__", ())))

    def _asked(self, question_id: str) -> Mapping[str, Any]:
        """Where the question comes from, as the store has it; empty where it has nothing."""
        asked = "SELECT run, round, system FROM questions WHERE id=?"
        return dict(next(self.context.recorded_client.store.select(asked, (question_id,)), ()))

    def _config(self, question_id: str) -> dict[str, Any]:
        return {"configurable": {"thread_id": question_id}}


def _take(pending: Pending, said: Any) -> None:
    """Refuse a reply that could not be gone on with: it would be spent, and its question lost."""
    try:
        if said.get("kind") == "approve" and "proposal" not in pending.form:
            raise UsageError(
                f"there is no proposal to approve under {pending.id}; reply with a step"
            )
        step = validate_step(step_from_json(approved(said, pending.form)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the reply to {pending.id} is no step ({type(error).__name__}: {error}); write "
            '{"kind": "answer", "text": "..."} or {"kind": "ask", "subquestions": [{"text": "...", '
            '"needs": []}]}'
        ) from error
    if isinstance(step, Ask) and step.subquestions and pending.form.get("may_ask") is False:
        raise UsageError(
            f"{pending.id} lies as deep as sub-questions go (limits.depth): answer it, or pass"
        )


def _pending(interrupts: Sequence[Any]) -> tuple[Pending, ...]:
    found = (Pending(i.id, i.value["path"], i.value["form"]) for i in interrupts)
    return tuple(sorted(found, key=lambda each: (each.path, each.id)))


@asynccontextmanager
async def open_interruptible_run(
    context: AmplifyContext, path: Path
) -> AsyncGenerator[InterruptibleRun]:
    """A patient whose checkpoints are in a SQLite file."""
    async with open_checkpoints(path) as saver:
        yield InterruptibleRun(context, saver)
