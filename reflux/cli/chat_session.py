"""A conversation with the amplified agent: each message is a trajectory, and can be stopped.

H answers with copies of X. Where H is `none`, X goes on with the conversation alone, and its words
are heard as they come.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.redaction import question_problem, redact
from reflux.agents.types import ChatRequest, Sampling
from reflux.ask_options import ALONE, AskOptions, open_context, save_options
from reflux.cli.human_input import converse
from reflux.conversation import Conversation, Turn
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.interrupts import open_interruptible_run
from reflux.graphs.ask import Asked
from reflux.graphs.conversation import answer_chat
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.review import marked_when_stopped
from reflux.tasks import task_named

CAPS = ("depth", "calls", "tokens", "seconds", "max_tokens")
"""What `/budget` sets."""
UNBOUNDED = 2**31 - 1
RANGES = {"depth": (0, 16), "max_tokens": (1, UNBOUNDED)}
"""Of those that may not be any number from 0 up; as on the command line."""


@dataclass
class ChatSession:
    """Who is asked, in what way, and what was said so far."""

    opened: OpenRun
    conversation: Conversation
    options: AskOptions
    trajectory: str = ""
    """Of the message that was asked last."""
    unkept: OSError | None = None
    """Why the conversation is no longer on disk as it is here; the answers are told all the same,
    and their trajectories are."""

    async def ask(
        self,
        text: str,
        hear: Callable[[Event], None],
        hush: Callable[[], None],
        say: Callable[[str], None],
    ) -> Turn:
        """Answer one message and keep the turn, that of a message that was stopped, too.

        Args:
            hear: hears of the growing tree.
            hush: called before a person is asked in the terminal.
            say: hears the words of X, where X answers alone.

        Raises:
            UsageError: the message cannot be asked.
            EndpointError: nobody answered at the endpoint.
        """
        self.trajectory = ""
        if self.options.overseer == ALONE:
            return await self._alone(text, hear, say)
        question = self._question(text)
        self._check_askable(question)
        asked = self._asked()
        self.trajectory = asked.question_id(question)
        async with open_context(self.opened, self.options, hear) as context:
            check_askable(question, context)
            store = self.opened.store
            await store.add_question({"id": self.trajectory, "text": question, **vars(asked)})
            await save_options(store, self.trajectory, self.options)
            turn = self._turn(text, None, "stopped")
            try:
                async with marked_when_stopped(store, self.trajectory):
                    turn = await self._answered(context, text, question, hush)
            finally:
                self._keep(turn)
        if turn.status == "failed" and self.opened.recorded_client.outage is not None:
            raise EndpointError(self.opened.recorded_client.outage)
        return turn

    async def _alone(
        self, text: str, hear: Callable[[Event], None], say: Callable[[str], None]
    ) -> Turn:
        """X goes on with the conversation; what it says is passed on and cannot be recalled."""
        question = redact(self.conversation.question(text))
        self._check_askable(question)
        asked = self._asked()
        self.trajectory = asked.question_id(question)
        turns: list[tuple[str, str]] = [("system", "")]
        for user, answer in self.conversation.told():
            turns += [("user", user), ("assistant", answer)]
        sampling = Sampling(max_tokens=self.options.max_tokens)
        request = ChatRequest(self.options.model, (*turns, ("user", text)), sampling)
        turn = self._turn(text, None, "stopped")
        await save_options(self.opened.store, self.trajectory, self.options)
        try:
            (reply,) = await answer_chat(
                self.opened.recorded_client, asked, question, [request],
                hear=lambda _, delta: say(delta.text), emit=hear,
            )  # fmt: skip
            turn = replace(turn, answer=reply.text, status="ok", calls=1, tokens=reply.tokens)
        except EndpointError:
            turn = replace(turn, status="failed")
            raise
        finally:
            self._keep(turn)
        return turn

    def _check_askable(self, question: str) -> None:
        """Before anything is made of it: what is no Unicode has not even an id."""
        if (reason := question_problem(question, self.options.limits().question_chars)) is not None:
            raise UsageError(f"{reason}; ask another")

    def stopped(self, text: str) -> Turn:
        """The turn of a message that was stopped; it is kept, too, where it had not begun."""
        turns = self.conversation.turns
        if not turns or turns[-1].trajectory != self.trajectory:
            self._keep(self._turn(text, None, "stopped"))
        return turns[-1]

    def _keep(self, turn: Turn) -> None:
        try:
            self.conversation.add(turn)
        except OSError as error:
            self.unkept = error

    def _asked(self) -> Asked:
        """Where a message comes from: each is a trajectory of its own."""
        name = f"chat-{self.conversation.id}-{uuid.uuid4().hex[:6]}"
        return Asked(self.opened.folder.name, -1, name, self.options.task, "asked")

    async def _answered(
        self, context: AmplifyContext, text: str, question: str, hush: Callable[[], None]
    ) -> Turn:
        path = self.opened.folder.checkpoints_path
        async with open_interruptible_run(context, path) as interruptible_run:
            progress = await interruptible_run.ask(question, self.trajectory)
            if progress.pending:
                hush()
                progress = await converse(interruptible_run, self.trajectory, progress)
        outcome = progress.outcome
        if outcome is None:
            return self._turn(text, None, "waiting")
        answer = outcome["answer"]
        if self.options.task and answer is not None:
            answer = task_named(self.options.task).to_user(question, answer)
        spent = outcome["spent"]
        turn = self._turn(text, answer if outcome["status"] == "ok" else None, outcome["status"])
        return replace(turn, calls=spent["calls"], tokens=spent["tokens"])

    def _question(self, text: str) -> str:
        """A task's questions stand alone; any other is asked with what was said before."""
        if self.options.task:
            return task_named(self.options.task).from_user(text)
        return redact(self.conversation.question(text))

    def _turn(self, text: str, answer: str | None, status: str) -> Turn:
        overseer = self.options.overseer or self.options.task
        return Turn(text, answer, status, self.trajectory, overseer, self.options.model)

    def set_cap(self, name: str, value: str) -> None:
        """Set one limit of the messages to come.

        Raises:
            UsageError: there is no such limit, or it is no number of its range.
        """
        if name not in CAPS:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(CAPS)}")
        if name == "seconds" and value == "none":
            self.options = replace(self.options, seconds=None)
            return
        try:
            number = float(value) if name == "seconds" else int(value)
        except ValueError:
            number = -1
        least, max_votes = RANGES.get(name, (0, UNBOUNDED))
        if not least <= number <= max_votes:
            none = ", or none" if name == "seconds" else ""
            end = "up" if max_votes == UNBOUNDED else f"to {max_votes}"
            raise UsageError(f"{name} must be a number from {least} {end}{none}, not {value!r}")
        self.options = replace(self.options, **{name: number})
