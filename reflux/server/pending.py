"""Questions that wait for humans: the server shows them and takes replies, also after a restart."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import parse_reply
from reflux.agents.tools.protocol import Grants
from reflux.ask_context import NO_GRANTS, context_of
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify import interrupts
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.interrupts import Answered, InterruptibleRun, Pending
from reflux.graphs.ask import WaitForHumans
from reflux.graphs.ask_options import options_of
from reflux.graphs.recompute import revised_context
from reflux.graphs.traces.search import find_question


class _Client:
    """A client that waits for an answer: its question's run, and the progress after each reply."""

    def __init__(self) -> None:
        self.run: asyncio.Future[InterruptibleRun | None] = asyncio.Future()
        self.progress: asyncio.Queue[Answered] = asyncio.Queue()


class Waiting:
    """The questions of one run folder that wait for humans."""

    def __init__(self, run: OpenRun, overseers: Mapping[str, Overseer]) -> None:
        self._run = run
        self._overseers = overseers
        self.grants: Grants = NO_GRANTS
        """Open tools of the run's own task."""
        self._stack = AsyncExitStack()
        self._saver: AsyncSqliteSaver | None = None
        self._opening = asyncio.Lock()
        self._clients: dict[str, _Client] = {}
        self._replying: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def client(
        self, trajectory: str, say: Callable[[str], None]
    ) -> AsyncGenerator[WaitForHumans]:
        """What lets a client wait until its question has an outcome; `say` tells the client.

        If the client leaves, the question goes on waiting.
        """
        client = self._clients[trajectory] = _Client()

        async def wait(run: InterruptibleRun, id: str, progress: Answered) -> Answered:
            client.run.set_result(run)
            while progress.outcome is None:
                for pending in progress.pending:
                    say(f"a human is asked: {pending.form.get('question', '')}\n")
                progress = await client.progress.get()
            return progress

        try:
            yield wait
        finally:
            del self._clients[trajectory]
            if not client.run.done():
                client.run.set_result(None)

    async def pending(self) -> list[tuple[str, str, Pending]]:
        """(trajectory, question, pending step), the newest question first; nothing is started."""
        if self._saver is None and not self._run.folder.checkpoints_path.is_file():
            return []
        saver = await self.checkpoints()
        async with saver.conn.execute("SELECT DISTINCT thread_id FROM checkpoints") as rows:
            threads = [str(row[0]) async for row in rows]
        run = InterruptibleRun(AmplifyContext(self._run.recorded_client, "", ()), saver)
        questions = self._run.store.select(
            "SELECT id, text FROM questions WHERE id IN (SELECT value FROM json_each(?))"
            " ORDER BY created DESC",
            (json.dumps(threads),),
        )
        return [
            (row["id"], row["text"], each)
            for row in list(questions)
            for each in await run.pending(row["id"])
        ]

    async def reply(self, trajectory: str, id: str, words: str) -> Answered:
        """Take a human's words (see `REPLY_HELP`); the question goes on with them.

        Raises:
            UsageError: nothing waits under this id, or the words are no step.
        """
        step = parse_reply(words)
        question_id, _ = find_question(self._run.store, trajectory)
        async with self._replying.setdefault(question_id, asyncio.Lock()):
            client = self._clients.get(question_id)
            saver = await self.checkpoints()
            run = await client.run if client else None
            run = run or InterruptibleRun(self._context(question_id), saver)
            forms = {each.id: each.form for each in await run.pending(question_id)}
            if id not in forms:
                known = ", ".join(forms) or "nothing"
                raise UsageError(f"nothing waits under {id[:80]!r}; pending: {known}")
            if step["kind"] == "approve" and "proposal" not in forms[id]:
                raise UsageError("there is no proposal to approve: answer, ask, or pass")
            progress = await run.reply(question_id, {id: step})
            if client:
                client.progress.put_nowait(progress)
        return progress

    async def close(self) -> None:
        await self._stack.aclose()

    async def checkpoints(self) -> AsyncSqliteSaver:
        """The checkpointer of the run folder, opened once."""
        async with self._opening:
            if self._saver is None:
                path = self._run.folder.checkpoints_path
                saver = await self._stack.enter_async_context(interrupts.open_checkpoints(path))
                await saver.setup()
                self._saver = saver
            return self._saver

    def _context(self, trajectory: str) -> AmplifyContext:
        """The context in which a question was asked; the server cannot open its tools."""
        options = options_of(self._run.store, trajectory)
        if options is None:
            raise UsageError(f"{trajectory} was not asked in a way that waits for humans")
        if options.tools:
            raise UsageError("this question's copies have tools: go on with `reflux reply`")
        grants = self.grants if options.task else NO_GRANTS
        context = context_of(self._run, options, self._overseers, grants)
        return revised_context(context, trajectory)
