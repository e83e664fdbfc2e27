"""Answers that wait for persons: shown and replied to through the server, kept through restarts."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import HumanOverseer, Reviewed
from reflux.ask_options import AskOptions, options_of
from reflux.cli.human_input import step_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.interrupts import (
    InterruptibleRun,
    Pending,
    RunProgress,
    open_checkpoints,
)
from reflux.graphs.amplify.recompute import revised_context
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.tree import find_question
from reflux.overseers import overseer_named


def asks_humans(overseer: Overseer | None) -> bool:
    """True where H may have to wait for somebody."""
    return isinstance(overseer, HumanOverseer | Reviewed)


@dataclass
class _Conversation:
    """A client that waits for an answer, and how far that has come."""

    interruptible_run: InterruptibleRun
    progress: asyncio.Queue[RunProgress] = field(default_factory=asyncio.Queue)


class Waiting:
    """What waits for persons in one run folder."""

    def __init__(self, run: OpenRun, overseers: Mapping[str, Overseer]) -> None:
        self._run = run
        self._overseers = overseers
        self._open = AsyncExitStack()
        self._saver: AsyncSqliteSaver | None = None
        self._opening = asyncio.Lock()
        self._conversations: dict[str, _Conversation] = {}
        self._replying: dict[str, asyncio.Lock] = {}

    async def answer(
        self,
        trajectory: str,
        question: str,
        context: AmplifyContext,
        say: Callable[[str], None],
    ) -> Outcome:
        """Ask a question that the store knows, and wait for every person that H defers to.

        Where the waiting is cancelled, what waits goes on waiting: a later reply is not lost.
        """
        talk = _Conversation(InterruptibleRun(context, await self._checkpoints()))
        self._conversations[trajectory] = talk
        try:
            progress = await talk.interruptible_run.ask(question, trajectory)
            while progress.outcome is None:
                for pending in progress.pending:
                    say(f"a person is asked: {pending.form.get('question', question)}\n")
                progress = await talk.progress.get()
            return progress.outcome
        finally:
            del self._conversations[trajectory]

    async def pending(self) -> list[tuple[str, str, Pending]]:
        """(trajectory, question, what waits), the newest question first; nothing is set going."""
        if self._saver is None and not self._run.folder.checkpoints_path.is_file():
            return []
        saver = await self._checkpoints()
        async with saver.conn.execute("SELECT DISTINCT thread_id FROM checkpoints") as rows:
            threads = [str(row[0]) async for row in rows]
        interruptible_run = InterruptibleRun(AmplifyContext(self._caller(), "", ()), saver)
        asked = self._run.store.select(
            "SELECT id, text FROM questions WHERE id IN (SELECT value FROM json_each(?))"
            " ORDER BY created DESC",
            (json.dumps(threads),),
        )
        return [
            (row["id"], row["text"], each)
            for row in list(asked)
            for each in await interruptible_run.pending(row["id"])
        ]

    async def reply(self, trajectory: str, id: str, words: str) -> RunProgress:
        """A person's words (see `reflux.cli.human_input.HELP`); the question goes on with them.

        Raises:
            UsageError: nothing waits under this id, or the words are no step.
        """
        step = step_of(words)
        question_id, _ = find_question(self._run.store, trajectory)
        async with self._replying.setdefault(question_id, asyncio.Lock()):
            talk = self._conversations.get(question_id)
            saver = await self._checkpoints()
            interruptible_run = (
                talk.interruptible_run
                if talk
                else InterruptibleRun(self._context(question_id), saver)
            )
            waiting = {each.id: each for each in await interruptible_run.pending(question_id)}
            if id not in waiting:
                there = ", ".join(waiting) or "nothing"
                raise UsageError(f"nothing waits under {id[:80]!r}; pending: {there}")
            if step["kind"] == "approve" and "proposal" not in waiting[id].form:
                raise UsageError("there is no proposal to approve: answer, ask, or pass")
            progress = await interruptible_run.reply(question_id, {id: step})
            if talk:
                talk.progress.put_nowait(progress)
        return progress

    async def close(self) -> None:
        """Close the checkpoints."""
        await self._open.aclose()

    async def _checkpoints(self) -> AsyncSqliteSaver:
        async with self._opening:
            if self._saver is None:
                path = self._run.folder.checkpoints_path
                saver = await self._open.enter_async_context(open_checkpoints(path))
                await saver.setup()
                self._saver = saver
            return self._saver

    def _how(self, trajectory: str) -> AskOptions:
        options = options_of(self._run.store, trajectory)
        if options is None:
            raise UsageError(f"{trajectory} was not asked in a way that waits for persons")
        return options

    def _context(self, trajectory: str) -> AmplifyContext:
        """As the question was asked; a tool that a copy was granted is not known here."""
        options = self._how(trajectory)
        if options.tools:
            raise UsageError("this question's copies have tools: go on with `reflux reply`")
        context = options.context(self._caller(), overseer_named(options.overseer, self._overseers))
        return revised_context(context, trajectory)

    def _caller(self) -> RecordedClient:
        return RecordedClient(self._run.cache, self._run.store)
